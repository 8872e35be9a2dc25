"""MLflow, a view of the ledger: fed by one background thread, rebuilt at any time, never waited for.

One experiment per study. In it, per run of the study: a run "study run-1" that holds the study file and the figures, a
parent run per budget (with the budget's own figures), and a child run per trial. Runs are found by their tags
`convscale.ledger` and `convscale.key` before they are made, each run remembers in `convscale.seq` the last event that
reached it, and every metric point carries the ledger's time; so restarts, outages and repeated `sync`s add what is
missing and nothing else.

A trial that is suggested or waits to be taken up again is SCHEDULED, one that trains RUNNING, and then FINISHED,
KILLED (diverged) or FAILED. The experiment's own page, its description and its views, is `search.tracked_page`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search.feeder import Feeder
from search.ledger import Record
from search.tracked_runs import STUDY_KEY, TrackedRun, TrackedStudy, budget_key
from search.tracking_errors import is_outage, is_refusal
from search.tracking_server import RemoteRun, Server
from search.tracking_uri import TrackingError, check_uri, reason_of, shown, without_passwords

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file to keep with a budget's run, or with the study's (None)."""

    name: str
    content: bytes
    budget: str | None = None

    @classmethod
    def read(cls, path: str | Path, budget: str | None = None) -> Artifact:
        """The file as it is now. Raises OSError."""
        return cls(Path(path).name, Path(path).read_bytes(), budget)

    @property
    def key(self) -> str:
        return STUDY_KEY if self.budget is None else budget_key(self.budget)


@dataclass(slots=True)
class SyncReport:
    """What a delivery did: runs in all, runs made, runs updated, metric points sent, and what was refused and why."""

    runs: int = 0
    created: int = 0
    updated: int = 0
    points: int = 0
    refused: dict[str, str] = field(default_factory=dict)


class _Mirror:
    """Keeps a server equal to the ledger. `flush` is idempotent; after an exception it looks at the server anew."""

    def __init__(self, uri: str, artifact_root: str | None, study: str, run: str) -> None:
        self.tracked = TrackedStudy(study, run)
        self.report = SyncReport()
        self._place = (uri, artifact_root, study)
        self._server: Server | None = None
        self._remote: dict[str, RemoteRun] = {}
        self._artifacts: dict[tuple[str, str], bytes] = {}

    def take(self, items: Iterable[Record | Artifact]) -> None:
        for item in items:
            if isinstance(item, Artifact):
                self._artifacts[item.key, item.name] = item.content
                continue
            self.tracked.apply(item)
            if item.event == "study_opened":
                text = without_passwords(item["study_file"])  # which old ledgers have
                self._artifacts[STUDY_KEY, Path(item["study_path"]).name] = text.encode()

    def flush(self) -> None:
        """Bring every run up to date. Raises what MLflow raises when the server does not answer."""
        if not self.tracked.ledger:
            return
        self.report.runs = len(self.tracked.runs)
        refused_once: set[str] = set()
        while (key := self._flush_until_refused(refused_once)) is not None:
            refused_once.add(key)
            self._server = None

    def _flush_until_refused(self, refused_once: set[str]) -> str | None:
        """One pass. A run that is refused may have been deleted: its key is returned, for a second pass."""
        server = self._connected()
        server.lay_out(self.tracked.budgets)
        for key, run in self.tracked.runs.items():
            if key in self.report.refused:
                continue
            try:
                self._update(server, key, run)
            except Exception as error:
                if not is_refusal(error):
                    self._server = None
                    raise
                if key not in refused_once:
                    return key
                self.report.refused[key] = reason_of(error)
        self._put_artifacts(server)
        return None

    def _connected(self) -> Server:
        if self._server is None:
            self._remote = {}
            server = Server(*self._place, self.tracked.ledger)
            self._remote = server.runs()
            self._server = server
        return self._server

    def _update(self, server: Server, key: str, run: TrackedRun) -> None:
        remote = self._remote.get(key)
        if remote is None:
            parent = self._remote.get(run.parent) if run.parent else None
            remote, created = server.create(run, parent.run_id if parent else None)
            self._remote[key] = remote
            self.report.created += created
        if remote.seq < run.seq or (remote.status != run.status and remote.seq == run.seq):
            self.report.points += server.update(remote, run)
            self.report.updated += 1

    def _put_artifacts(self, server: Server) -> None:
        for (key, name), content in list(self._artifacts.items()):
            if (remote := self._remote.get(key)) is None:
                continue
            try:
                server.put_artifact(remote, name, content)
            except Exception as error:
                if not (is_refusal(error) or isinstance(error, ImportError)):
                    self._server = None
                    raise
                self.report.refused[f"the file {name}"] = reason_of(error)
            del self._artifacts[key, name]


