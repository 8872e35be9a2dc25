"""Before anything imports Ray: what it must find in the environment, as the command line would set it; and what makes
tests depend on no machine's speed, terminal or proxy.
"""

import os
import signal

from hypothesis import HealthCheck, settings

from search.ray_settings import prepare_environment

prepare_environment(own_cluster=True)
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - its name; else Ray ends workers when others fill the memory
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["TERM"] = "xterm"

# A run in the background of a shell ignores these, and so would every search that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
