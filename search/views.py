"""The views of a running search, fed together: the terminal, Optuna's storage and MLflow. None of them can hold the
search up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from search.ledger import Record
from search.optuna_view import OptunaView
from search.progress import ProgressView
from search.results import write_csv
from search.state import StudyState
from search.study import Study
from search.tracking import MlflowView
from search.tracking_uri import TrackingError, check_uri, default_uri

log = logging.getLogger(__name__)


def tracking_address(study: Study) -> tuple[str, str | None]:
    """Where MLflow's runs go and, if that is a database of ours, where artefacts go (None: the server knows)."""
    storage = study.storage_url
    here = Path("runs") if "://" in storage else Path(storage)
    uri, artefacts = default_uri(here)
    if study.tracking.uri is not None:
        uri = study.tracking.uri
        if not uri.startswith("sqlite:"):
            return uri, None
    return uri, f"{storage}/mlartifacts" if "://" in storage else artefacts


def check_tracking(study: Study) -> None:
    """Raise `TrackingError`, by the name of the study's file, if MLflow's runs cannot go where it says."""
    try:
        check_uri(tracking_address(study)[0])
    except TrackingError as error:
        raise TrackingError(f"{study.source}: tracking.uri: {error}") from error


def optuna_path(local_folder: Path) -> Path:
    """Where a run's Optuna storage lies."""
    return local_folder / "optuna.db"


@dataclass(slots=True)
class Views:
    """Feed it the ledger from its first record."""

    progress: ProgressView
    optuna: OptunaView
    mlflow: MlflowView | None
    _terminal_gone: bool = False

    @classmethod
    def open(cls, study: Study, run: str, local_folder: Path, progress: ProgressView) -> Views:
        """Raises `TrackingError` if the study's tracking address is malformed."""
        rates = study.learning_rates
        bounds = (rates[0], max(rates[-1], rates[0] * 1.001))
        views: list[Views] = []

        def say(line: str) -> None:
            views[0].say(line)

        mlflow = None
        if study.tracking.enabled:
            uri, artefacts = tracking_address(study)
            mlflow = MlflowView(uri, artifact_root=artefacts, study=study.name, run=run, say=say, hold=True)
        views.append(cls(progress, OptunaView(optuna_path(local_folder), learning_rates=bounds, say=say), mlflow))
        return views[0]

    def catch_up(self, records: Sequence[Record]) -> None:
        """Feed what earlier sessions wrote; the terminal's view has been given that already."""
        for record in records:
            self._feed_stores(record)

    def feed(self, record: Record) -> None:
        """Feed one new record; returns at once."""
        self._show(lambda: self.progress.feed(record))
        self._feed_stores(record)
        if self.mlflow is not None and record.event == "trial_started":
            self.mlflow.release()  # not before: its import would hold the first trial up

    def say(self, line: str) -> None:
        """Show a line on the terminal; call from any thread."""
        self._show(lambda: self.progress.note(line))

    def _show(self, action: Callable[[], None]) -> None:
        """A terminal that fails (closed, a full disk behind a pipe) is left alone from then on."""
        if self._terminal_gone:
            return
        try:
            action()
        except Exception:
            self._terminal_gone = True
            log.exception("the terminal's view failed, and shows nothing more")

    def _feed_stores(self, record: Record) -> None:
        self.optuna.feed(record)
        if self.mlflow is not None:
            self.mlflow.feed(record)

    def add_figures(self, paths: Sequence[Path]) -> None:
        """Keep files with the study's MLflow run."""
        if self.mlflow is not None:
            for path in paths:
                self.mlflow.artifact(path)

    def close(self, timeout_s: float) -> None:
        """Deliver what waits, for so long at most to each of them."""
        self.optuna.close(timeout_s)
        if self.mlflow is not None:
            self.mlflow.close(timeout_s)

    @property
    def undelivered(self) -> int:
        """How many events have not reached MLflow (`convscale sync` brings them)."""
        return self.mlflow.pending if self.mlflow is not None else 0


def write_results(
    state: StudyState, folder: str, local_folder: Path, study: Study | None = None, records: Sequence[Record] = ()
) -> list[Path]:
    """Draw the figures and write results.csv and report.html into the run's folder; returns the paths of the local
    copies.

    `state` is what the ledger's `records` fold into. The report forecasts the `study`'s next budgets, if it is given.
    """
    from search.report import findings_of, render, report_of, write_page  # imports matplotlib and scipy

    figures = local_folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    found = findings_of(records, state, study)
    files = [figures / f"{picture.name}.png" for picture in found.pictures]
    for path, picture in zip(files, found.pictures, strict=True):
        path.write_bytes(picture.png)
    files += [local_folder / "results.csv", local_folder / "report.html"]
    write_csv(state, str(files[-2]))
    page = report_of(records, state, found.law, forecasts=found.forecasts, pictures=found.pictures, study=study)
    write_page(render(page), files[-1])
    if "://" in folder:
        for path in files:
            fs, target = fsspec.core.url_to_fs(f"{folder}/{path.relative_to(local_folder)}")
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), target)
    return files
