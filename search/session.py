"""One search, from a study file to its results: the stages in their order."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import fsspec
from rich.console import Console

from search.budgets import amounts_in_flops, open_budgets
from search.devices import cores_of_cluster, cores_per_worker, device_of_cluster, resolve_device
from search.director import Director
from search.ledger import FORMAT, Ledger, LedgerError
from search.progress import PlannedBudget, ProgressView
from search.ray_settings import prepare_environment
from search.results import render_results
from search.state import StudyState
from search.study import Study, load_study
from search.tracking_uri import check_uri, page_command
from search.views import Views, optuna_path, tracking_address, write_results
from trainables.data import Splits, open_splits

ROOT: Final = Path(__file__).resolve().parent.parent

log = logging.getLogger(__name__)


class SessionError(ValueError):
    """The search cannot begin or go on as asked; the message is one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one run of a study lives: `<storage>/<study>/run-<n>`, any fsspec address."""

    url: str
    run: str

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disk, or None if it is elsewhere."""
        fs, path = fsspec.core.url_to_fs(self.url)
        return Path(path) if is_local(fs) else None


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's disk."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def find_runs(study: Study) -> list[RunFolder]:
    """The runs of a study that its storage holds, oldest first. Raises `SessionError` if it cannot be looked into."""
    try:
        fs, root = fsspec.core.url_to_fs(f"{study.storage_url}/{study.name}")
        names = [Path(path).name for path in fs.ls(root, detail=False)] if fs.isdir(root) else []
    except (OSError, ImportError, ValueError) as error:
        raise SessionError(
            f"{study.source}: storage: {study.storage!r} given, but it cannot be read ({_one_line(error)}); "
            "name a folder or address that can be"
        ) from error
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"run-(\d+)", name)))
    return [RunFolder(f"{study.storage_url}/{study.name}/run-{number}", f"run-{number}") for number in numbers]


def choose_run(study: Study, *, fresh: bool) -> RunFolder:
    """The newest run, to go on with; or a new one beside it."""
    runs = find_runs(study)
    if runs and not fresh:
        return runs[-1]
    number = int(runs[-1].run.removeprefix("run-")) + 1 if runs else 1
    return RunFolder(f"{study.storage_url}/{study.name}/run-{number}", f"run-{number}")


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


def described(splits: Splits) -> dict[str, Any]:
    """What the ledger keeps of a study's data, to know it again: how much there is, and a digest of what it is."""
    return {
        "classes": len(splits.classes),
        "train_examples": len(splits.train),
        "heldout_examples": len(splits.heldout),
        "data_digest": splits.digest,
    }


def refuse_changed_study(study: Study, state: StudyState, splits: Splits) -> None:
    """Raise `SessionError` if what a result depends on (the study's fields, its data) differs from what the run was
    opened with, and `StudyError` for budgets that cannot be told in FLOPs.
    """
    before, now = state.opened["identity"], study.identity()
    changed = [
        f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    changed += [
        f"{key}: was {str(earlier)[:12]}, now {str(value)[:12]}"
        for key, value in described(splits).items()
        if (earlier := state.opened.get(key)) is not None and earlier != value
    ]
    for quantity, flops in zip(study.budgets, amounts_in_flops(study), strict=True):
        known = state.budgets.get(quantity.label)
        if known is not None and abs(known.flops / flops - 1) > 1e-6:
            changed.append(f"budget {quantity.label}: was {known.flops:.4g} FLOPs, now {flops:.4g}")
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise SessionError(
            f"{study.source}: changed since {state.opened['run']} of this study began ({shown}), so trials cannot be "
            "compared; restore the study and its data to go on, or start anew beside it with --fresh"
        )


@contextmanager
def terminal_console() -> Iterator[Console]:
    """A console on standard output as it is now, whatever is done to the descriptor later."""
    with os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding) as terminal:
        yield _Terminal(file=terminal)


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
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:], root.level = [handler], logging.WARNING
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), terminal, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        handler.close()


