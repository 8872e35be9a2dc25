"""A real search in a fresh process, with the moments of its start written down: the child of `benchmarks.overhead`.

    python -m benchmarks.timed_search STUDY MOMENTS.json

It runs what `convscale search STUDY --fresh` runs. The one thing added is a fleet that notes when it was entered,
when its slices were asked for, and when each slice's worker said that it was ready.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

BEGAN = time.time()


def main() -> None:
    study, target = Path(sys.argv[1]), Path(sys.argv[2])
    moments: dict[str, Any] = {"began": BEGAN, "slices": {}}

    from rich.console import Console

    from search import session
    from search.ray_settings import prepare_environment

    moments["own_imports"] = time.time()
    prepare_environment(own_cluster=True)
    import psutil  # type: ignore[import-untyped]
    import ray

    from search import slices

    moments["ray_imports"] = time.time()

    class WatchedFleet(slices.Fleet):
        def __enter__(self) -> slices.Fleet:
            moments["entering"] = time.time()
            fleet = super().__enter__()
            moments["entered"] = time.time()
            return fleet

        def lease(self) -> None:
            moments["leased"] = time.time()
            super().lease()
            threading.Thread(target=self._watch, daemon=True).start()

        def close(self) -> None:
            moments.setdefault("closing", time.time())
            super().close()
            moments.setdefault("closed", time.time())

        def _watch(self) -> None:
            while len(moments["slices"]) < self.plan.slices:
                for name, ranks in ray.get(self.broker.status.remote())["ready"].items():
                    facts = ranks.get(0, ranks)  # by rank, or those of rank 0 alone
                    if "pid" not in facts:
                        continue
                    process = psutil.Process(facts["pid"]).create_time()
                    known = {"ready": time.time(), "process": process, "import_s": facts["import_s"]}
                    moments["slices"].setdefault(name, known)
                time.sleep(0.1)

    slices.Fleet = WatchedFleet  # type: ignore[misc]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        status = session.search(study, fresh=True, address=None, console=Console(file=nowhere))
    moments["ended"] = time.time()
    target.write_text(json.dumps(moments))
    gc.freeze()  # as the command does
    sys.exit(status)


if __name__ == "__main__":
    main()
