"""A real `mlflow server` for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from search.tracking_uri import default_uri


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(storage: Path, port: int) -> Iterator[None]:
    """A server on the database in `storage`; it may not answer yet. Ended with all it started."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", default_uri(storage)[0], "--artifacts-destination", str(storage / "served"),
    ]  # fmt: skip
    log = (storage / "server.log").open("ab")
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def wait_until_it_answers(port: int) -> None:
    """Ask until a server answers, for some minutes at most."""
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", HTTPAdapter(max_retries=Retry(600, backoff_factor=0.3, backoff_max=0.3)))
        session.get(f"http://127.0.0.1:{port}/health", timeout=60).raise_for_status()