def prepare_storage(study: Study) -> None:
    """Make the study's storage, and see that it can be written to, before any compute is spent."""
    try:
        fs, root = fsspec.core.url_to_fs(f"{study.storage_url}/{study.name}")
        fs.makedirs(root, exist_ok=True)
        probe = f"{root.rstrip('/')}/.writable-{os.getpid()}"
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    except (OSError, ImportError, ValueError) as error:
        raise SessionError(
            f"{study.source}: storage: {study.storage!r} given, but it cannot be written to ({_one_line(error)}); "
            "name a folder or address that can be"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def local_folder(study: Study, folder: RunFolder) -> Path:
    """Where the run's own local files lie (logs, figures, Optuna's storage): its folder, or a stand-in for a remote
    one, which no study of that name in another storage shares.
    """
    storage = hashlib.sha256(study.storage_url.encode()).hexdigest()[:12]
    return folder.local or Path.home() / ".cache" / "convscale" / f"{study.name}-{storage}" / folder.run


def search(study_path: Path, *, fresh: bool, address: str | None, console: Console, retry_failed: bool = False) -> int:
    """Run or resume the search that a study file describes.

    Returns the exit status: 0 done, 1 if a budget has no finished trial, 130 interrupted in order.

    Raises:
        StudyError, DataError, LedgerError, TrackingError, SessionError: the user's mistakes, one line each.
        FleetError, FailuresError: the cluster failed, or trial after trial.
        KeyboardInterrupt: interrupted at once.
    """
    # ---- What is asked, and is it possible --------------------------------------------------------------------------
    study = load_study(study_path)
    splits = open_splits(study.data_config())
    if study.tracking.enabled:
        check_uri(tracking_address(study)[0])
    amounts_in_flops(study)  # raises where core-hours cannot be told in FLOPs
    device = resolve_device(study, own_cluster=address is None)
    prepare_storage(study)
    folder = choose_run(study, fresh=fresh)
    local = local_folder(study, folder)
    with logging_to(local / "logs" / "search.log"), Ledger(folder.url) as ledger, ExitStack() as stack:
        before = StudyState.of(ledger.records)
        if ledger.records:
            refuse_changed_study(study, before, splits)
        if before.ended and not retry_failed:
            budgets, _ = open_budgets(study, len(splits.train), len(splits.classes))
            if before.covers(budgets):
                show_results(study, before, folder, local, console)
                return exit_status(before)

        # ---- The cluster starts while the budgets are worked out ----------------------------------------------------
        prepare_environment(own_cluster=address is None)
        from search.driver import Interrupts, run  # imports Ray
        from search.slices import Fleet, FleetPlan

        interrupts = stack.enter_context(Interrupts())
        plan = FleetPlan(
            slices=study.compute.slices,
            workers=study.compute.workers_per_slice,
            cores=cores_per_worker(study),
            device=device,
            recycle_after=study.compute.recycle_after,
            max_errors=study.compute.max_errors + 1,
        )
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_budgets, study, len(splits.train), len(splits.classes))
            fleet = stack.enter_context(Fleet(plan, address=address))
            interrupts.take_over()
            budgets, warnings = opening.result()
        if address is not None:
            plan = fleet.plan = replace(
                plan,
                device=device_of_cluster(fleet.resources()) if device == "auto" else device,
                cores=cores_per_worker(study, cores_of_cluster(fleet.nodes())),
            )
        fleet.lease()

        # ---- The views ----------------------------------------------------------------------------------------------
        planned = [PlannedBudget(budget.label, budget.flops, budget.trials) for budget in budgets]
        progress = ProgressView(console, ledger.records, budgets=planned)
        views = Views.open(study, folder.run, local, progress)
        views.catch_up(ledger.records)
        director = Director(study, budgets, len(splits.classes), folder.url, ledger, plan.slices, views.feed)
        if not ledger.records:
            open_study(director, study, study_path, folder, splits, plan.device)

        # ---- The search ---------------------------------------------------------------------------------------------
        fleet.say = views.say
        reason = "error"
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
            fleet.patience_s = 1.0
            raise
        finally:
            stack.close()  # the slices first: they cost the most
            undelivered = conclude(director, views, reason, folder, local)

    # ---- What came of it --------------------------------------------------------------------------------------------
    show_results(study, director.state, folder, local, console)
    if undelivered:
        console.print(f"{undelivered} events are not in MLflow yet; bring them with: convscale sync {study_path}")
    if director.interrupted:
        console.print(f"interrupted; go on with: convscale search {study_path}")
        return 130
    return exit_status(director.state)


def conclude(director: Director, views: Views, reason: str, folder: RunFolder, local: Path) -> int:
    """The last event, the figures, and what the views lack; returns how many events did not reach MLflow.

    What fails here is logged, so that it hides neither the results nor the error that ended the search.
    """
    try:
        director.write("session_ended", reason=reason)
        views.add_figures(write_results(director.state, folder.url, local))
    except (LedgerError, OSError, RuntimeError, ValueError):
        log.exception("the end of the search could not be written")
    return views.close(timeout_s=60)


def exit_status(state: StudyState) -> int:
    """1 if a budget that has ended has no finished trial, else 0."""
    return int(any(budget.closed and budget.best is None for budget in state.budgets.values()))


def open_study(director: Director, study: Study, path: Path, folder: RunFolder, splits: Splits, device: str) -> None:
    """Write the ledger's first event, and a copy of the study file beside it."""
    text = path.read_text(encoding="utf-8-sig")
    fs, target = fsspec.core.url_to_fs(f"{folder.url}/study.yaml")
    fs.pipe_file(target, text.encode())
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
        format=FORMAT,
    )


def show_results(study: Study, state: StudyState, folder: RunFolder, local: Path, console: Console) -> None:
    """Print the tables, where the figures are, and how to open the pages."""
    render_results(state, console)
    figures = local / "figures"
    for what, path in (
        ("Figure of held-out loss against compute:", figures / "loss_vs_compute.png"),
        ("Figure of the learning-rate valleys:    ", figures / "learning_rate_valley.png"),
        ("All trials as a table:                  ", local / "results.csv"),
    ):
        console.print(f"{what} {shown(path)}", soft_wrap=True)
    if study.tracking.enabled:
        page = page_command(tracking_address(study)[0], program("mlflow"))
        console.print(f"MLflow's page:          {page}", soft_wrap=True)
    console.print(
        f"The Optuna dashboard:   {program('optuna-dashboard')} sqlite:///{shown(optuna_path(local))}", soft_wrap=True
    )


def program(name: str) -> str:
    """How to call a program that is installed beside this one."""
    return shown(Path(sys.executable).parent / name)


def shown(path: Path) -> str:
    """A path as a person would type it: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
