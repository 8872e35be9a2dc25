"""The ledger: the one durable truth of a study, an append-only sequence of JSON events.

The driver alone writes it, and an event is on disk before anyone acts on it. Everything else that knows about a study
(Optuna's storage, MLflow, tables, figures) is a view of it and can be rebuilt from it.

On a local disk the ledger is one file, `ledger.jsonl`, each append forced to disk. Object stores cannot append, so
there each event is an object of its own, `ledger/00000042.json`, and the name's order is the order of events. A last
event that a crash cut off was never acted on: reading stops before it, and opening for writing removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import fsspec

FORMAT: Final = 1
_MEND: Final = "restore the file from a copy, or start beside it with --fresh"


class LedgerError(ValueError):
    """The ledger cannot be read or is in use; the message is one line that says where and how to mend it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One event: its place in the ledger (from 0), when it was written (Unix seconds), what happened, its fields."""

    seq: int
    time: float
    event: str
    fields: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields.get(key, default)

    def to_json(self) -> str:
        return json.dumps(
            {"seq": self.seq, "time": self.time, "event": self.event, **self.fields}, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, line: str) -> Record:
        values = json.loads(line)
        return cls(values.pop("seq"), values.pop("time"), values.pop("event"), values)


def _complete_records(lines: list[bytes], where: str) -> Iterator[tuple[Record, int]]:
    """Yield (record, size in bytes) up to a last line that was cut off; a bad line before the last is an error."""
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        try:
            if last and not line.endswith(b"\n"):
                return
            record = Record.from_json(line.decode())
        except (ValueError, KeyError, AttributeError):
            if last:
                return
            raise LedgerError(f"{where}: line {number + 1} is not an event; {_MEND}") from None
        if record.seq != number:
            raise LedgerError(f"{where}: line {number + 1} is event {record.seq}, expected {number}; {_MEND}")
        yield record, len(line)


class _FileLog:
    """`ledger.jsonl` on a local disk: one writer at a time, held by a lock on the file's neighbour."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "ledger.jsonl"
        self.where = str(self.path)
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._size = 0

    def read(self) -> tuple[list[Record], int]:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        found = list(_complete_records(lines, str(self.path)))
        return [record for record, _ in found], sum(size for _, size in found)

    def open(self) -> list[Record]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_suffix(".lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise LedgerError(
                f"{self.path}: another search of this study is running; wait for it, or end it first"
            ) from None
        try:
            records, size = self.read()
        except BaseException:
            self.close()
            raise
        self._file = self.path.open("ab", buffering=0)
        self._file.truncate(size)
        self._size = size
        return records

    def append(self, record: Record) -> None:
        """Write a whole event or none: what a full disk or an interruption left of it is taken back."""
        assert self._file is not None
        line = record.to_json().encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        for handle in (self._file, self._lock):
            if handle is not None:
                handle.close()
        self._file = self._lock = None


class _ObjectLog:
    """`ledger/00000042.json` on an object store: an object an event. One writer at a time is the user's care."""

    def __init__(self, folder: str) -> None:
        self.fs, root = fsspec.core.url_to_fs(folder)
        self.root = root.rstrip("/") + "/ledger"
        self.where = f"{folder.rstrip('/')}/ledger"

    def read(self) -> tuple[list[Record], int]:
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):
            return [], 0
        names = sorted(name for name in self.fs.ls(self.root, detail=False) if name.endswith(".json"))
        contents = self.fs.cat(names) if names else {}
        lines = [contents[name] for name in names]
        return [record for record, _ in _complete_records(lines, self.where)], 0

    def open(self) -> list[Record]:
        self.fs.makedirs(self.root, exist_ok=True)
        return self.read()[0]

    def append(self, record: Record) -> None:
        self.fs.pipe_file(f"{self.root}/{record.seq:08d}.json", record.to_json().encode() + b"\n")

    def close(self) -> None:
        pass


def _log_at(folder: str) -> _FileLog | _ObjectLog:
    fs, path = fsspec.core.url_to_fs(folder)
    return (
        _FileLog(path)
        if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
        else _ObjectLog(folder)
    )


def read_ledger(folder: str) -> list[Record]:
    """All whole events of the ledger in a study's folder (any fsspec address); empty if there is none.

    Raises `LedgerError` if an event before the last is damaged.
    """
    return _log_at(folder).read()[0]


class Ledger:
    """A ledger open for writing. Raises `LedgerError` if it is damaged, or (on a local disk) open elsewhere."""

    def __init__(self, folder: str) -> None:
        self._log = _log_at(folder)
        self.where = self._log.where
        self.records = self._log.open()

    def append(self, event: str, **fields: Any) -> Record:
        """Write one event; when this returns, it is durable. When this raises, it is not in the ledger.

        Raises `LedgerError` if it cannot be written (a full disk, a storage that is gone).
        """
        record = Record(len(self.records), time.time(), event, fields)
        self.records.append(record)
        try:
            self._log.append(record)
        except OSError as error:
            self.records.pop()
            raise LedgerError(f"{self._log.where}: cannot be written ({error}); mend that, and start again") from error
        except BaseException:
            self.records.pop()
            raise
        return record

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
