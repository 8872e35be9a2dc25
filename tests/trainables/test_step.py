"""A step taken in parts is the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.families import ModelSize, build_model
from tests.trainables.trials import Events, tiny_trial
from trainables.config import OptimiserConfig
from trainables.loop import train
from trainables.optimiser import Optimiser
from trainables.runtime import select_runtime
from trainables.runtime.torch import TorchRuntime
from trainables.step import TrainingStep, in_parts


def losses_of(folder, **changes) -> list[float]:
    """The training losses of a tiny trial, one a step."""
    events = Events()
    config = tiny_trial(folder, log_points=6, model__drop_rate=0.0, model__drop_path_rate=0.0, **changes)
    train(config, select_runtime("cpu", cores=1), events)
    return [point[1] for event in events.named("progressed") for point in event["points"]]


@pytest.mark.parametrize("size", [8, 6, 1])  # 6: the last part is smaller
def test_losses_of_steps_in_parts_are_those_of_whole_steps(size, tmp_path):
    whole = losses_of(tmp_path / "whole")
    assert losses_of(tmp_path / "parts", micro_batch_size=size) == pytest.approx(whole, abs=1e-5)


def test_parts_cover_the_batch_in_order():
    batch = {"label": np.arange(7), "weight": np.ones(7)}
    parts = in_parts(batch, 3)
    assert [len(part["label"]) for part in parts] == [3, 3, 1]
    assert np.array_equal(np.concatenate([part["label"] for part in parts]), batch["label"])


@pytest.mark.parametrize(("size", "seen"), [(4, [4, 4, 2]), (10, [10]), (99, [10]), (None, [10])])
def test_the_model_never_sees_more_than_a_part(size, seen):
    model = build_model(ModelSize("F0", 8, classes=10, width=1 / 32, group_size=4, stem="small"))
    optimiser = Optimiser(model, OptimiserConfig(learning_rate=0.1))
    shapes: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: shapes.append(len(inputs[0])))
    batch = {
        "image": np.zeros((10, 8, 8, 3), np.uint8),
        "label": np.zeros(10, np.int32),
        "weight": np.ones(10, np.float32),
    }
    runtime = select_runtime("cpu", cores=1)
    step = TrainingStep(model, optimiser, None, 0.1, runtime, "float32", batch_size=10, micro_batch_size=size)
    step(batch, 0.1, 0.0)
    assert shapes == seen
    gradients = [p.grad for p in model.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)  # none is left for the next step


class OneProgramOfTwoWorkers(TorchRuntime):
    """A program that spans two workers, both of which bring the same examples."""

    def __init__(self) -> None:
        super().__init__("cpu", cores=1)
        self.workers.world, self.programs = 2, 1

    def to_device(self, batch):
        return super().to_device({name: np.concatenate([values, values]) for name, values in batch.items()})


def test_parts_of_a_program_that_spans_workers_weigh_what_they_should():
    """What counts is the share of the program's batch, which is that of all workers."""
    rng, gradients = np.random.default_rng(0), []
    batch = {
        "image": rng.integers(0, 255, (10, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 10, dtype=np.int32),
        "weight": np.ones(10, np.float32),
    }
    for micro in (None, 4):
        torch.manual_seed(0)
        model = build_model(ModelSize("F0", 8, classes=10, width=1 / 32, group_size=4, stem="small"))
        optimiser = Optimiser(model, OptimiserConfig(learning_rate=0.1, agc_clip=None))
        settings = {"batch_size": 20, "micro_batch_size": micro}
        step = TrainingStep(model, optimiser, None, 0.1, OneProgramOfTwoWorkers(), "float32", **settings)
        step(batch, 0.0, 0.0)
        gradients.append(torch.cat([momentum.flatten() for momentum in optimiser.momenta]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
