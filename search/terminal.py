"""What reaches the terminal, and what goes to the log file instead."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from trainables.data import folder
from trainables.worker_log import handled_by


@contextmanager
def terminal_console() -> Iterator[Console]:
    """A console on standard output as it is now, whatever is done to the descriptor later."""
    terminal = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    try:
        yield _Terminal(file=terminal)
    finally:
        with reader_may_be_gone():
            terminal.close()


@contextmanager
def reader_may_be_gone() -> Iterator[None]:
    """Around what is only shown: a terminal that was closed, or a pipe that nobody reads, is no error of the search."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # a file's, not the terminal's
            raise


class _Terminal(Console):
    """A console whose reader may go away: that is an error like any other, not the end of the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the terminal, or what standard output was piped to, is gone")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send every library's log lines, warnings and prints to a file, and none of them to the terminal.

    Ray's compiled parts write to the file descriptors themselves, so those are sent elsewhere. What is meant for the
    terminal goes through `terminal_console`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(1), os.dup(2)
    sink = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        with handled_by(handler):
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), terminal, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        handler.close()


def tell(console: Console, line: str) -> None:
    """Print a line as it is: what a path or a message holds is never taken for markup, and is not broken."""
    console.print(Text(line), soft_wrap=True)


def program(name: str) -> str:
    """How to call a program that is installed beside this one."""
    return shown(Path(sys.executable).parent / name)


def shown(path: Path) -> str:
    """A path as a person would type it, see `trainables.data.folder.shown`."""
    return folder.shown(str(path))
