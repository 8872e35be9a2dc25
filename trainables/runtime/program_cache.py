"""Compiled programs that outlive their process: a store on this host, of which only whole entries are ever read.

torch_xla can keep its compiled programs in a folder, but writes them there in place, so a process that dies, or reads
while another writes, meets half a program, and what the compiler's loader does with that is not defined. So every
process has a folder of its own, which begins with links to those entries of the store whose checksum holds; what it
compiles is published to the store by renaming. A damaged entry costs one compilation, and a store that cannot be read
or written to costs all of them, with a warning.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_ENTRY: Final = re.compile(r"(?P<name>.+)\.(?P<crc>[0-9a-f]{8})")
_ASIDE: Final = ".aside-"
_OWN: Final = ".of-process-"
_UNUSED_S: Final = 30 * 24 * 3600.0
_LEAST_FREE: Final = 64 * 2**20


def cache_root() -> Path:
    """Where programs are kept on this host: $CONVSCALE_PROGRAMS, or `convscale/programs` in the user's cache folder."""
    given = os.environ.get("CONVSCALE_PROGRAMS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convscale" / "programs"


def key_of(facts: Mapping[str, str]) -> str:
    """A folder name for all that a compiled program depends on besides its graph."""
    text = "\n".join(f"{name}={facts[name]}" for name in sorted(facts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_cache(store: Path) -> ProgramCache | None:
    """The cache at `store`; None, with a warning, where that cannot be read or written to."""
    try:
        return ProgramCache(store)
    except OSError as error:
        log.warning("compiled programs cannot be kept in %s (%s): each process compiles its own", store, error)
        return None


class ProgramCache:
    """The store at `store`, and `folder`, this process's own view of it, removed with it. Raises OSError if it fails.

    What no process has used for 30 days is removed, here and beside it.

    Attributes:
        folder: what torch_xla is given as its cache; at first the store's whole entries.
        loaded: how many those were.
        damaged: how many of the store's entries were removed because their checksum did not hold.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.loaded = self.damaged = 0
        store.mkdir(parents=True, exist_ok=True)
        _remove_left_over(store)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_OWN}{os.getpid()}-", dir=store))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for path in sorted(store.iterdir()):
            if (entry := _ENTRY.fullmatch(path.name)) and not path.name.startswith("."):
                self._take(path, entry["name"], int(entry["crc"], 16))
        self._known = self._there()

    def _take(self, path: Path, name: str, crc: int) -> None:
        try:
            whole = zlib.crc32(path.read_bytes()) == crc
            if whole:
                os.utime(path)
                os.link(path, self.folder / name)
                self.loaded += 1
                return
        except FileNotFoundError:  # replaced by another process just now
            return
        self.damaged += 1
        log.warning("compiled program %s is damaged: removed, to be compiled again", path)
        path.unlink(missing_ok=True)

    def publish(self) -> int:
        """Put what this process has compiled since the last time into the store; returns how many programs.

        An entry that the store has by another content, which could not be loaded, is replaced. Where the store fails
        there is a warning.
        """
        try:
            return self._publish()
        except OSError as error:
            log.warning("compiled programs could not be kept in %s (%s)", self.store, error)
            return 0

    def _publish(self) -> int:
        there = self._there()
        new = [name for name, inode in there.items() if self._known.get(name) != inode]
        if new and shutil.disk_usage(self.store).free < _LEAST_FREE:
            raise OSError(f"less than {_LEAST_FREE >> 20} MiB are free, so they may not be whole")
        for name in new:
            crc = zlib.crc32((self.folder / name).read_bytes())
            aside = self.store / f"{_ASIDE}{os.getpid()}-{name}"
            aside.unlink(missing_ok=True)
            os.link(self.folder / name, aside)
            published = aside.replace(self.store / f"{name}.{crc:08x}")
            for other in self.store.glob(f"{name}.*"):
                if other != published:
                    other.unlink(missing_ok=True)
        self._known = there
        return len(new)

    def _there(self) -> dict[str, int]:
        """Name and inode of what torch_xla has in its folder; it never writes to a file twice."""
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}


def _remove_left_over(store: Path) -> None:
    """Remove what processes that were killed left in the store, and programs of any key that were not used for long."""
    for path in [*store.glob(f"{_OWN}*"), *store.glob(f"{_ASIDE}*")]:
        owner = path.name.removeprefix(_OWN).removeprefix(_ASIDE).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in store.parent.glob("*/*"):
        try:
            if _ENTRY.fullmatch(path.name) and path.stat().st_mtime < time.time() - _UNUSED_S:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process was faster
            continue
