"""What is kept of Ray's own logs when a cluster failed: they lie in a folder that is removed with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

# Of these files, what is at their end: at most 40 MiB in all.
PATTERNS: Final = ("raylet.*", "gcs_server.*", "worker-*.err")
MOST_FILES: Final = 40
MOST_BYTES: Final = 2**20


def keep_ray_logs(logs: Path, kept: Path) -> None:
    """Copy the ends of what the raylet, the GCS and the newest workers wrote from `logs` (a Ray session's) to `kept`,
    in place of what it held. Files that are empty are left out.

    Raises OSError where that cannot be done.
    """
    shutil.rmtree(kept, ignore_errors=True)
    found = []
    for pattern in PATTERNS:
        stats = [(path, path.stat()) for path in logs.glob(pattern)]
        newest = sorted(stats, key=lambda item: item[1].st_mtime, reverse=True)
        found += [(path, stat.st_size) for path, stat in newest if stat.st_size]
    for path, size in found[:MOST_FILES]:
        kept.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            file.seek(max(0, size - MOST_BYTES))
            (kept / path.name).write_bytes(file.read(MOST_BYTES))
