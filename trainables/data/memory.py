"""How a process that decodes images keeps its memory."""

from __future__ import annotations

import ctypes

# glibc's parameters (malloc.h), at the most that its own adjustment would set them to.
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 64 << 20
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 32 << 20


def keep_freed_memory() -> None:
    """Keeps what this process frees, up to 64 MB, for what it allocates next.

    A decoded image is large enough for glibc to hand its memory back to the system, image by image; getting it anew,
    page by page, takes as long as resizing does. Where the C library is another one, nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        set_option(_M_MMAP_THRESHOLD, _MMAP_BYTES)
