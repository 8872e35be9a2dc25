"""The folders that a study's runs live in: which there are, which to go on with, and whether they can be written to."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from search.ledger import Record, read_ledger
from search.study import Study


class SessionError(ValueError):
    """The search cannot begin or go on as asked; the message is one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one run of a study lives: `<storage>/<study>/run-<n>`, any fsspec address."""

    url: str
    run: str

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disk, or None if it is elsewhere."""
        fs, path = fsspec.core.url_to_fs(self.url)
        return Path(path) if is_local(fs) else None


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's disk."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def find_runs(study: Study) -> list[RunFolder]:
    """The runs of a study that its storage holds, oldest first. Raises `SessionError` if it cannot be looked into."""
    try:
        fs, root = fsspec.core.url_to_fs(f"{study.storage_url}/{study.name}")
        names = [Path(path).name for path in fs.ls(root, detail=False)] if fs.isdir(root) else []
    except (OSError, ImportError, ValueError) as error:
        raise SessionError(
            f"{study.source}: storage: {study.storage!r} given, but it cannot be read ({_one_line(error)}); "
            "name a folder or address that can be"
        ) from error
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"run-(\d+)", name)))
    return [RunFolder(f"{study.storage_url}/{study.name}/run-{number}", f"run-{number}") for number in numbers]


def newest_begun(study: Study) -> tuple[RunFolder, list[Record]] | None:
    """The newest run with an event in its ledger, and its events; a run that was refused at its start has none.

    Raises `SessionError` if the storage cannot be looked into, `LedgerError` if that ledger is damaged.
    """
    return next(((run, records) for run in reversed(find_runs(study)) if (records := read_ledger(run.url))), None)


def choose_run(study: Study, *, fresh: bool) -> RunFolder:
    """The newest run that has begun, to go on with; or a new one beside all there are.

    Where none has begun the newest is taken: another search may be about to begin it, and its ledger's lock tells.
    """
    runs = find_runs(study)
    if runs and not fresh:
        begun = newest_begun(study)
        return runs[-1] if begun is None else begun[0]
    number = int(runs[-1].run.removeprefix("run-")) + 1 if runs else 1
    return RunFolder(f"{study.storage_url}/{study.name}/run-{number}", f"run-{number}")


def local_folder(study: Study, folder: RunFolder) -> Path:
    """Where the run's own local files lie (logs, figures, Optuna's storage): its folder, or a stand-in for a remote
    one, which no study of that name in another storage shares.
    """
    storage = hashlib.sha256(study.storage_url.encode()).hexdigest()[:12]
    return folder.local or Path.home() / ".cache" / "convscale" / f"{study.name}-{storage}" / folder.run


def prepare_storage(study: Study) -> None:
    """Make the study's storage, and see that it can be written to, before any compute is spent."""
    try:
        fs, root = fsspec.core.url_to_fs(f"{study.storage_url}/{study.name}")
        fs.makedirs(root, exist_ok=True)
        probe = f"{root.rstrip('/')}/.writable-{os.getpid()}"
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    except (OSError, ImportError, ValueError) as error:
        raise SessionError(
            f"{study.source}: storage: {study.storage!r} given, but it cannot be written to ({_one_line(error)}); "
            "name a folder or address that can be"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
