"""The commands that train nothing: plan, results, sync."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from search.ledger import Record, read_ledger
from search.optuna_view import rebuild
from search.plan import plan, render_plan
from search.results import measured_rates, time_split
from search.runs import RunFolder, SessionError, find_runs, local_folder
from search.session import show_results
from search.state import StudyState
from search.study import Study, load_study
from search.tracking import Artifact, sync
from search.views import optuna_path, tracking_address, write_results
from trainables.data import open_splits


def plan_study(path: Path, console: Console) -> None:
    """Print what the study would do. Rates measured by its earlier trials replace the study's estimate."""
    study = load_study(path)
    splits = open_splits(study.data_config())
    runs = find_runs(study)
    earlier = StudyState.of(read_ledger(runs[-1].url)) if runs else StudyState()
    planned = plan(
        study,
        len(splits.train),
        len(splits.heldout),
        len(splits.classes),
        measured=measured_rates(earlier),
        goodput=time_split(earlier).undisturbed_goodput,
    )
    render_plan(planned, console)


def show_study(path: Path, console: Console) -> None:
    """Print a study's results so far, and write its figures and table anew."""
    study, folder, records = _newest_run(path)
    state, local = StudyState.of(records), local_folder(study, folder)
    write_results(state, folder.url, local)
    show_results(study, state, folder, local, console)


def sync_study(path: Path, uri: str | None, console: Console) -> None:
    """Bring MLflow and Optuna's storage up to date from the study's ledger."""
    study, folder, records = _newest_run(path)
    local = local_folder(study, folder)
    files = write_results(StudyState.of(records), folder.url, local)
    own, artefacts = tracking_address(study)
    report = sync(
        records,
        uri or own,
        artifact_root=artefacts if uri is None else None,
        artifacts=[Artifact.read(file) for file in files],
    )
    rates = study.learning_rates
    rebuild(records, optuna_path(local), learning_rates=(rates[0], max(rates[-1], rates[0] * 1.001)))
    console.print(
        f"{uri or own}: {report.runs} runs of {study.name} {folder.run}, {report.created} made, "
        f"{report.updated} brought up to date, {report.points} metric points sent",
        soft_wrap=True,
    )
    for key, reason in report.refused.items():
        console.print(f"refused: {key} ({reason})")


def _newest_run(path: Path) -> tuple[Study, RunFolder, list[Record]]:
    study = load_study(path)
    for run in reversed(find_runs(study)):
        if records := read_ledger(run.url):  # a run that was refused at its start has none
            return study, run, records
    raise SessionError(
        f"{path}: no run of {study.name} in {study.storage_url}; start one with: convscale search {path}"
    )
