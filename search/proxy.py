"""The Tune trainable: a proxy of a trial that is trained elsewhere. Its process imports nothing else of ours."""

from __future__ import annotations

from typing import Any

import ray
import ray.tune


def proxy(config: dict[str, Any]) -> None:
    """The Tune trainable: one trial, trained elsewhere."""
    broker = ray.get_actor(config["broker"], namespace=config["namespace"])
    trial = config["trial"]
    ray.get(broker.submit.remote(trial, config["config"], config["previous"], config["attempt"]))
    seen, ended = 0, False
    while not ended:
        events = ray.get(broker.pull.remote(trial, seen))
        seen += len(events)
        ended = events[-1]["event"] == "ended"
        ray.tune.report({"trial": trial, "events": events})
    ray.get(broker.forget.remote(trial))
