"""Joining a Ray cluster that is up, and what is said where none answers."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any, Final

import ray

ROOT: Final = Path(__file__).resolve().parent.parent
NAMESPACE: Final = "convscale"


class FleetError(RuntimeError):
    """The cluster or its slices could not be had; the message is one line."""


class ClusterNotFoundError(FleetError):
    """No Ray cluster answers at the address that was given."""


def join(address: str) -> None:
    """Connect this process to the cluster at `address`: "auto" or "HOST:PORT".

    Raises:
        ClusterNotFoundError: none answers, or it wants another token.
    """
    check_address(address)
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=_shipped_code(),
        )
    except ray.exceptions.AuthenticationError as error:
        raise ClusterNotFoundError(
            f"--address {address}: the cluster wants another token ({last_line(error)}); set "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to what it was started with"
        ) from error
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise ClusterNotFoundError(
            f"--address {address}: no Ray cluster answers, or it wants another token ({last_line(error)}); give auto "
            "or HOST:PORT of a cluster, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to "
            "what it was started with"
        ) from error


def check_address(address: str) -> None:
    """Ray tries for minutes before it gives an address up; a port that nobody listens on is known at once."""
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterNotFoundError(_not_found(address, error)) from error


def _not_found(address: str, error: Exception) -> str:
    return (
        f"--address {address}: no Ray cluster answers ({last_line(error)}); allowed: auto, or HOST:PORT of a cluster; "
        "start one with: ray start --head"
    )


def _shipped_code() -> dict[str, Any] | None:
    """This checkout, sent to every node of the cluster; None within a job that was submitted with its code."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    return {"working_dir": str(ROOT), "excludes": ["/.venv", "/.git", "/runs", "/tests", "/benchmarks"]}


def last_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
