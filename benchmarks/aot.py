"""The train step on TPU v4 by its own compiler, before and after tuning; and how compile time grows with depth.

    .venv/bin/python -m benchmarks.aot [--quick] [--only CASE ...]

No TPU takes part: every figure is the compiler's, of a program that it compiled for real. The peer of every ratio is
the same trial's step without what this project does to the program: the model as timm builds it (every block on its
own, kernels of four axes, GELU by erf), through the same optimiser and the same compiler in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rich import box
from rich.table import Table
from torch import nn

from benchmarks.report import Report, arguments
from clusters.tpu import CLOCK_HZ, HBM_BYTES, HBM_BYTES_PER_S
from search.aot import compiler_environment
from trainables.aot.export import ExportedStep, export_step
from trainables.aot.hlo import Program as Hlo
from trainables.aot.profile import profile, sums, with_loops
from trainables.aot.tpu_compiler import ENVIRONMENT, PROGRAM_FILE, TEXT_FILE
from trainables.config import CheckpointConfig, DataConfig, ModelConfig, OptimiserConfig, TrialConfig

ROOT: Final = Path(__file__).resolve().parent.parent
TOPOLOGY: Final = "v4:2x2x1"


def as_timm_builds_it(model: nn.Module) -> nn.Module:
    """The model as it was built, with timm's exact GELU."""
    from timm.layers import get_act_fn
    from timm.models.nfnet import GammaAct

    for module in model.modules():
        if isinstance(module, GammaAct):
            module.act_fn = get_act_fn("gelu")
    return model


def as_it_is_trained(model: nn.Module) -> nn.Module:
    """What the XLA runtime trains on a TPU."""
    from trainables.runtime.prepared import prepared

    return prepared(model)


def in_loops(model: nn.Module) -> nn.Module:
    """The same with loops from eight blocks on."""
    from trainables.runtime.prepared import prepared

    return prepared(model, loop_from=8)


