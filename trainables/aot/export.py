"""The train step of a trial as a program for XLA, exported without weights, data or memory for either.

    python -m trainables.aot.export CONFIG.json FOLDER --cores 8

The step is traced by torch_xla on placeholders: tensors of a shape and a type, and nothing behind them. So the largest
variant is exported on a laptop. What the trial gives the program at run time becomes its parameters: weights, momenta
and averages (state, which the step replaces), the batch, the learning rate. Numbers of torch_xla's own making are
parameters, too, as they are in a trial.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from clusters.tpu import CORES_PER_HOST
from trainables.config import TrialConfig

if TYPE_CHECKING:
    from torch import nn

HLO_FILE: Final = "step.hlo"
ROLES_FILE: Final = "step.json"

Role = Literal["batch", "state", "value"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an exported program.

    Attributes:
        role: "batch" is split over the cores along its first axis; "state" and "value" every core has whole.
        name: what it is, such as "image" or "weight stem.conv1.weight"; empty for torch_xla's own.
        output: of state, which output of the program replaces it, so that its memory can be used again.
    """

    role: Role
    name: str = ""
    output: int | None = None


@dataclass(frozen=True, slots=True)
class ExportedStep:
    """A train step as a program.

    Attributes:
        hlo: the program, XLA's serialised HloModuleProto.
        parameters: what its parameters are, in their order.
        images: how many images a step of it takes, over all cores.
        part_of_batch: whether those are only a part of the batch, because the trial takes a batch in parts.
        trace_s: seconds that tracing took.
        versions: the libraries that made it.
    """

    hlo: bytes
    parameters: tuple[Parameter, ...]
    images: int
    part_of_batch: bool
    trace_s: float
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the program, and beside it the rest as JSON."""
        facts = {key: value for key, value in dataclasses.asdict(self).items() if key != "hlo"}
        (folder / HLO_FILE).write_bytes(self.hlo)
        (folder / ROLES_FILE).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ExportedStep:
        """The inverse of `write`."""
        facts = json.loads((folder / ROLES_FILE).read_text(encoding="utf-8"))
        facts["parameters"] = tuple(Parameter(**each) for each in facts["parameters"])
        return cls(hlo=(folder / HLO_FILE).read_bytes(), **facts)


def images_per_step(config: TrialConfig, cores: int) -> int:
    """Images of one program: the whole batch, or what all hosts together pass through the model at once.

    A trial on TPUs has one worker for each host, and `micro_batch_size` is a worker's.
    """
    if config.micro_batch_size is None:
        return config.batch_size
    return min(config.batch_size, config.micro_batch_size * max(1, cores // CORES_PER_HOST))


def export_step(
    config: TrialConfig, *, cores: int, prepare: Callable[[nn.Module], nn.Module] | None = None
) -> ExportedStep:
    """The train step of `config` over its global batch, to be split over `cores`.

    `prepare` makes of the model what is trained; None: what a trial on a TPU does (`trainables.runtime.prepared`).

    Where `config.micro_batch_size` makes a trial take its batch in parts, the program is that of the last part, with
    the update of the weights: `part_of_batch` says so. It needs a process of its own, because torch_xla's device is the
    process's.

    Raises:
        ValueError: a model that cannot be built, or images that cannot be split evenly over the cores.
    """
    images = images_per_step(config, cores)
    if images % cores:
        raise ValueError(
            f"{images} images given; allowed: multiples of the {cores} cores; use {-(-images // cores) * cores}"
        )
    os.environ["PJRT_DEVICE"] = "CPU"
    import torch
    import torch_xla
    from torch import Tensor
    from torch_xla.core import xla_model
    from torch_xla.core.xla_builder import create_placeholder_tensor

    from models.families import build_model
    from trainables.optimiser import Optimiser, WeightAverage
    from trainables.runtime.prepared import prepared
    from trainables.step import training_step, training_step_in_parts

    compiler: Any = torch_xla._XLAC

    # ---- The trial's model, optimiser and average, as placeholders
    model = build_model(
        config.model, drop_rate=config.model.drop_rate, drop_path_rate=config.model.drop_path_rate, device="meta"
    )
    model = prepare(model) if prepare is not None else prepared(model, loop_from=config.loop_from)
    model = model.to_empty(device=torch_xla.device()).train()
    optimiser = Optimiser(model, config.optimiser)
    decay = config.optimiser.ema_decay
    average = WeightAverage(model, decay) if decay is not None else None
    named = [(f"weight {name}", p) for name, p in zip(optimiser.names, optimiser.parameters, strict=True)]
    named += [(f"momentum {name}", m) for name, m in zip(optimiser.names, optimiser.momenta, strict=True)]
    if average is not None:
        named += [(f"average {name}", p) for name, p in average.model.named_parameters()]
    in_parts = images < config.batch_size
    if in_parts:
        named += [(f"gradient {name}", g) for name, g in zip(optimiser.names, optimiser.keep_gradients(), strict=True)]
    for _, tensor in named:
        tensor.data = create_placeholder_tensor(tensor.shape, tensor.dtype)
    constants = [*model.named_buffers(), *(average.model.named_buffers() if average is not None else ())]
    for _, tensor in constants:
        tensor.data = create_placeholder_tensor(tensor.shape, tensor.dtype)

    # ---- What a step is given
    side = config.model.image_size
    batch: dict[str, Tensor] = {
        "image": create_placeholder_tensor((images, side, side, 3), torch.uint8),
        "label": create_placeholder_tensor((images,), torch.int32),
        "weight": create_placeholder_tensor((images,), torch.float32),
    }
    so_far, rate, share = (create_placeholder_tensor((), torch.float32) for _ in range(3))
    roles = {compiler._xla_get_tensor_id(tensor): Parameter("batch", name) for name, tensor in batch.items()}
    for place, (name, tensor) in enumerate(named, start=1):  # output 0 is the loss
        roles[compiler._xla_get_tensor_id(tensor)] = Parameter("state", name, place)
    for name, tensor in (("loss so far", so_far), ("learning rate", rate), ("share", share), *constants):
        roles[compiler._xla_get_tensor_id(tensor)] = Parameter("value", name)

    # ---- The step itself
    def autocast() -> torch.autocast:
        return torch.autocast("xla", dtype=torch.bfloat16, enabled=config.precision == "bfloat16")

    moving = (model, optimiser, average, config.optimiser.label_smoothing)
    if in_parts:
        _, step = training_step_in_parts(*moving, config.batch_size, autocast=autocast)
    else:
        step = training_step(*moving, autocast=autocast)
    began = time.monotonic()
    xla_model.set_rng_state(config.seed)  # as the runtime does before each step: the seed of its masks is data
    given: list[Tensor] = [so_far] if in_parts else []
    given += [rate, share] if average is not None else [rate]
    loss = step(batch, *given)
    outputs = [loss, *(tensor.data for _, tensor in named)]
    # A tensor that the step replaced no longer knows its parameter, so the data are asked for by their own ids.
    ids, data = compiler._get_tensors_xla_device_data_node(outputs)
    context = compiler.lowering.LoweringContext("TrainStep")
    context.build(outputs)
    places = {context.tensor_parameter_id(tensor): roles.get(number) for number, tensor in zip(ids, data, strict=True)}
    assert sorted(places) == list(range(len(places))), "a parameter of the program is not known"
    return ExportedStep(
        hlo=context.hlo(),
        parameters=tuple(places[place] or Parameter("value") for place in range(len(places))),
        images=images,
        part_of_batch=in_parts,
        trace_s=time.monotonic() - began,
        versions={name: metadata.version(name) for name in ("torch", "torch_xla")},
    )


def main() -> None:
    """Export the step of a trial's config to a folder."""
    parser = argparse.ArgumentParser(description="Export the train step of a trial.")
    parser.add_argument("config", type=Path, help="a TrialConfig as JSON")
    parser.add_argument("folder", type=Path, help="where the program goes")
    parser.add_argument("--cores", type=int, required=True, help="over how many cores the batch is to be split")
    arguments = parser.parse_args()
    config = TrialConfig.from_dict(json.loads(arguments.config.read_text(encoding="utf-8")))
    export_step(config, cores=arguments.cores).write(arguments.folder)


if __name__ == "__main__":
    main()
