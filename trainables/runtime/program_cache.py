"""Compiled programs that outlive their process: a store on this host, of which only whole entries are ever read.

torch_xla can keep its compiled programs in a folder, but writes them there in place, so a process that dies, or reads
while another writes, meets half a program, and what the compiler's loader does with that is not defined. So every
process has a folder of its own, filled at the start with those entries of the store whose checksum holds; what it
compiles is published to the store by renaming. A damaged entry costs one compilation.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_ENTRY: Final = re.compile(r"(?P<name>.+)\.(?P<crc>[0-9a-f]{8})")
_ASIDE: Final = ".aside-"
_OWN: Final = "convscale-programs-"


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


class ProgramCache:
    """The store at `store`, and `folder`, this process's own view of it, removed with it.

    Attributes:
        folder: what torch_xla is given as its cache; at first the store's whole entries.
        loaded: how many those were.
        damaged: how many of the store's entries were removed because their checksum did not hold.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.loaded = self.damaged = 0
        store.mkdir(parents=True, exist_ok=True)
        _remove_left_over()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_OWN}{os.getpid()}-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for path in sorted(store.iterdir()):
            self._take(path)
        self._known = self._there()

    def _take(self, path: Path) -> None:
        entry = _ENTRY.fullmatch(path.name)
        if entry is None or path.name.startswith(_ASIDE):
            return
        data = path.read_bytes()
        if zlib.crc32(data) == int(entry["crc"], 16):
            (self.folder / entry["name"]).write_bytes(data)
            self.loaded += 1
            return
        self.damaged += 1
        log.warning("compiled program %s is damaged: removed, to be compiled again", path)
        path.unlink(missing_ok=True)  # another process may have been faster

    def publish(self) -> int:
        """Put what this process has compiled since the last time into the store; returns how many programs.

        An entry that the store has by another content, which could not be loaded, is replaced.
        """
        there = self._there()
        new = [name for name, stamp in there.items() if self._known.get(name) != stamp]
        for name in new:
            data = (self.folder / name).read_bytes()
            aside = self.store / f"{_ASIDE}{os.getpid()}-{name}"
            aside.write_bytes(data)
            published = aside.replace(self.store / f"{name}.{zlib.crc32(data):08x}")
            for other in self.store.glob(f"{name}.*"):
                if other != published:
                    other.unlink(missing_ok=True)
        self._known = there
        return len(new)

    def _there(self) -> dict[str, tuple[int, int]]:
        """Name, time and inode of what torch_xla has in its folder."""
        stats = {path.name: path.stat() for path in self.folder.iterdir()}
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def _remove_left_over() -> None:
    """Remove the folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_OWN}*"):
        owner = path.name.removeprefix(_OWN).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and path.stat().st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