FORMS: Final[Mapping[str, Callable[[nn.Module], nn.Module]]] = MappingProxyType(
    {"timm's": as_timm_builds_it, "ours": as_it_is_trained, "in loops": in_loops}
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model in bfloat16, a batch per core, so many cores; and the forms it is compared in, the peer first."""

    variant: str
    image_size: int
    width: float
    images_per_core: int
    cores: int
    forms: tuple[str, ...]

    def __str__(self) -> str:
        width = "" if self.width == 1 else f" of 1/{round(1 / self.width)} width"
        cores = "one core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.variant}{width}, {self.image_size} px, {self.images_per_core} images a core, {cores}"

    def config(self) -> TrialConfig:
        """A trial of it."""
        size = ModelConfig(
            self.variant, self.image_size, classes=1000, width=self.width, group_size=round(128 * self.width)
        )
        return TrialConfig(
            trial_id="aot",
            model=size,
            data=DataConfig(source="folder", image_size=self.image_size),
            optimiser=OptimiserConfig(learning_rate=0.1),
            checkpoint=CheckpointConfig(folder=""),
            batch_size=self.images_per_core * self.cores,
            steps=1,
            warmup_steps=0,
            seed=0,
            precision="bfloat16",
        )


CASES: Final[Mapping[str, Case]] = MappingProxyType(
    {
        "f0": Case("F0", 224, 1.0, 64, 1, ("timm's", "ours")),
        "f0-slice": Case("F0", 224, 1.0, 64, 8, ("timm's", "ours")),
        "f3": Case("F3", 224, 1 / 4, 64, 1, ("timm's", "ours", "in loops")),
        "f3-full": Case("F3", 224, 1.0, 16, 1, ("ours", "in loops")),
        "depth-f1": Case("F1", 64, 1 / 16, 8, 1, ("timm's", "ours", "in loops")),
        "depth-f3": Case("F3", 64, 1 / 16, 8, 1, ("timm's", "ours", "in loops")),
        "depth-f3-slice": Case("F3", 64, 1 / 16, 8, 8, ("ours", "in loops")),
    }
)
QUICK: Final = ("depth-f1", "depth-f3")
HEADINGS: Final = (
    "compile s",
    "program MB",
    "HBM GiB",
    "MB/image",
    "MB moved",
    "MB accessed",
    "ms/step",
    "images/s",
)
LEGEND: Final = (
    "HBM: held by one core, and that by image. Moved: to and from HBM, by image. Accessed: XLA's count, which has the "
    "traffic of on-chip memory in it, by image. Time: the compiler's cycles, or the bandwidth, if that is longer. In "
    "brackets: over the first row."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the compiler said of one program, for one core and one step.

    `program_bytes`: of the program it was given; `held_bytes`: of HBM in use; `hbm_bytes`: moved to and from HBM;
    `accessed_bytes`: XLA's count, in any memory; `seconds`: by the compiler's cycles, or by bandwidth if longer.
    """

    compile_s: float
    program_bytes: int
    images: int
    held_bytes: int
    hbm_bytes: int
    accessed_bytes: float
    seconds: float


def ask(case: Case, form: str, compiler: Path) -> Answer:
    """Export and compile the step of one case in one form. Raises `RuntimeError` with what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(case.config().to_dict()), encoding="utf-8")
        export = [sys.executable, "-m", "benchmarks.aot", "--export", name, "--form", form, "--cores", str(case.cores)]
        _run(export, {"PYTHONPATH": str(ROOT)})
        script = str(ROOT / "trainables" / "aot" / "tpu_compiler.py")
        command = [str(compiler / "bin" / "python"), script, name]
        _run([*command, "--topology", TOPOLOGY, "--cores", str(case.cores)], ENVIRONMENT)
        answer: dict[str, Any] = json.loads((folder / PROGRAM_FILE).read_text(encoding="utf-8"))
        if answer["error"]:
            raise RuntimeError(f"{case}, {form}: {answer['error']}")
        hlo = Hlo.parse((folder / TEXT_FILE).read_text(encoding="utf-8"))
        counted = sums(profile(hlo))
        accessed = with_loops(hlo, {name: costs["bytes_accessed"] for name, costs in answer["costs"].items()})
        return Answer(
            compile_s=answer["compile_s"],
            program_bytes=len(ExportedStep.read(folder).hlo),
            images=case.images_per_core,
            held_bytes=answer["memory"]["total"],
            hbm_bytes=counted.hbm_bytes,
            accessed_bytes=accessed,
            seconds=max(counted.cycles / CLOCK_HZ, counted.hbm_bytes / HBM_BYTES_PER_S),
        )


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])} failed:\n{done.stderr[-4000:]}")


def table_of(case: Case, answers: Mapping[str, Answer]) -> Table:
    """One case's forms, each beside its ratio to the first."""
    table = Table(title=str(case), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("form", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    first = next(iter(answers.values()))
    for form, own in answers.items():
        cells = [
            (own.compile_s, first.compile_s, ".0f"),
            (own.program_bytes / 1e6, first.program_bytes / 1e6, ".2f"),
            (own.held_bytes / 2**30, first.held_bytes / 2**30, ".2f"),
            (own.held_bytes / own.images / 1e6, first.held_bytes / first.images / 1e6, ".1f"),
            (own.hbm_bytes / own.images / 1e6, first.hbm_bytes / first.images / 1e6, ".0f"),
            (own.accessed_bytes / own.images / 1e6, first.accessed_bytes / first.images / 1e6, ".0f"),
            (own.seconds * 1e3, first.seconds * 1e3, ".1f"),
            (own.images / own.seconds, first.images / first.seconds, ".0f"),
        ]
        shown = [f"{value:{spec}}" + ("" if own is first else f" ({value / peer:.2f}x)") for value, peer, spec in cells]
        table.add_row(form, *shown)
    return table


def main() -> None:
    """Compile what was asked for, one program after the other, and print a table for each case."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), help="these cases only; default: all")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=tuple(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.export:  # a process of its own, since torch_xla's device is the process's
        config = TrialConfig.from_dict(json.loads((asked.export / "config.json").read_text(encoding="utf-8")))
        export_step(config, cores=asked.cores, prepare=FORMS[asked.form]).write(asked.export)
        return
    report = Report("The train step on TPU v4, by its own compiler")
    compiler = compiler_environment(report.say)
    answers: dict[str, dict[str, Answer]] = {}
    for name in asked.only or (QUICK if asked.quick else CASES):
        case, began = CASES[name], time.monotonic()
        answers[name] = {form: ask(case, form, compiler) for form in case.forms}
        report.show(table_of(case, answers[name]))
        report.say(f"(compiled and read in {time.monotonic() - began:.0f} s)\n")
    if "depth-f1" in answers and "depth-f3" in answers:
        for form in CASES["depth-f1"].forms:
            one, three = answers["depth-f1"][form], answers["depth-f3"][form]
            report.say(
                f"F3 over F1, {form}: compile time {three.compile_s / one.compile_s:.2f}x, "
                f"program {three.program_bytes / one.program_bytes:.2f}x"
            )
    report.say(LEGEND)
    report.say(
        f"Every figure but compile time and size is the compiler's estimate for one core ({HBM_BYTES / 2**30:.0f} GiB "
        "of HBM) and one step; sums over cores cost it nothing. Nothing was measured on a TPU."
    )
    report.finish(asked.report)


if __name__ == "__main__":
    main()
