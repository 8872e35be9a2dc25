"""What `convscale report` does: writes the report of a study's newest run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from search.report.content import report_of
from search.report.making import findings_of
from search.report.page import render, write_page
from search.runs import SessionError, local_folder, newest_begun
from search.state import StudyState
from search.study import load_study
from search.terminal import shown, tell

NAME = "report.html"


def write_report(path: Path, output: Path | None, console: Console) -> None:
    """Write the report of a study's newest run to `output`, by default into the run's own folder on this machine.

    Raises:
        StudyError, LedgerError, SessionError: the user's mistakes, one line each.
        OSError: the file cannot be written.
    """
    study = load_study(path)
    if output is not None and output.is_dir():
        raise SessionError(f"--output: {output} given, which is a folder; name a file, such as {output / NAME}")
    if output is not None and not output.parent.is_dir():
        raise SessionError(f"--output: {output} given, but there is no folder {output.parent}; make it first")
    begun = newest_begun(study)
    if begun is None:
        raise SessionError(
            f"{path}: no run of {study.name} in {study.storage_url}; start one with: convscale search {path}"
        )
    folder, records = begun
    state = StudyState.of(records)
    target = local_folder(study, folder) / NAME if output is None else output
    found = findings_of(records, state, study)
    page = report_of(records, state, found.law, forecasts=found.forecasts, pictures=found.pictures, study=study)
    write_page(render(page), target)
    tell(console, f"Report: {shown(target)}")