class MlflowView:
    """MLflow's runs of a study, kept up with the ledger by a background thread. Feed it the ledger from its first
    record, always.

    An address that does not answer is said once through `say` (a line), tried again in the background, and then given
    everything in order; so it is with a mistake in the program, which is logged too. `say` is called from the thread.
    `artifact_root` is where the artefacts of an SQLite address go (None: mlartifacts beside it); a server knows its own
    place. With `hold`, nothing is done before `release`: MLflow's import takes seconds. Raises `TrackingError` at once
    for a malformed address.
    """

    def __init__(
        self,
        uri: str,
        *,
        artifact_root: str | None,
        study: str,
        run: str,
        say: Callable[[str], None],
        linger_s: float = 1.0,
        retry_s: tuple[float, float] = (1.0, 30.0),
        hold: bool = False,
    ) -> None:
        check_uri(uri)
        self._where, self._say = f"MLflow at {shown(uri)}", say
        self._mirror = _Mirror(uri, artifact_root, study, run)
        self._next_seq, self._refusals_said = 0, 0
        self._mistakes_said: set[type[Exception]] = set()
        self._feeder: Feeder[Record | Artifact] = Feeder(
            "mlflow",
            self._deliver,
            on_error=self._unreachable,
            on_recovered=self._recovered,
            linger_s=linger_s,
            retry_s=retry_s,
            hold=hold,
        )

    def release(self) -> None:
        """Let events go that were held from the start (`hold`); may be called again."""
        self._feeder.release()

    def feed(self, record: Record) -> None:
        """Queue one event; returns at once. One that was fed before is passed over; ValueError if one is left out."""
        if record.seq > self._next_seq:
            raise ValueError(
                f"event {record.seq} was fed after event {self._next_seq - 1}; feed the ledger from its first event"
            )
        if record.seq == self._next_seq:
            self._next_seq += 1
            self._feeder.put(record)

    def artifact(self, path: str | Path, budget: str | None = None) -> None:
        """Queue a file, as it is now, for the study's run, or for a budget's; returns at once. Raises OSError."""
        self._feeder.put(Artifact.read(path, budget))

    def close(self, timeout_s: float) -> int:
        """Deliver what waits, for `timeout_s` at most; returns what is still `pending`."""
        self._feeder.close(timeout_s)
        return self.pending

    @property
    def pending(self) -> int:
        """Events and files that are not delivered; `sync` catches up."""
        return self._feeder.pending + len(self._mirror.report.refused)

    def _deliver(self, items: Sequence[Record | Artifact]) -> None:
        try:
            self._mirror.take(items)
            self._mirror.flush()
        except Exception as error:
            if not is_outage(error):
                self._mistaken(error)
            raise
        for key, reason in list(self._mirror.report.refused.items())[self._refusals_said :]:
            self._refusals_said += 1
            self._say(f"{self._where} refused {key} ({reason}); the ledger has it, and the search goes on")

    def _unreachable(self, error: Exception) -> None:
        if is_outage(error):
            waits = "the search goes on, and MLflow gets it all when it answers"
            self._say(f"{self._where} cannot be reached ({reason_of(error)}); {waits}")

    def _mistaken(self, error: Exception) -> None:
        if type(error) not in self._mistakes_said:
            self._mistakes_said.add(type(error))
            log.exception("%s could not be fed", self._where)
            why = f"an error of convscale's own, {reason_of(error)}; see the log"
            self._say(f"{self._where} is not up to date ({why}); the ledger has everything, and the search goes on")

    def _recovered(self, count: int) -> None:
        self._say(f"{self._where} is up to date again; delivered {count:,} events that had waited")


def sync(
    records: Sequence[Record], uri: str, *, artifact_root: str | None, artifacts: Sequence[Artifact] = ()
) -> SyncReport:
    """Bring a server up to date from a ledger, in this thread; any number of times, without duplicates.

    Raises `TrackingError` if the address is malformed or does not answer, or if the ledger holds no study. Anything
    else that is raised is a mistake in the program.
    """
    check_uri(uri)
    if not records or records[0].event != "study_opened":
        raise TrackingError("the ledger holds no study yet; start the search first")
    mirror = _Mirror(uri, artifact_root, records[0]["study"], records[0]["run"])
    mirror.take([*records, *artifacts])
    try:
        mirror.flush()
    except Exception as error:
        if not is_outage(error):
            raise
        raise TrackingError(
            f"MLflow at {shown(uri)} cannot be reached ({reason_of(error)}); start it, or correct the address"
        ) from error
    return mirror.report
