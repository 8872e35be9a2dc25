"""One search, from a study file to its results: the stages in their order."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import fsspec
from rich.console import Console

from search.budgets import Budget, amounts_in_flops, open_budgets
from search.data import open_data
from search.devices import (
    check_precision_here,
    chips_of_worker,
    cores_per_worker,
    resolve_device,
    warnings_here,
)
from search.director import Director
from search.foretold import foreteller
from search.ledger import FORMAT, Ledger, LedgerError, Record
from search.progress import PlannedBudget, ProgressView
from search.rates import core_hour_rates
from search.ray_settings import prepare_environment
from search.results import render_results
from search.resume import as_begun, described, opened_again, refuse_changed_study, without_trials
from search.runs import RunFolder, choose_run, local_folder, prepare_storage
from search.second_objective import render_fronts
from search.state import StudyState
from search.study import Study, load_study
from search.terminal import logging_to, program, reader_may_be_gone, shown, tell
from search.tracking_uri import page_command, without_passwords
from search.views import Views, check_tracking, optuna_path, tracking_address, write_results
from trainables.data import Splits

if TYPE_CHECKING:
    from search.law.forecast import Speed

ROOT: Final = Path(__file__).resolve().parent.parent
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def code_version() -> str:
    """The commit this code is at ("+" if the tree was changed since), or the package's version outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return metadata.version("convscale")
    return commit + ("+" if changed.strip() else "")


def search(study_path: Path, *, fresh: bool, address: str | None, console: Console, retry_failed: bool = False) -> int:
    """Run or resume the search that a study file describes.

    Returns the exit status: 0 done, 1 if a budget has no finished trial, 130 interrupted.

    Raises:
        StudyError, LedgerError, TrackingError, SessionError: the user's mistakes, one line each.
        FleetError, FailuresError: the cluster failed, or trial after trial.
        KeyboardInterrupt: interrupted before the trials began.
    """
    # ---- What is asked, and is it possible --------------------------------------------------------------------------
    study = load_study(study_path)
    splits = open_data(study)
    if study.tracking.enabled:
        check_tracking(study)
    amounts_in_flops(study)  # raises where core-hours cannot be told in FLOPs
    device = resolve_device(study, own_cluster=address is None)
    if address is None:
        check_precision_here(study)
    prepare_storage(study)
    folder = choose_run(study, fresh=fresh)
    local = local_folder(study, folder)
    with logging_to(local / "logs" / "search.log"), Ledger(folder.url) as ledger, ExitStack() as stack:
        before = StudyState.of(ledger.records)
        study, goes_on = as_begun(study, ledger.records)
        core_hours = core_hour_rates(study, len(splits.classes), before.opened)
        if ledger.records:
            refuse_changed_study(study, before, splits, core_hours)
        if before.ended and not retry_failed:
            budgets, _ = open_budgets(study, len(splits.train), len(splits.classes), core_hours)
            if before.covers(budgets):
                show_results(study, before, local, console)
                return exit_status(before, before.named(budgets))

        # ---- The cluster starts while the budgets are worked out ----------------------------------------------------
        prepare_environment(own_cluster=address is None)
        from search.driver import Interrupts, run  # imports Ray
        from search.fitting import fit_to_cluster
        from search.slices import Fleet, FleetPlan

        interrupts = stack.enter_context(Interrupts())
        plan = FleetPlan(
            slices=study.compute.slices,
            workers=study.compute.workers_per_slice,
            cores=cores_per_worker(study),
            device=device,
            recycle_after=study.compute.recycle_after,
            max_errors=study.compute.max_errors + 1,
            chips=chips_of_worker(),
            topology=study.compute.tpu_slice if device == "tpu" else None,
        )
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_budgets, study, len(splits.train), len(splits.classes), core_hours)
            fleet = stack.enter_context(Fleet(plan, address=address, logs=local / "logs"))
            interrupts.take_over()
            budgets, warnings = opening.result()
        budgets = before.named(budgets)
        here = warnings_here(study) if address is None else []
        found = [] if ledger.records else splits.warnings()  # its mends are for before a search has begun
        again = [*opened_again(before, budgets), *without_trials(study, before, budgets)]
        warnings = [*found, *here, *warnings, *goes_on, *again]
        if address is not None:
            warnings += fit_to_cluster(study, fleet, folder.url)
        plan = fleet.plan
        fleet.lease()

        # ---- The views ----------------------------------------------------------------------------------------------
        planned = [
            PlannedBudget(
                budget.label, budget.flops, budget.trials, frozenset(cell.variant for cell in budget.cells), budget
            )
            for budget in budgets
        ]
        progress = ProgressView(console, ledger.records, budgets=planned)
        views = Views.open(study, folder.run, local, progress)
        views.catch_up(ledger.records)
        counts = {"train_examples": len(splits.train), "classes": len(splits.classes)}
        foretell = foreteller(study, **counts, speed=lambda: _speed_now(study, ledger.records))
        director = Director(study, budgets, len(splits.classes), folder.url, ledger, plan.slices, views.feed, foretell)
        if not ledger.records:
            open_study(director, study, study_path, folder, splits, plan.device, core_hours)

        # ---- The search ---------------------------------------------------------------------------------------------
        fleet.say = views.say
        reason, at_once = "error", False
        try:
            with progress, interrupts.search_of(director, fleet, views.say):
                director.write(
                    "session_started", host=socket.gethostname(), pid=os.getpid(), slices=plan.slices,
                    cores_per_slice=plan.cores * plan.workers, device=plan.device, code_version=code_version(),
                )  # fmt: skip
                if retry_failed:
                    director.reopen_failed()
                for warning in warnings:
                    views.say(warning)
                run(director, fleet)
            if director.done:
                director.write("study_ended")
            reason = "interrupted" if director.interrupted else "finished"
        except KeyboardInterrupt:
            reason, at_once = "interrupted", True
            fleet.patience_s = 1.0
        finally:
            write_end(director, reason)
            # the views come to their end while the slices go home
            told = study, director.state, ledger.records
            concluding = in_background(lambda: conclude(*told, views, folder, local, at_once=at_once))
            try:
                stack.__exit__(*sys.exc_info())
                drawn = concluding.result()
            except KeyboardInterrupt:
                reason, at_once = "interrupted", True

    # ---- What came of it --------------------------------------------------------------------------------------------
    with reader_may_be_gone():
        if not at_once:
            show_results(study, director.state, local, console)
            if not drawn:
                tell(console, f"the figures could not be drawn; see {shown(local / 'logs' / 'search.log')}")
        if views.undelivered:
            tell(console, f"{views.undelivered} events are not in MLflow; bring them with: convscale sync {study_path}")
        if reason == "interrupted":
            tell(console, f"interrupted; go on with: convscale search {study_path}")
    return 130 if reason == "interrupted" else exit_status(director.state, budgets)


