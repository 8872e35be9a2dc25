"""The command `compare`: finds the studies' trials in MLflow, says where it lags behind, prints and exports them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from rich.console import Console

from search.compare import CompareError, Comparison, Trial, choose, compare, newest_ledger, trials_of, view_of
from search.compare_table import print_comparison, write_csv, write_markdown
from search.ledger import LedgerError, Record
from search.runs import SessionError, newest_begun
from search.study import Study, load_study
from search.terminal import program, tell
from search.tracked_page import view_path
from search.tracked_runs import LAYOUT, LAYOUT_TAG, TrackedStudy
from search.tracking_errors import is_outage
from search.tracking_server import FoundExperiment, read_experiment
from search.tracking_uri import TrackingError, check_uri, page_command, reason_of, shown
from search.views import check_tracking, tracking_address

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one study's trials are. `study` is None if only the experiment's name is known."""

    given: str
    uri: str
    experiment: str
    study: Study | None

    @property
    def sync(self) -> str:
        """The command that brings the study there."""
        own = self.study is None or tracking_address(self.study)[0] == self.uri
        return f"convscale sync {self.given}" + ("" if own else f" --uri {shown(self.uri)}")


def compare_studies(
    given: Sequence[str],
    console: Console,
    *,
    uri: str | None = None,
    budgets: Sequence[str] = (),
    top: int | None = None,
    all_runs: bool = False,
    csv: str | None = None,
    markdown: str | None = None,
) -> None:
    """Print the trials of some studies by budget, best first, and export them.

    `given`: study files, or experiments of MLflow at `uri`. `csv`, `markdown`: files to write, - for standard output,
    which then has that alone. Raises `CompareError`, `TrackingError`, `StudyError`.
    """
    if csv == markdown == STDOUT:
        raise CompareError("--csv and --markdown: both are -, standard output; name a file for one of them")
    silent = STDOUT in (csv, markdown)
    said = Console(stderr=True) if silent else console
    trials: dict[str, Trial] = {}  # by their runs: two studies may share an experiment
    found: list[tuple[_Source, FoundExperiment]] = []
    sources = _sources(given, uri)
    places = [(source.uri, source.experiment) for source in sources]
    for source, place in zip(sources, places, strict=True):
        shared = places.count(place) > 1 and not all_runs
        experiment, more = _read(source, said, all_runs=all_runs, shared=shared)
        if shared:  # of one name: told apart by their files
            name = {"study": f"{source.experiment} ({source.given})"}
            more = [replace(trial, settings={**trial.settings, **name}) for trial in more]
        found.append((source, experiment))
        trials = {trial.run_id: trial for trial in more} | trials
    comparisons = choose(compare(list(trials.values()), top=top), budgets)
    _export(csv, "--csv", comparisons, write_csv)
    if csv is not None and any(len(comparison.trials) < comparison.total for comparison in comparisons):
        tell(said, f"--csv: has the best {top} of each budget alone; leave --top out to export every trial")
    _export(markdown, "--markdown", comparisons, write_markdown)
    if silent:
        return
    if not comparisons:
        tell(console, "No trials yet.")
    for comparison in comparisons:
        print_comparison(comparison, console)
        console.print()
    for line in dict.fromkeys(f"MLflow's page of {at.experiment}: {_page(at, there)}" for at, there in found):
        tell(console, line)


def _sources(given: Sequence[str], uri: str | None) -> list[_Source]:
    """Where the studies are, each once. With an address, what names no file is an experiment there."""
    if uri is not None:
        check_uri(uri)
    sources: dict[tuple[str, str, str], _Source] = {}
    for text in given:
        if uri is not None and not Path(text).exists() and not text.endswith((".yaml", ".yml")):
            source = _Source(text, uri, text, None)
        else:
            study = load_study(text)
            if uri is None:
                check_tracking(study)
            source = _Source(text, uri or tracking_address(study)[0], study.name, study)
        storage = "" if source.study is None else source.study.storage_url
        sources.setdefault((source.uri, source.experiment, storage), source)
    return list(sources.values())


