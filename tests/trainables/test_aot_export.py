"""The exported train step: it is the one that a trial runs, its parameters have their roles, and it takes no memory."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import pytest

from tests.trainables.trials import tiny_trial
from trainables.aot.export import export_step, images_per_step

ROOT: Final = Path(__file__).resolve().parents[2]

EXPORTS: Final = """
    import dataclasses, json, resource, sys
    from pathlib import Path

    from trainables.aot.export import export_step
    from trainables.config import TrialConfig

    folder = Path(sys.argv[1])
    for path in sorted(folder.glob("*.json")):
        config = TrialConfig.from_dict(json.loads(path.read_text()))
        exported = export_step(config, cores=8)
        out = folder / path.stem
        out.mkdir()
        exported.write(out)
        from torch_xla.core import xla_builder
        computation = xla_builder.computation_from_module_proto("step", exported.hlo)
        (out / "step.txt").write_text(xla_builder.get_computation_hlo(computation))
    (folder / "peak-bytes").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""
"""Exports every config of a folder."""

TRIAL: Final = """
    import json, os, sys
    from pathlib import Path

    os.environ["PJRT_DEVICE"] = "CPU"
    import torch
    import torch_xla
    import torch_xla.core.xla_model

    from models.families import build_model
    from trainables.config import TrialConfig
    from trainables.optimiser import Optimiser, WeightAverage
    from trainables.runtime.prepared import prepared
    from trainables.step import training_step

    config = TrialConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    device = torch_xla.device()
    model = prepared(
        build_model(config.model, drop_rate=config.model.drop_rate, drop_path_rate=config.model.drop_path_rate)
    ).to(device).train()
    optimiser = Optimiser(model, config.optimiser)
    average = WeightAverage(model, config.optimiser.ema_decay)
    side, size = config.model.image_size, config.batch_size
    batch = {
        "image": torch.zeros(size, side, side, 3, dtype=torch.uint8).to(device),
        "label": torch.zeros(size, dtype=torch.int32).to(device),
        "weight": torch.full((size,), 3.25).to(device),
    }
    rate, share = torch.tensor(0.125).to(device), torch.tensor(0.375).to(device)
    torch_xla.sync()
    torch_xla.core.xla_model.set_rng_state(5)
    step = training_step(model, optimiser, average, config.optimiser.label_smoothing,
                         autocast=lambda: torch.autocast("xla", dtype=torch.bfloat16))
    loss = step(batch, rate, share)
    outputs = [loss, *(p.data for p in optimiser.parameters), *optimiser.momenta,
               *(p.data for p in average.model.parameters())]
    Path(sys.argv[2]).write_text(torch_xla._XLAC._get_xla_tensors_hlo(outputs))
"""
"""The step of a trial on real tensors, as torch_xla would compile it."""


