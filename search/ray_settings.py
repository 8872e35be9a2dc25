"""What Ray must find in the environment, set before it is imported: Ray reads some of it only then."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Final

_SETTINGS: Final = {
    # a worker's end is seen within this time; Ray's default of 2 s would hold every restart up
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # how long a run waits for what it reserved before it looks for other nodes; it tries again for ever
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    # where it sees a node go it ends the workers without a word to our callbacks; Ray's errors tell of such nodes, too
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end must fail, not start another cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def prepare_environment(*, own_cluster: bool) -> None:
    """Set what is not set yet. A cluster of one's own is closed to others by a token that lives no longer than the
    process.

    Ray's own default would be no token, or one written into the user's home; neither is wanted for the length of a
    search.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if own_cluster and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
