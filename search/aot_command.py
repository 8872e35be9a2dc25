"""The command `convscale aot`: compile a study's train steps for TPU v4, and print what the compiler said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search.aot import TEXT_SUFFIX, programs_of, request
from search.aot_table import as_json, render, render_top
from search.programs import Program, Programs, record
from search.study import StudyError
from search.terminal import shown, tell


def compile_study(
    path: Path,
    console: Console,
    *,
    topology: str,
    cores: int | None = None,
    variants: Sequence[str] = (),
    batch_size: int | None = None,
    images: int | None = None,
    keep: bool = False,
    top: int | None = None,
    json: bool = False,
    record_in: Path | None = None,
) -> None:
    """Compile what is asked for and print it on `console`; progress goes to standard error.

    `keep`: keep the optimised programs' text. `top`: also print so many of each program's costliest instructions (and
    keep the text). `json`: print JSON instead of tables. `record_in`: add the programs to this file, too.
    """
    if record_in is not None:
        _check_record(record_in)
    asked = request(path, topology=topology, cores=cores, variants=variants, batch_size=batch_size, images=images)
    keep = keep or top is not None
    progress = Console(stderr=True)
    programs: list[Program] = []
    store = Programs(asked.study)
    for program in programs_of(asked, tell=lambda line: tell(progress, line), keep=keep):
        programs.append(program)
    if record_in is not None:
        added = record(programs, record_in)
        tell(progress, f"{', '.join(added) or 'no program'} recorded in {shown(record_in)}")
    if json:
        sys.stdout.write(as_json(asked, programs) + "\n")
        return
    render(asked, programs, console)
    for program in programs:
        if not keep or program.costs is None:
            continue
        console.print()
        tell(console, f"{program.variant}: the optimised program is kept in {store.path(program, TEXT_SUFFIX)}")
        if top is not None:
            render_top(store.text(program, TEXT_SUFFIX), top, console, title=program.variant)


def _check_record(path: Path) -> None:
    """Raise `StudyError` where programs cannot be recorded in a file, before minutes of compiling."""
    try:
        record((), path)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise StudyError(
            f"--record: {shown(path)} given, but programs cannot be recorded in it ({reason}); "
            "name a file that convscale aot has written, or a new one"
        ) from error
