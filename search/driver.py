"""The driver: Ray Tune runs the trials that the director suggests, on the slices that the fleet holds.

A Tune trial is a light proxy (a hundredth of a CPU, its process reused): it hands its trial to the broker, and passes
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
from search.proxy import proxy
from search.slices import NAMESPACE, Fleet


class DirectedSearch(Searcher):  # type: ignore[misc]
    """Tune's view of a `Director`: suggestions out, nothing in (events come through `DirectorFeed`)."""

    def __init__(self, director: Director, fleet: Fleet) -> None:
        super().__init__(metric="trial", mode="min")
        self.director, self.fleet = director, fleet

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.fleet.check()  # Tune asks all the time, so a fleet that is lost ends the search here
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
    """Passes each Tune result's events to the director, before Tune asks for the next suggestion."""

    def __init__(self, director: Director) -> None:
        self.director = director

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.director.take_events(result["trial"], result["events"])


def run(director: Director, fleet: Fleet) -> None:
    """Run the search to its end, or until `director.interrupted`. Raises what Tune raises if the proxies themselves
    fail.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(fleet.plan.slices)  # else proxies would start one after another
    ray.tune.Tuner(
        ray.tune.with_resources(proxy, {"CPU": 0.01}),
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
            callbacks=[DirectorFeed(director)],
            failure_config=ray.tune.FailureConfig(max_failures=-1),
        ),
    ).fit()


@contextmanager
def interruptible(director: Director, fleet: Fleet, say: Callable[[str], None]) -> Iterator[None]:
    """Within it, the first Ctrl-C (or SIGTERM) ends the search in order: running trials keep a checkpoint. A second
    one ends it at once.
    """

    def stop() -> None:
        ray.get(fleet.broker.stop_all.remote())

    def handle(number: int, frame: Any) -> None:
        if director.interrupted:
            raise KeyboardInterrupt
        director.interrupted = True
        say("ending: running trials keep a checkpoint first (press Ctrl-C again to end at once)")
        threading.Thread(target=stop, name="stop-all", daemon=True).start()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
