"""The driver: Ray Tune runs the trials that the director suggests, on the slices that the fleet holds.

A Tune trial is a light proxy (a byte of memory, its process reused): it hands its trial to the broker, and passes
the trial's events on until the last one. Only the training loop itself ends a trial; Tune never stops one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.tune
from ray.tune.search import Searcher

from search.director import Director, Finished
from search.joining import NAMESPACE
from search.proxy import proxy
from search.slices import NODE_ID, Fleet


class DirectedSearch(Searcher):  # type: ignore[misc]
    """Tune's view of a `Director`: suggestions out, nothing in (events come through `DirectorFeed`)."""

    def __init__(self, director: Director, fleet: Fleet) -> None:
        super().__init__(metric="trial", mode="min")
        self.director, self.fleet = director, fleet

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.director.slices = self.fleet.capacity
        suggestion = self.director.suggest()
        if suggestion is None:
            return None
        if isinstance(suggestion, Finished):
            finished: str = Searcher.FINISHED
            return finished
        return {
            "trial": suggestion.trial,
            "config": suggestion.config,
            "previous": suggestion.previous,
            "attempt": suggestion.attempt,
            "broker": self.fleet.broker_name,
            "namespace": NAMESPACE,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its searcher to resume from; here only the ledger is resumed from

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is resumed from its ledger")


class DirectorFeed(ray.tune.Callback):  # type: ignore[misc]
    """Passes each Tune result's events to the director, before Tune asks for the next suggestion, and looks after the
    fleet. What goes wrong here ends the search in order; `run` raises it then, as it was.
    """

    def __init__(self, director: Director, fleet: Fleet) -> None:
        self.director, self.fleet = director, fleet
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._guard(lambda: self.director.take_events(result["trial"], result["events"]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._guard(self.fleet.check)

    def _guard(self, action: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except Exception as error:
            self.error = error
            self.director.interrupted = True
            raise


def run(director: Director, fleet: Fleet) -> None:
    """Run the search to its end, or until `director.interrupted`.

    Raises `FleetError` if the slices are lost for good, `LedgerError` if the ledger cannot be written, and what Tune
    raises if its proxies fail.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(fleet.plan.slices)  # else proxies would start one after another
    feed = DirectorFeed(director, fleet)
    try:
        ray.tune.Tuner(
            # a byte of memory instead of a share of a CPU: where the slices hold all CPUs, proxies still fit
            ray.tune.with_resources(
                proxy, ray.tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[{NODE_ID: fleet.node_id}])
            ),
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,
                max_concurrent_trials=None,
                reuse_actors=True,
                search_alg=DirectedSearch(director, fleet),
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=str(fleet.scratch),
                verbose=0,
                callbacks=[feed],
                failure_config=ray.tune.FailureConfig(max_failures=-1),
            ),
        ).fit()
    finally:
        if feed.error is not None:
            raise feed.error  # Tune tells only its text


class Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal, from the start of a command to its end; a signal that was to be ignored
    when the command started, as `nohup` has it, stays so.

    Before `search_of` and after its end one ends the command at once. Within it the first ends the search in order:
    running trials keep a checkpoint. The second ends it at once.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.getsignal(number) for number in self._numbers}
        self.take_over()
        return self

    def take_over(self) -> None:
        """Handle the signals from here on; to be called again once Ray is up, for it sets handlers of its own."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if before == signal.SIG_IGN else self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.count += 1
        if self._stop is None or self.count > 1:
            raise KeyboardInterrupt
        # nothing else here: the signal may have come in the middle of a print, or of a lock
        threading.Thread(target=self._stop, name="stop", daemon=True).start()

    @contextmanager
    def search_of(self, director: Director, fleet: Fleet, say: Callable[[str], None]) -> Iterator[None]:
        """Within it an interrupt stops the director's search."""

        def stop() -> None:
            director.interrupted = True
            try:
                ray.get(fleet.broker.stop_all.remote())
            except ray.exceptions.RayError:  # it is ending already
                return
            say("ending: running trials keep a checkpoint first (press Ctrl-C again to end at once)")

        self._stop = stop
        try:
            yield
        finally:
            self._stop = None
