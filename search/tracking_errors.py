"""What an error met on the way to a tracking server means: an outage, a refusal, or neither.

Told by names alone, so that it costs no import of MLflow.
"""

from __future__ import annotations

from typing import Final

# What a server answers to a request that will not get better by waiting.
_REFUSALS: Final = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
)
# Whose exceptions speak of a server, its database or its store of artefacts.
_SPEAKERS: Final = {
    "mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "sqlite3", "boto3", "botocore", "google", "azure",
}  # fmt: skip


def is_refusal(error: Exception) -> bool:
    """Whether the server understood the request and will never take it."""
    return getattr(error, "error_code", None) in _REFUSALS


def is_outage(error: Exception) -> bool:
    """Whether the server, its database, the network or a disk failed. All else is a mistake in the program."""
    return isinstance(error, OSError) or any(
        kind.__module__.partition(".")[0] in _SPEAKERS for kind in type(error).__mro__
    )
