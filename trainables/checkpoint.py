"""A trial's checkpoints: a folder at any fsspec address, the last few kept, each file there whole or not at all.

On a file system a checkpoint is written aside, then renamed; an object store takes it in one upload, which is atomic,
where a rename would be a second copy. A file is named `step-00000120.1a2b3c4d.pt` or, the last of a trial,
`step-00000120-final.1a2b3c4d.pt`. It is a plain file of `torch.save`; its name carries the CRC-32 of its bytes, because
torch's own reader does not notice a changed byte.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import tempfile
import uuid
import zlib
from dataclasses import dataclass
from typing import IO, Any, Final

import fsspec
import torch

from trainables.config import TrialRefused

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"step-(?P<step>\d+)(?P<final>-final)?\.(?P<crc>[0-9a-f]{8})\.pt")
_ASIDE: Final = ".aside-"
# Stores on which an upload is seen only when it is complete (S3, Google Cloud Storage, Azure; fsspec's own in memory).
_ATOMIC: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})


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
        protocol = self._fs.protocol
        self._protocols = frozenset((protocol,) if isinstance(protocol, str) else protocol)
        self._damaged: set[str] = set()  # names whose bytes were read and do not have their checksum

    def saved(self) -> list[Saved]:
        """What is there, oldest first; the final checkpoint after another of its step."""
        found = []
        for name in self._names():
            if match := _NAME.fullmatch(name):
                found.append(Saved(int(match["step"]), bool(match["final"]), int(match["crc"], 16), name))
        return sorted(found, key=lambda saved: (saved.step, saved.final))

    def save(self, step: int, state: dict[str, Any], final: bool = False) -> None:
        """Write `state` (tensors on the host and plain values) as the checkpoint of `step`; then drop what is too old.

        When this returns, the file is whole, under its name, and (on a local disk) would survive a power cut. After a
        `final` one no other is needed.
        """
        self._fs.makedirs(self._root, exist_ok=True)
        name = self._upload(step, state, final) if self._protocols & _ATOMIC else self._rename(step, state, final)
        self._damaged.discard(name)
        self._drop_before(name, (step, final))

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as (step, state on the host), or None if there is none.

        One whose bytes have changed, or are not all there, is passed over with a warning.

        Raises:
            TrialRefused: a checkpoint is as it was written, but nothing that this version can read.
            OSError: (and others) the store failed; reading again may work.
        """
        for saved in reversed(self.saved()):
            data = self._read(saved)
            if data is None:
                continue
            try:
                return saved.step, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                reason = str(error).strip().split("\n")[0]
                raise TrialRefused(
                    f"{self.folder}/{saved.name} is whole, but no checkpoint that this version reads ({reason}); "
                    "remove it to go on from the one before, or give another folder"
                ) from error
        return None

    def clean(self) -> None:
        """Remove what a writer that died left half-written. For the folder's one writer, before its first `save`."""
        for name in self._names():
            if name.startswith(_ASIDE):
                self._fs.rm_file(f"{self._root}/{name}")

    def _read(self, saved: Saved) -> bytes | None:
        """The bytes of a checkpoint, or None if they are damaged, also when they are read again."""
        for _ in range(2):
            data: bytes = self._fs.cat_file(f"{self._root}/{saved.name}")
            if zlib.crc32(data) == saved.crc:
                return data
        self._damaged.add(saved.name)
        log.warning(
            "checkpoint %s/%s is damaged (%d bytes whose checksum is not the one in the name): falling back to the one "
            "before",
            self.folder,
            saved.name,
            len(data),
        )
        return None

    def _rename(self, step: int, state: dict[str, Any], final: bool) -> str:
        """Write aside, then rename; returns the name."""
        aside = f"{self._root}/{_ASIDE}{uuid.uuid4().hex}"
        with self._fs.open(aside, "wb") as file:
            crc = _write(state, file)
            if self._is_local():
                os.fsync(file.fileno())
        name = _name(step, final, crc)
        self._fs.mv(aside, f"{self._root}/{name}")
        if self._is_local():
            _sync_folder(self._root)  # the new name must be on the disk before older files are dropped
        return name

    def _upload(self, step: int, state: dict[str, Any], final: bool) -> str:
        """Write to a temporary file here, then upload that under its name, which is returned."""
        with tempfile.NamedTemporaryFile(prefix="checkpoint-") as file:
            name = _name(step, final, _write(state, file))
            self._fs.put_file(file.name, f"{self._root}/{name}")
        return name

    def _drop_before(self, newest: str, place: tuple[int, bool]) -> None:
        """Remove what is damaged, and of those before `newest` all but `keep` - 1 (all, if it is final).

        A whole one that is further than `newest` stays: whoever wrote it got there.
        """
        others = [s for s in self.saved() if s.name != newest]
        before = [s.name for s in others if (s.step, s.final) < place and s.name not in self._damaged]
        kept = 0 if place[1] else self.keep - 1
        for saved in others:
            replaced = (saved.step, saved.final) == place
            if replaced or saved.name in self._damaged or saved.name in before[: max(0, len(before) - kept)]:
                self._fs.rm_file(f"{self._root}/{saved.name}")

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [path.rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []

    def _is_local(self) -> bool:
        return "file" in self._protocols


def _name(step: int, final: bool, crc: int) -> str:
    return f"step-{step:08d}{'-final' if final else ''}.{crc:08x}.pt"


def _write(state: dict[str, Any], file: IO[bytes]) -> int:
    """Write `state` to `file`; returns the CRC-32 of its bytes."""
    summing = _Summing(file)
    torch.save(state, summing)  # type: ignore[arg-type]
    file.flush()
    return summing.crc


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
