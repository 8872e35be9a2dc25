"""Before anything imports Ray: what it must find in the environment, as the command line would set it."""

from search.ray_settings import prepare_environment

prepare_environment(own_cluster=True)
