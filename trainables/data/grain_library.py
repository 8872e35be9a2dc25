"""Imports Grain without its greeting, and keeps Grain's worker processes light.

Importing Grain without JAX logs "Failed to load jax profiler", and absl, to log it, installs a handler of the root
logger that then prints every other library's warnings. Neither belongs on a user's terminal. Everything here imports
Grain from this module.

This module is also what a decoding process runs first, in place of the program that started it (`light_main`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator

import absl.logging  # noqa: F401  # makes the logger "absl" of its own class, before anyone else asks for it by name

from trainables.data.memory import keep_freed_memory
from trainables.data.processes import serve_parent


def _is_wanted(record: logging.LogRecord) -> bool:
    return "Failed to load jax profiler" not in str(record.msg)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    root, absl_logger, guard = logging.getLogger(), logging.getLogger("absl"), logging.NullHandler()
    root.addHandler(guard)  # with a handler there, absl does not install one of its own
    absl_logger.addFilter(_is_wanted)
    try:
        yield
    finally:
        absl_logger.removeFilter(_is_wanted)
        root.removeHandler(guard)


with _quiet_import():
    import grain
    import grain.experimental

__all__ = ["grain", "light_main", "set_up_decoding_process"]

_SPEC_LOCK = threading.Lock()


@contextlib.contextmanager
def light_main() -> Iterator[None]:
    """While this is open, processes spawned by `multiprocessing` import this module as their main one.

    A spawned process first imports its parent's main module: in a Ray worker that is Ray itself, in a test pytest. A
    decoding process needs neither, and each import would cost it a second or more and a hundred megabytes.
    """
    main = sys.modules["__main__"]
    with _SPEC_LOCK:
        spec = main.__spec__
        main.__spec__ = importlib.util.find_spec(
            __name__ if __name__ != "__mp_main__" else "trainables.data.grain_library"
        )
        try:
            yield
        finally:
            main.__spec__ = spec


def set_up_decoding_process(worker: int, workers: int) -> None:
    """Runs first in each decoding process: Ctrl-C is its parent's to handle, it ends when its parent has died, and it
    keeps the memory of an image for the next.
    """
    del worker, workers
    keep_freed_memory()
    serve_parent()