def _speed_now(study: Study, records: Sequence[Record]) -> Speed:
    from search.speed import speed_of_study  # imports scipy

    return speed_of_study(study, records)


def write_end(director: Director, reason: str) -> None:
    """The ledger's last event of this session. If it fails it is logged: it must not hide what ended the search."""
    try:
        director.write("session_ended", reason=reason)
    except LedgerError:
        log.exception("the end of the session could not be written")


def conclude(
    study: Study,
    state: StudyState,
    records: Sequence[Record],
    views: Views,
    folder: RunFolder,
    local: Path,
    *,
    at_once: bool,
) -> bool:
    """The figures and the report, and what the views lack; `at_once` leaves those out and hardly waits for the views.

    What fails in drawing is logged, so that it hides neither the results nor the error that ended the search. Returns
    whether the figures and the table are as the study is now.
    """
    drawn = False
    try:
        if not at_once:
            views.add_figures(write_results(state, folder.url, local, study, records))
            drawn = True
    except Exception:
        log.exception("the figures could not be drawn")
    views.close(timeout_s=2 if at_once else 60)
    return drawn


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """A call on a thread of its own, which holds no process up that is interrupted meanwhile."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def exit_status(state: StudyState, budgets: Sequence[Budget]) -> int:
    """1 if one of these budgets, by the ledger's names, has ended without a finished trial, else 0."""
    known = [state.budgets[budget.label] for budget in budgets if budget.label in state.budgets]
    return int(any(budget.closed and budget.best is None for budget in known))


def open_study(
    director: Director,
    study: Study,
    path: Path,
    folder: RunFolder,
    splits: Splits,
    device: str,
    core_hours: Mapping[str, float],
) -> None:
    """Write the ledger's first event, and a copy of the study file beside it; users and passwords of addresses stay
    out of both, for they are shared.
    """
    text = without_passwords(path.read_text(encoding="utf-8-sig"))
    fs, target = fsspec.core.url_to_fs(f"{folder.url}/study.yaml")
    fs.pipe_file(target, text.encode())
    named = {quantity.device for quantity in study.budgets if quantity.device is not None}
    director.write(
        "study_opened",
        study=study.name,
        run=folder.run,
        study_file=text,
        study_path=str(path),
        code_version=code_version(),
        identity=study.identity(),
        **described(splits),
        device=device,
        core_hour_rates={device: core_hours[device] for device in sorted(named)},
        format=FORMAT,
    )


def show_results(study: Study, state: StudyState, local: Path, console: Console) -> None:
    """Print the tables, where the files of the results are, and how to open the pages."""
    render_results(state, console)
    render_fronts(state, console)
    show_pages(study, local, console)


def show_pages(study: Study, local: Path, console: Console) -> None:
    """Print where the figures and the table are, as far as they were written, and how to open the pages."""
    figures = local / "figures"
    for what, path in (
        ("Report, and what to train next:         ", local / "report.html"),
        ("Figure of held-out loss against compute:", figures / "loss_vs_compute.png"),
        ("Figure of the learning-rate valleys:    ", figures / "learning_rate_valley.png"),
        ("All trials as a table:                  ", local / "results.csv"),
    ):
        if path.exists():
            tell(console, f"{what} {shown(path)}")
    if study.tracking.enabled:
        page = page_command(tracking_address(study)[0], program("mlflow"))
        tell(console, f"MLflow's page:          {page}")
    tell(console, f"The Optuna dashboard:   {program('optuna-dashboard')} sqlite:///{shown(optuna_path(local))}")
