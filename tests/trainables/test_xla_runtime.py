"""The XLA runtime on virtual CPU devices, in processes of its own (`on_xla` says why), and its program cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK_TO_COMPILE = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_everything_holds_on_virtual_devices(devices: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/trainables/on_xla.py"],
        cwd=ROOT,
        env=os.environ | {"CONVSCALE_XLA_DEVICES": str(devices), "XLA_FLAGS": QUICK_TO_COMPILE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


KEPT_PROGRAMS = """
import json, sys
from tests.trainables.runtime_conformance import NO_DROPS
from tests.trainables.trials import Events, tiny_trial
from trainables.loop import train
from trainables.runtime.xla import XlaRuntime
from trainables.worker_log import warnings_to

with warnings_to(sys.argv[2], "slice-0"):
    runtime = XlaRuntime("xla-cpu", cores=1, keep_programs=True)
    result = train(tiny_trial(sys.argv[1], **NO_DROPS), runtime, Events())
from torch_xla.debug import metrics
count = lambda name: metrics.counter_value(name) or 0
print(json.dumps({
    "at_hand": runtime._cache.loaded,
    "looked_up_in_vain": count("PersistentCacheMiss"),
    "found_and_not_loadable": count("PersistentCacheDeserializeFailure"),
    "compiled": runtime.compilations,
    "heldout_loss": result.heldout_loss,
}))
"""


@pytest.mark.slow
def test_a_second_process_asks_for_the_programs_that_the_first_one_kept(tmp_path: Path) -> None:
    """Each program's name is the same in both, so on a device that can load programs nothing is compiled again. XLA's
    CPU device cannot: it stands for entries that do not load, which cost a compilation and no more.
    """

    def trial(number: int) -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", KEPT_PROGRAMS, str(tmp_path / f"trial-{number}"), str(log)],
            cwd=ROOT,
            env=os.environ | {"CONVSCALE_PROGRAMS": str(tmp_path / "programs"), "XLA_FLAGS": QUICK_TO_COMPILE},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return answer

    log = tmp_path / "workers.log"
    first, second = trial(1), trial(2)
    assert first["at_hand"] == 0
    assert first["looked_up_in_vain"] == first["compiled"] == 3  # buffers, training step, evaluation step
    assert second["at_hand"] == first["compiled"]
    assert second["looked_up_in_vain"] == 0
    assert second["found_and_not_loadable"] == second["compiled"] == first["compiled"]
    assert second["heldout_loss"] == first["heldout_loss"]
    lines = log.read_text().splitlines()
    assert sum("program cache: miss, compiled in" in line for line in lines) == 2 * first["compiled"]
    assert sum(f"compiled programs at hand: {first['compiled']}, in" in line for line in lines) == 1