def _run(program: str, *arguments: str) -> None:
    """torch_xla's device is the process's, so each runs in one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def configs() -> dict[str, Any]:
    """A small trial with all that a step may have; the same with parts, and without an average; the largest variant."""
    small = tiny_trial("folder")
    optimiser = dataclasses.replace(small.optimiser, ema_decay=0.999)
    full = dataclasses.replace(small, optimiser=optimiser, precision="bfloat16")
    largest = dataclasses.replace(
        full.model, variant="F7+", width=1.0, group_size=128, stem="paper", image_size=224, classes=1000
    )
    return {
        "full": full,
        "other-rate": dataclasses.replace(full, optimiser=dataclasses.replace(optimiser, learning_rate=1.0), seed=7),
        "plain": dataclasses.replace(small, precision="bfloat16"),
        "in-parts": dataclasses.replace(full, micro_batch_size=8),
        "in-loops": dataclasses.replace(full, loop_from=2),
        "largest": dataclasses.replace(full, model=largest),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every config's export in a folder of its name."""
    folder = tmp_path_factory.mktemp("exported")
    for name, config in configs().items():
        (folder / f"{name}.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    _run(EXPORTS, str(folder))
    return folder


def facts(folder: Path, name: str) -> dict[str, Any]:
    """What was written beside a program."""
    values: dict[str, Any] = json.loads((folder / name / "step.json").read_text(encoding="utf-8"))
    return values


def entry(text: str) -> list[str]:
    """The lines of a program's entry."""
    return text[text.index("ENTRY ") :].splitlines()


def operations(text: str) -> collections.Counter[str]:
    """Every instruction of a program as its type and its opcode, however they are named and ordered."""
    return collections.Counter(re.findall(r"= ((?:\([^=]*?\)|\S+?) [\w-]+)\(", re.sub(r"\{[^{}]*\}", "", text)))


def test_every_parameter_has_its_role_and_its_shape(exported: Path) -> None:
    parameters = facts(exported, "full")["parameters"]
    lines = entry((exported / "full" / "step.txt").read_text(encoding="utf-8"))
    shapes = {}
    for line in lines:
        if found := re.search(r"= (\w+\[[\d,]*\])\S* parameter\((\d+)\)", line):
            shapes[int(found[2])] = found[1]
    assert sorted(shapes) == list(range(len(parameters)))
    model = configs()["full"].model
    batch = {each["name"]: shapes[i] for i, each in enumerate(parameters) if each["role"] == "batch"}
    side = model.image_size
    assert batch == {"image": f"u8[16,{side},{side},3]", "label": "s32[16]", "weight": "f32[16]"}
    values = {each["name"]: shapes[i] for i, each in enumerate(parameters) if each["role"] == "value" and each["name"]}
    assert {name: values[name] for name in ("learning rate", "share")} == {"learning rate": "f32[]", "share": "f32[]"}
    state = {each["name"]: shapes[i] for i, each in enumerate(parameters) if each["role"] == "state"}
    kinds = collections.Counter(name.split()[0] for name in state)
    assert kinds["weight"] == kinds["momentum"] == kinds["average"] > 10
    for name, shape in state.items():
        kind, _, parameter = name.partition(" ")
        assert shape == state[f"weight {parameter}"], kind


def test_every_state_is_replaced_by_an_output_of_its_shape(exported: Path) -> None:
    parameters = facts(exported, "full")["parameters"]
    text = (exported / "full" / "step.txt").read_text(encoding="utf-8")
    root = next(line for line in entry(text) if line.strip().startswith("ROOT"))
    outputs = re.findall(r"\w+\[[\d,]*\]", root.partition(" tuple(")[0])
    places = {
        int(i): shape for shape, i in re.findall(r"= (\w+\[[\d,]*\])\S* parameter\((\d+)\)", "\n".join(entry(text)))
    }
    state = {each["output"]: places[i] for i, each in enumerate(parameters) if each["role"] == "state"}
    assert sorted(state) == list(range(1, len(outputs)))
    assert outputs[0] == "f32[]"  # the loss
    assert all(outputs[output] == shape for output, shape in state.items())
    assert all(each["output"] is None for each in parameters if each["role"] != "state")


def test_without_an_average_there_is_none(exported: Path) -> None:
    parameters = facts(exported, "plain")["parameters"]
    assert not any(each["name"].startswith("average") for each in parameters)
    assert "share" not in {each["name"] for each in parameters}


def test_rate_and_seed_are_data_of_the_program(exported: Path) -> None:
    texts = [(exported / name / "step.txt").read_text(encoding="utf-8") for name in ("full", "other-rate")]
    assert operations(texts[0]) == operations(texts[1])
    constants = [sorted(re.findall(r"constant\(([^)]*)\)", text)) for text in texts]
    assert constants[0] == constants[1]


def test_a_batch_taken_in_parts_is_exported_as_one_part(exported: Path) -> None:
    whole, part = facts(exported, "full"), facts(exported, "in-parts")
    assert (whole["images"], whole["part_of_batch"]) == (16, False)
    assert (part["images"], part["part_of_batch"]) == (8, True)
    kinds = [[each["name"].split()[0] for each in facts["parameters"] if each["name"]] for facts in (whole, part)]
    weights = kinds[0].count("weight") - 1  # the batch has one more of that name
    assert kinds[1].count("gradient") == kinds[1].count("weight") - 1 == weights > 10
    assert "gradient" not in kinds[0]
    assert [each for each in part["parameters"] if each["name"] == "loss so far"]


def test_loops_begin_where_the_trial_says(exported: Path) -> None:
    texts = [(exported / name / "step.txt").read_text(encoding="utf-8") for name in ("full", "in-loops")]
    assert [len(re.findall(r"\bwhile\(", text)) for text in texts] == [0, 4]  # two stages, forward and backward


@pytest.mark.parametrize(
    ("micro", "cores", "images"), [(None, 8, 64), (16, 8, 16), (16, 16, 32), (16, 1, 16), (99, 8, 64)]
)
def test_a_part_is_what_all_hosts_hold_at_once(micro: int | None, cores: int, images: int) -> None:
    config = dataclasses.replace(tiny_trial("folder"), batch_size=64, micro_batch_size=micro)
    assert images_per_step(config, cores) == images


def test_the_largest_variant_is_exported_without_room_for_its_weights(exported: Path) -> None:
    state = facts(exported, "largest")["parameters"]
    assert sum(each["role"] == "state" for each in state) > 100
    text = "\n".join(entry((exported / "largest" / "step.txt").read_text(encoding="utf-8")))
    sizes = [found.split(",") for found in re.findall(r"= f32\[([\d,]+)\]\S* parameter", text)]
    weights = 4 * sum(_product(size) for size in sizes)
    assert weights > 9e9
    assert int((exported / "peak-bytes").read_text(encoding="utf-8")) < 3e9


def _product(sizes: list[str]) -> int:
    product = 1
    for size in sizes:
        product *= int(size)
    return product


@pytest.mark.slow
def test_it_is_the_step_that_a_trial_runs(exported: Path, tmp_path: Path) -> None:
    """The same operations on the same shapes as torch_xla traces from a trial's real tensors."""
    _run(TRIAL, str(exported / "full.json"), str(tmp_path / "trial.txt"))
    trial = operations((tmp_path / "trial.txt").read_text(encoding="utf-8"))
    export = operations((exported / "full" / "step.txt").read_text(encoding="utf-8"))
    assert sum(trial.values()) > 1000
    assert trial == export


def test_images_that_cannot_be_split_are_refused() -> None:
    config = dataclasses.replace(tiny_trial("folder"), batch_size=12)
    with pytest.raises(ValueError, match="12 images given; allowed: multiples of the 8 cores; use 16"):
        export_step(config, cores=8)
