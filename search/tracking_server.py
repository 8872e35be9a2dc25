"""The calls to MLflow, on its tracking store, with no fluent state. The only file that imports mlflow, and lazily: that
takes seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from search.tracked_page import page_changes
from search.tracked_runs import LAYOUT, LAYOUT_TAG, TrackedRun, is_outdated
from search.tracking_errors import is_refusal
from search.tracking_uri import reason_of, sqlite_path

METRICS_PER_CALL: Final = 1000
# One short try per call: trying again is the feeder's work, and it does not block anyone. The other switches keep
# MLflow silent.
_ENVIRONMENT: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_CONFIGURE_LOGGING": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

log = logging.getLogger(__name__)


def _store_at(uri: str, artifact_root: str | None) -> Any:
    """The tracking store of an address. A database that is not there is made."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store(uri, artifact_root)


def _search(store: Any, experiment_id: str, wanted: str) -> Iterator[Any]:
    """MLflow's active runs of an experiment that a filter chooses, the oldest first."""
    from mlflow.entities import ViewType

    token: str | None = None
    while token is None or token:
        page = store.search_runs(
            [experiment_id], wanted, ViewType.ACTIVE_ONLY, 1000, ["attributes.start_time ASC"], token
        )
        yield from page
        token = page.token or ""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as a server shows it: the last value of each metric."""

    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FoundExperiment:
    """An experiment with its active runs, the oldest first."""

    experiment_id: str
    tags: Mapping[str, str]
    runs: tuple[FoundRun, ...]


def read_experiment(uri: str, name: str) -> FoundExperiment | None:
    """An experiment as it is, or None where there is none of that name. Makes nothing.

    Raises what MLflow raises when the server does not answer.
    """
    if uri.startswith("sqlite:") and not sqlite_path(uri).exists():
        return None
    store = _store_at(uri, None)
    experiment = store.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        return None
    found = (
        FoundRun(run.info.run_id, dict(run.data.tags), dict(run.data.params), dict(run.data.metrics))
        for run in _search(store, experiment.experiment_id, "")
    )
    return FoundExperiment(str(experiment.experiment_id), dict(experiment.tags), tuple(found))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(slots=True)
class RemoteRun:
    """A run as the server has it. `seq` is -1 if an earlier version left it, whose tags `outdated` are."""

    run_id: str
    status: str
    seq: int
    artifact_uri: str
    digests: dict[str, str]
    outdated: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Any) -> RemoteRun:
        prefix, tags = "convscale.artifact.", run.data.tags
        digests = {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}
        old = int(tags.get(LAYOUT_TAG, 1)) < LAYOUT
        seq = -1 if old else int(tags.get("convscale.seq", -1))
        outdated = tuple(filter(is_outdated, tags)) if old else ()
        return cls(run.info.run_id, run.info.status, seq, run.info.artifact_uri, digests, outdated)


class Server:
    """A server, for the runs of one ledger in one experiment."""

    def __init__(self, uri: str, artifact_root: str | None, experiment: str, ledger: str) -> None:
        self.uri, self.ledger = uri, ledger
        who = hashlib.sha256(f"{uri} {ledger}".encode()).hexdigest()[:16]
        self._lock = Path(tempfile.gettempdir()) / f"convscale-mlflow-{os.getuid()}-{who}.lock"
        if uri.startswith("sqlite:"):
            database = sqlite_path(uri)
            database.parent.mkdir(parents=True, exist_ok=True)
            artifact_root = artifact_root or str(database.absolute().with_name("mlartifacts"))
            self._lock = database.with_name(f"{database.name}.lock")
        self._budgets: dict[str, float] | None = None
        with _locked(self._lock):
            self._store = _store_at(uri, artifact_root)
            self._experiment = self._find_or_create_experiment(experiment, artifact_root)

    def _find_or_create_experiment(self, name: str, artifact_root: str | None) -> str:
        experiment = self._store.get_experiment_by_name(name)
        if experiment is None:
            location = artifact_root and f"{artifact_root.rstrip('/')}/{name}"
            return str(self._store.create_experiment(name, location, []))
        if experiment.lifecycle_stage != "active":
            self._store.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def lay_out(self, budgets: Mapping[str, float]) -> None:
        """Give the experiment its page, for budgets by their labels, in FLOPs; or go without where that is refused."""
        from mlflow.entities import ExperimentTag

        if self._budgets == budgets:
            return
        with _locked(self._lock):
            there = self._store.get_experiment(self._experiment).tags
            try:
                for name, value in page_changes(there, budgets).items():
                    self._store.set_experiment_tag(self._experiment, ExperimentTag(name, value))
            except Exception as error:
                if not is_refusal(error):
                    raise
                log.warning("MLflow refused the page of the experiment (%s)", reason_of(error))
        self._budgets = dict(budgets)

    def runs(self, key: str | None = None) -> dict[str, RemoteRun]:
        """The ledger's runs by their keys: all, or the one of `key`. Of two with one key, the older."""
        wanted = f"tags.`convscale.ledger` = '{self.ledger}'"
        if key is not None:
            wanted += f" AND tags.`convscale.key` = '{key}'"
        found: dict[str, RemoteRun] = {}
        for run in _search(self._store, self._experiment, wanted):
            found.setdefault(run.data.tags["convscale.key"], RemoteRun.of(run))
        return found

    def create(self, run: TrackedRun, parent_id: str | None) -> tuple[RemoteRun, bool]:
        """Find or create a run; also says whether it was created."""
        from mlflow.entities import RunTag

        with _locked(self._lock):
            if found := self.runs(run.key):
                return found[run.key], False
            tags = {"mlflow.user": "convscale", "mlflow.source.name": "convscale", **run.changes(-1).tags}
            if parent_id is not None:
                tags["mlflow.parentRunId"] = parent_id
            made = self._store.create_run(
                self._experiment, "convscale", run.started_ms, [RunTag(*tag) for tag in tags.items()], run.name
            )
        return RemoteRun.of(made), True

    def update(self, remote: RemoteRun, run: TrackedRun) -> int:
        """Give a run all it lacks; returns the number of metric points sent."""
        from mlflow.entities import Metric, Param, RunStatus, RunTag

        seq, changes = run.seq, run.changes(remote.seq)
        points = [Metric(point.name, point.value, point.time_ms, point.step) for point in changes.points]
        params = [Param(*param) for param in changes.params.items()]
        tags = [RunTag(*tag) for tag in changes.tags.items()]
        if params:
            self._store.log_batch(remote.run_id, [], params, [])
        while len(points) > METRICS_PER_CALL // 2:
            self._store.log_batch(remote.run_id, points[: METRICS_PER_CALL // 2], [], [])
            del points[: METRICS_PER_CALL // 2]
        if run.status != remote.status:
            self._store.update_run_info(remote.run_id, RunStatus.from_string(run.status), run.ended_ms, None)
            remote.status = run.status
        for name in remote.outdated:
            self._store.delete_tag(remote.run_id, name)
        remote.outdated = ()
        if seq > remote.seq:  # last, so that it is only true once everything else is there
            marks = [RunTag(LAYOUT_TAG, str(LAYOUT)), RunTag("convscale.seq", str(seq))]
            self._store.log_batch(remote.run_id, points, [], [*tags, *marks])
        remote.seq = seq
        return len(changes.points)

    def put_artifact(self, remote: RemoteRun, name: str, content: bytes) -> None:
        """Store a file with a run, unless the run has it."""
        from mlflow.entities import RunTag
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        digest = hashlib.sha256(content).hexdigest()[:16]
        if remote.digests.get(name) == digest:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            get_artifact_repository(remote.artifact_uri, tracking_uri=self.uri).log_artifact(str(path), None)
        self._store.log_batch(remote.run_id, [], [], [RunTag(f"convscale.artifact.{name}", digest)])
        remote.digests[name] = digest
