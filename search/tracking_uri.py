"""Tracking addresses: which ones can be used, and how they are shown. Costs no import of MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit


class TrackingError(ValueError):
    """The tracking address cannot be used; the message is one line that says why and how to mend it."""


def default_uri(storage: Path) -> tuple[str, str]:
    """The tracking address and the place of artefacts for a study whose storage is a local folder."""
    return f"sqlite:///{storage.absolute()}/mlflow.db", str(storage.absolute() / "mlartifacts")


def check_uri(uri: str) -> None:
    """Raise `TrackingError` unless `uri` can be a tracking address. Nothing is opened; costs no import of MLflow."""
    allowed = "give http(s)://HOST:PORT of an MLflow server, or sqlite:////absolute/path/mlflow.db"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise TrackingError(f"tracking address {shown(uri)!r}: {error}; {allowed}") from None
    if uri.partition(":")[0] in ("databricks", "databricks-uc"):
        return
    if parts.scheme in ("http", "https"):
        if not host or re.search(r"\s", uri):
            raise TrackingError(f"tracking address {shown(uri)!r} names no host; {allowed}")
    elif parts.scheme == "sqlite":
        if not uri.startswith("sqlite:///") or not parts.path.strip("/") or parts.path.endswith((":memory:", "/")):
            raise TrackingError(f"tracking address {shown(uri)!r} names no file; {allowed}")
        if sqlite_path(uri).is_dir():
            raise TrackingError(f"tracking address {shown(uri)!r} is a folder, not a database file; {allowed}")
    else:
        raise TrackingError(f"tracking address {shown(uri)!r} is neither a server nor an SQLite file; {allowed}")


def sqlite_path(uri: str) -> Path:
    """The database file of an address that starts with sqlite:///."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def shown(uri: str) -> str:
    """The address without its user and password."""
    return re.sub(r"^([^:/]*://)[^/]*@", r"\1", uri)


def without_passwords(text: str) -> str:
    """A text without the users and passwords of the addresses in it. What follows an address without a space, up to an
    @, is taken for a password rather than shown.
    """
    return re.sub(r"(\w://)[^/?#\s\"]*@", r"\1", text)


def reason_of(error: Exception) -> str:
    """One short line of what went wrong."""
    text = " ".join(str(error).split())
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)|(timed out)", text):
        return (found[1] or found[2]).strip()
    return f"{type(error).__name__}: {text[:300]}"


def page_command(uri: str, mlflow: str = "mlflow") -> str:
    """How to open MLflow's page on an address; `mlflow` is how that program is called."""
    return f"{mlflow} ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else shown(uri)
