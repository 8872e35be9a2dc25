"""A trial's checkpoints: a folder at any fsspec address, each file written aside, then renamed, the last few kept.

A file is named `step-00000120.1a2b3c4d.pt` or, the last of a trial, `step-00000120-final.1a2b3c4d.pt`. It is a plain
file of `torch.save`; its name carries the CRC-32 of its bytes, because torch's own reader does not notice a changed
byte.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import uuid
import zlib
from dataclasses import dataclass
from typing import IO, Any, Final

import fsspec
import torch

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"step-(?P<step>\d+)(?P<final>-final)?\.(?P<crc>[0-9a-f]{8})\.pt")
_ASIDE: Final = ".aside-"


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint file: its step, whether it is the trial's last, the CRC-32 of its bytes, its name."""

    step: int
    final: bool
    crc: int
    name: str


class _Summing:
    """A binary file that is written to, and the CRC-32 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc = file, 0

    def write(self, data: bytes | memoryview) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


class Checkpoints:
    """The checkpoints in `folder` (any fsspec address), of which `save` keeps the newest `keep`."""

    def __init__(self, folder: str, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep {keep} is too few checkpoints: keep 1 or more")
        self.folder, self.keep = folder, keep
        self._fs, root = fsspec.core.url_to_fs(folder)
        self._root = root.rstrip("/")

    def saved(self) -> list[Saved]:
        """What is there, oldest first; the final checkpoint after another of its step."""
        found = []
        for name in self._names():
            if match := _NAME.fullmatch(name):
                found.append(Saved(int(match["step"]), bool(match["final"]), int(match["crc"], 16), name))
        return sorted(found, key=lambda saved: (saved.step, saved.final))

    def save(self, step: int, state: dict[str, Any], final: bool = False) -> None:
        """Write `state` (tensors on the host and plain values) as the checkpoint of `step`; then drop what is too old.

        When this returns, the file is whole, under its name, and (on a local disk) would survive a power cut.
        """
        self._fs.makedirs(self._root, exist_ok=True)
        aside = f"{self._root}/{_ASIDE}{uuid.uuid4().hex}"
        with self._fs.open(aside, "wb") as file:
            summing = _Summing(file)
            torch.save(state, summing)  # type: ignore[arg-type]
            file.flush()
            if self._is_local():
                os.fsync(file.fileno())
        name = f"step-{step:08d}{'-final' if final else ''}.{summing.crc:08x}.pt"
        self._fs.mv(aside, f"{self._root}/{name}")
        self._drop_all_but(name, (step, final))

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as (step, state on the host), or None if there is none.

        A damaged one is passed over with a warning.
        """
        for saved in reversed(self.saved()):
            try:
                data = self._fs.cat_file(f"{self._root}/{saved.name}")
                if zlib.crc32(data) != saved.crc:
                    raise ValueError(f"{len(data)} bytes whose checksum is not the one in the name")
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
                log.warning(
                    "checkpoint %s/%s is damaged (%s): falling back to the one before", self.folder, saved.name, error
                )
                continue
            return saved.step, state
        return None

    def clean(self) -> None:
        """Remove what a writer that died left half-written. For the folder's one writer, before its first `save`."""
        for name in self._names():
            if name.startswith(_ASIDE):
                self._fs.rm_file(f"{self._root}/{name}")

    def _drop_all_but(self, newest: str, place: tuple[int, bool]) -> None:
        """Remove all but `newest` and the `keep` - 1 before it; any after it is damaged, or a run would be there."""
        saved = self.saved()
        before = [s.name for s in saved if (s.step, s.final) < place]
        kept = {*before[max(0, len(before) - self.keep + 1) :], newest}
        for name in {s.name for s in saved} - kept:
            self._fs.rm_file(f"{self._root}/{name}")

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [path.rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []

    def _is_local(self) -> bool:
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)