def _read(source: _Source, console: Console, *, all_runs: bool, shared: bool) -> tuple[FoundExperiment, list[Trial]]:
    """The trials that MLflow has: of the newest run of a study, or of all; says what it lacks. Of an experiment that
    several studies have `shared` only the study's own newest run is its own for sure.
    """
    try:
        experiment = read_experiment(source.uri, source.experiment)
    except Exception as error:
        if not is_outage(error):
            raise
        raise TrackingError(
            f"{source.given}: MLflow at {shown(source.uri)} cannot be reached ({reason_of(error)}); start it, or "
            "correct the address"
        ) from error
    begun = _ledger(source, console)
    tracked = TrackedStudy(source.experiment, "")
    for record in begun:
        tracked.apply(record)
    ledgers = set() if experiment is None else {run.tags.get("convscale.ledger") for run in experiment.runs}
    newest = None if experiment is None or (shared and tracked.ledger not in ledgers) else newest_ledger(experiment)
    if experiment is None or newest is None:
        mend = f"bring the study there with: {source.sync}"
        if source.study is None:
            mend = "name one that is there, or give the study's file"
        elif not begun:
            mend = f"no run of it has begun either; start one with: convscale search {source.given}"
        what = f"{source.experiment} from its storage" if shared else source.experiment
        raise CompareError(f"{source.given}: MLflow at {shown(source.uri)} has no trials of {what}; {mend}")
    if tracked.ledger in ledgers:
        newest = tracked.ledger
    if begun and (line := _lag(tracked, experiment)):
        tell(console, f"{source.given}: {line}; bring it up to date with: {source.sync}")
    return experiment, trials_of(experiment, None if all_runs else [newest])


def _ledger(source: _Source, console: Console) -> Sequence[Record]:
    """What the newest run of a study has written, as far as its storage can be seen from here."""
    if source.study is None:
        return []
    try:
        begun = newest_begun(source.study)
    except (LedgerError, SessionError) as error:
        tell(console, f"{error} (what follows is what MLflow has)")
        return []
    return begun[1] if begun else []


def _lag(tracked: TrackedStudy, experiment: FoundExperiment) -> str:
    """How far MLflow is behind a ledger, in words; empty if it is not."""
    there: Mapping[str, int] = {
        run.tags["convscale.key"]: int(run.tags.get("convscale.seq", -1))
        for run in experiment.runs
        if run.tags.get("convscale.ledger") == tracked.ledger and int(run.tags.get(LAYOUT_TAG, 1)) >= LAYOUT
    }
    if not any(run.tags.get("convscale.ledger") == tracked.ledger for run in experiment.runs):
        return "MLflow lacks the study's newest run, so the newest there is shown"
    behind = sum(there.get(key, -1) < run.seq for key, run in tracked.runs.items())
    return f"MLflow is behind the ledger in {behind} of {len(tracked.runs)} runs" if behind else ""


def _export(
    where: str | None,
    option: str,
    comparisons: Sequence[Comparison],
    write: Callable[[Sequence[Comparison], IO[str]], None],
) -> None:
    if where is None:
        return
    text = io.StringIO(newline="")
    write(comparisons, text)
    if where == STDOUT:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
        return
    try:
        Path(where).write_text(text.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise CompareError(
            f"{option}: {where!r} cannot be written ({error.strerror}); name a file in a folder that can be"
        ) from None


def _page(source: _Source, experiment: FoundExperiment) -> str:
    """How to open the page on the trials."""
    path = view_path(experiment.experiment_id, view_of(experiment))
    if source.uri.startswith(("http://", "https://")):
        return shown(source.uri).rstrip("/") + path
    command = page_command(source.uri, program("mlflow"))
    return f"{command}, then http://127.0.0.1:5000{path}" if source.uri.startswith("sqlite:") else command
