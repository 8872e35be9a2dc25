"""What a training step costs the host of XLA devices: replayed, against traced at every step as torch_xla does it.

Both give the device the same program of the same NFNet, in the form in which a TPU trains it. It is narrow, for a
host's work does not depend on the width; only the time until the device has been given the step is measured. The
device has finished the step before, and what a step replaced is dropped later (as the runtime does by itself), for the
CPU as a device waits for its work then. No TPU is needed.

    python -m benchmarks.host [--quick] [--report FILE]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from rich.table import Table
from torch import Tensor

from benchmarks.report import Report, arguments
from models.families import ModelSize, build_model
from trainables.config import LOOP_FROM, OptimiserConfig
from trainables.lockstep import HostBatch
from trainables.optimiser import Optimiser
from trainables.runtime.xla import XlaRuntime
from trainables.step import to_device, training_step

STEPS = 15


def seconds_of_the_host(variant: str, runtime: XlaRuntime) -> dict[str, float]:
    """The median time in which a step is given to the device, replayed and traced."""
    import torch_xla

    size = ModelSize(variant, 8, 10, width=1 / 32, group_size=4, stem="small")
    batch: HostBatch = {
        "image": np.zeros((8, 8, 8, 3), np.uint8),
        "label": np.zeros(8, np.int32),
        "weight": np.ones(8, np.float32),
    }
    runtime.seed(0)
    model = runtime.place(build_model(size, drop_rate=0.2, drop_path_rate=0.1)).train()
    optimiser = Optimiser(model, OptimiserConfig(learning_rate=0.1))
    runtime.synchronise()
    step = training_step(model, optimiser, None, 0.1, autocast=lambda: runtime.autocast("bfloat16"))
    state = [*optimiser.parameters, *optimiser.momenta]
    replayed = runtime.compile(step, state)

    def traced() -> None:
        step(to_device(batch, runtime), runtime.scalar(0.1))
        torch_xla.sync()

    return {
        "replayed": _median(lambda: replayed(to_device(batch, runtime), runtime.scalar(0.1)), state),
        "traced": _median(traced, state),
    }


def _median(give: Callable[[], object], state: list[Tensor]) -> float:
    from torch_xla.core.xla_model import wait_device_ops

    took = []
    for _ in range(STEPS + 2):
        replaced = [tensor.data for tensor in state]
        began = time.perf_counter()
        give()
        took.append(time.perf_counter() - began)
        wait_device_ops()
        del replaced
    return statistics.median(took[2:])  # the first are compiled


def main() -> None:
    """Measure each variant, and print a table."""
    asked = arguments(__doc__.splitlines()[0] if __doc__ else "").parse_args()
    os.environ.setdefault(  # a minute instead of ten; how fast the program runs is of no concern
        "XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
    )
    report = Report("What a training step costs the host of XLA devices")
    runtime = XlaRuntime("xla-cpu", cores=1, loop_from=LOOP_FROM)
    table = Table(title=f"Milliseconds of the host until the device has a step: medians of {STEPS}")
    for column in ("model", "convscale", "traced at every step", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for variant in ("F0",) if asked.quick else ("F0", "F1"):
        took = seconds_of_the_host(variant, runtime)
        ratio = took["traced"] / took["replayed"]
        table.add_row(variant, *(f"{took[way] * 1000:.3g}" for way in ("replayed", "traced")), f"{ratio:.0f}x")
    report.show(table)
    report.finish(asked.report)
    sys.stdout.flush()
    os._exit(0)  # torch_xla's threads outlive it otherwise


if __name__ == "__main__":
    main()
