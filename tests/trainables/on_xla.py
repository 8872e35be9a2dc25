"""The XLA runtime on virtual CPU devices; `test_xla_runtime` runs this in processes of their own.

A process has one set of XLA devices, chosen before anything else uses them: $CONVSCALE_XLA_DEVICES says how many.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from models.families import ModelSize, build_model
from models.forms import as_built, compact
from models.repeated import Repeated
from models.repeated import unrolled as one_by_one
from tests.trainables.runtime_conformance import DROPS, NO_DROPS, RuntimeConformance, losses_of
from tests.trainables.trials import Events, tiny_trial
from trainables.config import TrialRefused
from trainables.loop import TrialResult, train
from trainables.runtime import select_runtime
from trainables.runtime.scan import Scan
from trainables.runtime.torch import TorchRuntime
from trainables.runtime.xla import XlaRuntime

DEVICES = int(os.environ.get("CONVSCALE_XLA_DEVICES", "1"))


@pytest.fixture(scope="module")
def runtime() -> XlaRuntime:
    runtime = select_runtime("xla-cpu", cores=DEVICES)
    assert isinstance(runtime, XlaRuntime)
    return runtime


@dataclass(frozen=True)
class First:
    """The process's first trial.

    Attributes:
        result: its result.
        compile_s: seconds in which its programs were compiled.
        compilations: programs compiled until each of its steps, and in the end.
        aliased: buffers of its programs' arguments that outputs take the place of.
    """

    result: TrialResult
    compile_s: float
    compilations: list[int]
    aliased: int


@pytest.fixture(scope="module")
def first(runtime: XlaRuntime, tmp_path_factory: pytest.TempPathFactory) -> First:
    from torch_xla.debug import metrics

    def donated() -> int:
        data = metrics.metric_data("InputOutputAliasCount")
        return int(data[1]) if data else 0

    before, aliased, compilations = runtime.compile_s, donated(), []

    def should_stop() -> bool:
        compilations.append(runtime.compilations)
        return False

    config = tiny_trial(tmp_path_factory.mktemp("first"), **NO_DROPS)
    result = train(config, runtime, Events(), should_stop=should_stop)
    return First(result, runtime.compile_s - before, [*compilations, runtime.compilations], donated() - aliased)


def test_compiling_is_metered_apart(first: First) -> None:
    meter = first.result.meter
    assert meter["seconds_compilation"] == pytest.approx(first.compile_s, rel=1e-6)
    assert meter["seconds_compilation"] > meter["seconds_productive"] > 0


def test_a_trial_compiles_one_training_step_and_one_evaluation_step(first: First) -> None:
    """And what makes the buffers, before the first step."""
    until_steps, in_the_end = first.compilations[:7], first.compilations[-1]
    buffers = until_steps[0]
    assert until_steps == [buffers, *[buffers + 1] * 6]  # asked before steps 0 to 5, then once more for evaluation
    assert in_the_end == buffers + 2
    assert buffers == 1


def test_a_step_takes_no_second_copy_of_its_state(runtime: XlaRuntime, first: First) -> None:
    """Weights, momenta and averages are written over: their buffers are donated."""
    parameters = len(list(runtime.place(build_model(tiny_trial("").model)).parameters()))
    assert first.aliased == 3 * parameters


class TestXlaRuntime(RuntimeConformance):
    """On virtual devices."""


def test_its_devices_are_its_cores(runtime: XlaRuntime) -> None:
    assert runtime.devices == runtime.cores == DEVICES
    assert runtime.device.type == "xla"


def test_twenty_steps_have_the_losses_of_the_torch_runtime(runtime: XlaRuntime, tmp_path: Path) -> None:
    long: dict[str, Any] = {"steps": 20, "log_points": 20, "warmup_steps": 4, **NO_DROPS}
    on_torch, on_xla = Events(), Events()
    expected = train(tiny_trial(tmp_path / "torch", **long), TorchRuntime("cpu", cores=1), on_torch)
    result = train(tiny_trial(tmp_path / "xla", **long), runtime, on_xla)
    assert losses_of(on_xla) == pytest.approx(losses_of(on_torch), abs=5e-6)
    assert result.heldout_loss == pytest.approx(expected.heldout_loss, abs=5e-6)
    assert result.heldout_accuracy == expected.heldout_accuracy
    assert result.meter["images"] == expected.meter["images"]


def test_a_trial_goes_on_from_the_other_runtimes_checkpoint(runtime: XlaRuntime, tmp_path: Path) -> None:
    config = tiny_trial(tmp_path, **NO_DROPS)
    alone = train(tiny_trial(tmp_path / "alone", **NO_DROPS), runtime, Events())
    first = Events(stop_at=3)
    train(config, runtime, first, should_stop=first.should_stop)
    second = Events(stop_at=2)
    train(config, TorchRuntime("cpu", cores=1), second, should_stop=second.should_stop)
    result = train(config, runtime, Events())
    assert result.step == 6
    assert result.heldout_loss == pytest.approx(alone.heldout_loss, abs=1e-5)
    assert result.ema_heldout_loss == pytest.approx(alone.ema_heldout_loss, abs=1e-5)


def test_nothing_compiles_after_the_first_steps(runtime: XlaRuntime, first: First, tmp_path: Path) -> None:
    """Not for a learning rate that is 0, 1 or equal to another number of the program, nor for another trial."""
    compiled = runtime.compilations
    rates = {f"rate-{rate:g}": rate for rate in (0.0, 1.0, 1e-3, 0.9, 0.05, 2e-5, 0.2, 3.0)}
    for name, rate in rates.items():
        config = tiny_trial(tmp_path / name, optimiser__learning_rate=rate, warmup_steps=0, steps=2, **NO_DROPS)
        train(config, runtime, Events())
    # Other moments to fetch losses and to save at, and going on from a checkpoint.
    config = tiny_trial(tmp_path / "stopped", steps=9, log_points=4, checkpoint__every_steps=2, seed=8, **NO_DROPS)
    events = Events(stop_at=5)
    train(config, runtime, events, should_stop=events.should_stop)
    result = train(config, runtime, Events())
    assert result.step == 9
    assert runtime.compilations == compiled
    assert result.meter["seconds_compilation"] == 0


def test_parts_of_a_batch_are_two_programs_however_many_they_are(runtime: XlaRuntime, tmp_path: Path) -> None:
    before = runtime.compilations
    config = tiny_trial(tmp_path / "four", micro_batch_size=4, steps=2, **NO_DROPS)
    assert config.batch_size == 4 * 4
    train(config, runtime, Events())
    compiled = runtime.compilations - before
    assert compiled <= 4  # what makes the buffers; all parts but the last; the last, with the update; evaluation
    train(tiny_trial(tmp_path / "again", micro_batch_size=4, steps=3, seed=9, **NO_DROPS), runtime, Events())
    assert runtime.compilations == before + compiled


def test_a_program_that_is_replayed_sees_what_others_changed(runtime: XlaRuntime) -> None:
    """And writes over what it changes itself, only that, and draws other numbers each time."""
    read, written = (runtime.from_host({"": torch.full((4,), value)})[""] for value in (2.0, 1.0))
    same = written

    def add(x: torch.Tensor) -> torch.Tensor:
        written.add_(read * x)
        return torch.rand(4, device=runtime.device)

    step = runtime.compile(add, [read, written])
    runtime.seed(3)
    draws = [step(runtime.scalar(10.0))]
    compiled = runtime.compilations
    read.copy_(runtime.from_host({"": torch.full((4,), 3.0)})[""])
    runtime.synchronise()
    draws += [step(runtime.scalar(100.0)), step(runtime.scalar(0.0))]
    values = runtime.to_host({"read": read, "written": written, "first": draws[0], "second": draws[1]})
    assert values["read"].tolist() == [3.0] * 4
    assert values["written"].tolist() == [1.0 + 20.0 + 300.0] * 4
    assert same is written
    assert not torch.equal(values["first"], values["second"])
    runtime.seed(3)
    assert torch.equal(step(runtime.scalar(0.0)).cpu(), values["first"])
    assert runtime.compilations == compiled + 1  # the copy


def test_a_batch_is_split_over_the_devices(runtime: XlaRuntime) -> None:
    from torch_xla.distributed import spmd

    rows = 2 * DEVICES
    images = np.arange(rows * 12, dtype=np.uint8).reshape(rows, 2, 2, 3)
    placed = runtime.to_device({"image": images})["image"]
    assert placed.shape == images.shape  # the global batch
    if DEVICES > 1:
        shards = spmd.wrap_if_sharded(placed).local_shards
        parts = np.split(images, DEVICES)
        assert [shard.data.tolist() for shard in shards] == [part.tolist() for part in parts]


def test_activations_are_bfloat16_and_weights_and_losses_are_not(runtime: XlaRuntime) -> None:
    from trainables.step import as_input, training_loss

    model = runtime.place(build_model(ModelSize("F0", 8, 10, width=1 / 32, group_size=4, stem="small")))
    seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if name in ("stem.conv", "stages.0.0.conv1", "stages.2", "final_conv"):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output.dtype}))
    batch = runtime.to_device(
        {
            "image": np.zeros((DEVICES, 8, 8, 3), np.uint8),
            "label": np.zeros(DEVICES, np.int32),
            "weight": np.ones(DEVICES, np.float32),
        }
    )
    with runtime.autocast("bfloat16"):
        logits = model(as_input(batch["image"]))
    loss = training_loss(logits, batch, 0.1)
    loss.backward()
    assert set(seen.values()) == {torch.bfloat16}
    assert len(seen) == 4
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {loss.dtype}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("drop_path_rate", "fewest"), [(0.0, 2), (0.4, 8)])
def test_a_loop_gives_what_the_unrolled_blocks_give(runtime: XlaRuntime, drop_path_rate: float, fewest: int) -> None:
    """Outputs and gradients; with stochastic depth the draws are given. With 8 some stages have loops, as on a TPU."""
    torch.manual_seed(0)
    size = ModelSize("F1", 8, 10, width=1 / 32, group_size=4, stem="small")
    unrolled = compact(build_model(size, drop_path_rate=drop_path_rate), lambda: one_by_one, fewest=fewest)
    for name, parameter in unrolled.named_parameters():
        if "skipinit" in name:
            parameter.data.fill_(0.3)
    looped = compact(build_model(size, drop_path_rate=drop_path_rate), Scan, fewest=fewest)
    looped.load_state_dict(unrolled.state_dict())
    draws: dict[torch.Size, torch.Tensor] = {}
    for model in (unrolled, looped):
        for module in model.modules():
            if isinstance(module, DropPath):  # of the blocks that no loop applies
                module.drop_prob = 0.0
            if isinstance(module, Repeated):
                module.draw = lambda keep: draws.setdefault(keep.shape, torch.bernoulli(keep.cpu())).to(keep.device)
    x = torch.randn(2 * DEVICES, 3, 8, 8)
    expected = unrolled(x)
    expected.square().mean().backward()
    placed = looped.to(runtime.device)
    result = placed(x.to(runtime.device))
    result.square().mean().backward()
    runtime.synchronise()  # at once, else every value that is read were a program of its own
    torch.testing.assert_close(result.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-6)
    wanted = as_built(unrolled, {n: p.grad for n, p in unrolled.named_parameters() if p.grad is not None})
    got = as_built(placed, {n: p.grad.cpu() for n, p in placed.named_parameters() if p.grad is not None})
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=2e-3, atol=2e-5, msg=name)


def test_masks_follow_from_the_seed(runtime: XlaRuntime, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        runs[name] = Events()
        train(tiny_trial(tmp_path / name, seed=seed, log_points=6, **DROPS), runtime, runs[name])
    assert losses_of(runs["one"]) == losses_of(runs["same"]) != losses_of(runs["other"])


def test_a_batch_that_the_devices_cannot_share_is_refused(runtime: XlaRuntime, tmp_path: Path) -> None:
    if DEVICES == 1:
        pytest.skip("one device takes any batch")
    with pytest.raises(TrialRefused, match=f"batch_size 18 cannot be split over {DEVICES} devices: give a multiple"):
        train(tiny_trial(tmp_path, batch_size=18), runtime, Events())
    with pytest.raises(TrialRefused, match=f"micro_batch_size 6 cannot be split .* a multiple of {DEVICES}"):
        train(tiny_trial(tmp_path, micro_batch_size=6), runtime, Events())


def test_the_host_goes_on_while_the_devices_work(runtime: XlaRuntime) -> None:
    """So the next batch is fetched, and sent, during a step."""
    if DEVICES > 1:
        pytest.skip("on few cores the virtual devices take turns with the host")
    values = {"state": torch.ones(1024, 1024), "weight": torch.full((1024, 1024), 1 / 1024)}
    state, weight = runtime.from_host(values).values()

    def work() -> torch.Tensor:
        x = state
        for _ in range(40):
            x = x @ weight
        state.copy_(x)  # one call goes on from the other, as steps do
        return x.mean()

    launched = runtime.compile(work, [state])
    launched()
    runtime.synchronise()
    before = runtime._programs_begun()
    marks, means = [runtime.mark()], []
    for _ in range(3):
        means.append(launched())
        marks.append(runtime.mark())
        runtime.to_device({"image": np.zeros((DEVICES, 8, 8, 3), np.uint8)})
    assert runtime._count("ExecuteReplicatedTime") <= before  # 86 GFLOP each: none is done in that moment
    assert runtime.gather_sums(means).tolist() == pytest.approx([1.0] * 3)
    took = [runtime.elapsed_s(start, end) for start, end in itertools.pairwise(marks)]
    assert min(took) > 0.01
    before = runtime._programs_begun()
    for _ in range(11):
        launched()
    time.sleep(0.05)  # the count is a little late; a program takes much longer
    assert runtime._count("ExecuteReplicatedTime") >= before + 3  # it does not run ahead without bound


def test_want_of_memory_is_what_it_is_on_other_devices(runtime: XlaRuntime) -> None:
    outputs = runtime.compile(lambda: torch.rand(1 << 44, device=runtime.device))()
    with pytest.raises(torch.OutOfMemoryError, match="70368744177664 bytes"):
        runtime.gather_sums([outputs[0]])
    assert runtime.gather_sums([runtime.scalar(2.0)]).tolist() == [2.0]  # and it goes on


def test_want_of_memory_while_compiling_is_the_same(runtime: XlaRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU's compiler says so before anything runs, and torch_xla makes a ValueError of it."""

    def refuse(*_arguments: object) -> None:
        raise ValueError("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.1G of 15.2G.")

    weight = runtime.scalar(3.0)
    double = runtime.compile(lambda: weight.mul_(2.0) + 1, [weight])
    with monkeypatch.context() as patches:
        patches.setattr(runtime._library._XLAC, "_xla_warm_up_cache", refuse)
        with pytest.raises(torch.OutOfMemoryError, match=r"Used 17\.1G of 15\.2G"):
            double()
    assert runtime.gather_sums([weight]).tolist() == [3.0]  # as if it had not been

    def fail() -> torch.Tensor:
        weight.mul_(2.0)
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        runtime.compile(fail, [weight])()
    assert runtime.gather_sums([weight]).tolist() == [3.0]
    assert runtime.gather_sums([double(), double(), weight]).tolist() == [7.0, 13.0, 12.0]


def test_a_trial_in_bfloat16_learns_as_one_in_float32_does(runtime: XlaRuntime, tmp_path: Path) -> None:
    results = {}
    for precision in ("float32", "bfloat16"):
        config = tiny_trial(tmp_path / precision, precision=precision, **NO_DROPS)
        results[precision] = train(config, runtime, Events()).heldout_loss
    assert results["bfloat16"] == pytest.approx(results["float32"], abs=0.01)
    assert results["bfloat16"] != results["float32"]


def test_random_state_of_another_kind_of_device_is_not_taken(runtime: XlaRuntime) -> None:
    host = torch.get_rng_state()
    of_a_gpu = torch.cat((host, torch.zeros(16, dtype=torch.uint8)))
    assert not runtime.set_rng_state([of_a_gpu])
    assert not runtime.set_rng_state([host])
    assert not TorchRuntime("cpu", cores=1).set_rng_state(runtime.rng_state())
