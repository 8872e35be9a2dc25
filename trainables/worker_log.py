"""Where the warnings and errors of training processes go: to one file that a person reads, not to Ray's many."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_to(path: str, name: str) -> Iterator[None]:
    """Within it, log lines from WARNING on and Python's warnings go to the end of the file at `path`, and so does what
    compiled code, or a process that this one starts, writes to standard error. `name` stands in every log line.

    Several processes may write to the same file.
    """
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name} (process %(process)d): %(message)s"))
        standard_error = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with handled_by(handler):
                yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    """Within it, log lines from WARNING on and Python's warnings go to this handler, and to no other."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:], root.level = [handler], logging.WARNING
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
