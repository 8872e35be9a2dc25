"""The commands that train nothing: plan, results, sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from search.data import counts_of
from search.devices import check_precision_here, check_xla, device_here, warnings_here
from search.ledger import Record
from search.optuna_view import rebuild
from search.plan import plan, render_plan
from search.programs import load_programs
from search.rates import TPU_V4, core_hour_rates, has_rates_of, rates_on_tpu
from search.results import measured_rates, render_results, time_split
from search.resume import as_begun
from search.runs import RunFolder, SessionError, local_folder, newest_begun
from search.second_objective import render_fronts
from search.session import show_pages
from search.state import StudyState
from search.study import Study, StudyError, load_study
from search.terminal import tell
from search.tracking import Artifact, sync
from search.tracking_errors import is_outage
from search.tracking_uri import check_uri, reason_of, shown
from search.views import check_tracking, optuna_path, tracking_address, write_results

_MEND: Final = "copy the run and study to draw them"


def plan_study(path: Path, console: Console, *, device: str | None = None) -> None:
    """Print what the study would do. Rates that its newest run measured replace any estimate, where that run trained
    the same models in the same way on the same device.

    `device`: "tpu-v4" plans for TPU v4, which need not be here; so does a study whose own device is a TPU.
    """
    if device is not None and device.casefold() != TPU_V4.casefold():
        raise SessionError(
            f"--device: {device!r} given; allowed: {TPU_V4.casefold()}; leave it out for the study's own"
        )
    study = load_study(path)
    counts = counts_of(study)
    if study.tracking.enabled:
        check_tracking(study)
    on = "tpu" if device is not None else device_here(study)
    warnings = [*counts.warnings, *_warnings_of(study, on)]
    begun = newest_begun(study)
    study, goes_on = as_begun(study, begun[1] if begun else [])
    opened = StudyState.of(begun[1]).opened if begun else {}
    earlier = StudyState.of(begun[1]) if begun and has_rates_of(study, begun[1], on) else StudyState()
    measured = measured_rates(earlier)
    rates = rates_on_tpu(study, load_programs(study), counts.classes, measured) if on == "tpu" else None
    planned = plan(
        study,
        counts.train,
        counts.heldout,
        counts.classes,
        measured=measured,
        goodput=time_split(earlier).undisturbed_goodput,
        rates=rates,
        core_hours=core_hour_rates(study, counts.classes, opened),
    )
    render_plan(replace(planned, warnings=(*warnings, *goes_on, *planned.warnings)), console)


def _warnings_of(study: Study, device: str) -> list[str]:
    """What stands against a search: on TPUs what it would refuse, else what this machine lacks."""
    if device == "tpu":
        try:
            check_xla(study, device)
        except StudyError as error:
            return [f"a search refuses this: {error}"]
        return []
    warnings = warnings_here(study)
    try:
        check_precision_here(study)
    except StudyError as error:
        if study.compute.device != "auto":
            raise
        warnings.append(f"on this machine: {error}")  # the search may be meant for a cluster
    return warnings


def show_study(path: Path, console: Console) -> None:
    """Print a study's results so far, and write its figures and table anew where its folder can be written to."""
    study, folder, records = _newest_run(path)
    state, local = StudyState.of(records), local_folder(study, folder)
    render_results(state, console)
    render_fronts(state, console)
    try:
        write_results(state, folder.url, local, study, records)
    except OSError as error:
        tell(console, f"figures, table and report could not be written ({error}); {_MEND}")
    show_pages(study, local, console)


def sync_study(path: Path, uri: str | None, console: Console) -> None:
    """Bring MLflow and Optuna's storage up to date from the study's ledger."""
    if uri is not None:
        check_uri(uri)
    study, folder, records = _newest_run(path)
    if uri is None:
        check_tracking(study)
    own, artefacts = tracking_address(study)
    where, root = uri or own, artefacts if uri is None else None
    report = sync(records, where, artifact_root=root)  # before the drawing, which a server that is gone makes useless
    local = local_folder(study, folder)
    refused = dict(report.refused)
    if files := _written(StudyState.of(records), folder, local, study, records, console):
        refused |= sync(records, where, artifact_root=root, artifacts=files).refused
    _rebuild_optuna(records, study, local, console)
    tell(
        console,
        f"{shown(where)}: {report.runs} runs of {study.name} {folder.run}, {report.created} made, "
        f"{report.updated} brought up to date, {report.points} metric points sent",
    )
    for key, reason in refused.items():
        tell(console, f"refused: {key} ({reason})")


def _written(
    state: StudyState, folder: RunFolder, local: Path, study: Study, records: Sequence[Record], console: Console
) -> list[Artifact]:
    """The figures, table and report, drawn anew; none, with a line that says so, where they cannot be written."""
    try:
        return [Artifact.read(file) for file in write_results(state, folder.url, local, study, records)]
    except OSError as error:
        tell(console, f"figures, table and report could not be written ({error}); {_MEND}")
        return []


def _rebuild_optuna(records: Sequence[Record], study: Study, local: Path, console: Console) -> None:
    """Write Optuna's storage anew, or say in a line that it cannot be written."""
    rates = study.learning_rates
    try:
        rebuild(records, optuna_path(local), learning_rates=(rates[0], max(rates[-1], rates[0] * 1.001)))
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # Optuna wraps its database's
        if not is_outage(cause):
            raise
        tell(console, f"Optuna's storage could not be written ({reason_of(cause)}); copy the run and study to write it")


def _newest_run(path: Path) -> tuple[Study, RunFolder, list[Record]]:
    study = load_study(path)
    begun = newest_begun(study)
    if begun is None:
        raise SessionError(
            f"{path}: no run of {study.name} in {study.storage_url}; start one with: convscale search {path}"
        )
    return study, *begun
