"""What every runtime promises; a test module inherits it and gives the runtime."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainables.trials import Events, tiny_trial
from trainables.checkpoint import Checkpoints
from trainables.loop import train
from trainables.runtime import Runtime

# Two kinds of trial for all tests, for a runtime may take long to compile another.
DROPS = {"optimiser__ema_decay": 0.9}
NO_DROPS = {"optimiser__ema_decay": 0.9, "model__drop_rate": 0.0, "model__drop_path_rate": 0.0}


def losses_of(events: Events) -> list[float]:
    """The training losses of the log points."""
    return [point[1] for event in events.named("progressed") for point in event["points"]]


class RuntimeConformance:
    """Tests of `trainables.runtime.Runtime`; `runtime` is a fixture of whoever inherits them."""

    def test_it_is_alone(self, runtime: Runtime) -> None:
        assert (runtime.workers.rank, runtime.workers.world, runtime.programs) == (0, 1, 1)
        assert runtime.cores >= runtime.devices >= 1
        assert runtime.device_name
        assert runtime.peak_flops_per_s("float32") is None

    def test_bfloat16_is_what_the_model_computes_in(self, runtime: Runtime) -> None:
        layer, x = torch.nn.Linear(2, 2).to(runtime.device), torch.ones(1, 2).to(runtime.device)
        with runtime.autocast("bfloat16"):
            assert layer(x).dtype == torch.bfloat16
        with runtime.autocast("float32"):
            assert layer(x).dtype == torch.float32
        assert layer.weight.dtype == torch.float32

    def test_the_seed_alone_decides_what_is_drawn(self, runtime: Runtime) -> None:
        runtime.seed(5)
        first = torch.rand(3)
        torch.rand(100)
        runtime.seed(5)
        assert torch.equal(torch.rand(3), first)
        runtime.fork_rng(5)
        assert not torch.equal(torch.rand(3), first)

    def test_random_state_comes_back(self, runtime: Runtime) -> None:
        draw = runtime.compile(lambda: torch.rand(4, device=runtime.device))
        runtime.seed(1)
        states = runtime.rng_state()
        on_host, on_device = torch.rand(4), draw().cpu()
        assert runtime.set_rng_state(states)
        assert torch.equal(torch.rand(4), on_host)
        assert torch.equal(draw().cpu(), on_device)
        assert not torch.equal(draw().cpu(), on_device)
        assert not runtime.set_rng_state([*states, *states])  # of two workers

    def test_batches_keep_their_types(self, runtime: Runtime) -> None:
        rows = 2 * runtime.devices
        images = np.arange(rows * 4 * 4 * 3, dtype=np.uint8).reshape(rows, 4, 4, 3)
        placed = runtime.to_device({"image": images, "label": np.ones(rows, np.int32)})
        assert placed["image"].dtype == torch.uint8
        assert placed["label"].dtype == torch.int32
        assert np.array_equal(placed["image"].cpu().numpy(), images)

    def test_outputs_come_as_float64_in_order(self, runtime: Runtime) -> None:
        outputs = [runtime.scalar(value) for value in (1.0, 0.0, 0.25)]
        sums = runtime.gather_sums(outputs)
        assert sums.dtype == torch.float64
        assert sums.tolist() == [1.0, 0.0, 0.25]

    def test_marks_are_in_order(self, runtime: Runtime) -> None:
        first = runtime.mark()
        runtime.compile(lambda: torch.rand(4, device=runtime.device))()
        second = runtime.mark()
        runtime.synchronise()
        time.sleep(0.01)
        third = runtime.mark()
        if first is None:
            assert (second, third) == (None, None)
        else:
            assert runtime.elapsed_s(first, second) >= 0
            assert runtime.elapsed_s(second, third) >= 0.005

    def test_a_trial_that_was_stopped_goes_on_to_the_same_end(self, runtime: Runtime, tmp_path: Path) -> None:
        undisturbed = Events()
        whole = train(tiny_trial(tmp_path / "whole", log_points=6, **DROPS), runtime, undisturbed)
        config = tiny_trial(tmp_path / "stopped", log_points=6, **DROPS)
        events = Events(stop_at=3)
        assert train(config, runtime, events, should_stop=events.should_stop).step == 3
        again = Events()
        result = train(config, runtime, again)
        assert losses_of(undisturbed)[3:] == pytest.approx(losses_of(again), abs=1e-6)  # also the masks were the same
        assert result.heldout_loss == pytest.approx(whole.heldout_loss, abs=1e-6)
        assert result.ema_heldout_loss == pytest.approx(whole.ema_heldout_loss, abs=1e-6)

    def test_parts_of_a_batch_give_its_gradient(self, runtime: Runtime, tmp_path: Path) -> None:
        whole = train(tiny_trial(tmp_path / "whole", **NO_DROPS), runtime, Events())
        config = tiny_trial(tmp_path / "parts", micro_batch_size=8, **NO_DROPS)
        assert train(config, runtime, Events()).heldout_loss == pytest.approx(whole.heldout_loss, abs=1e-5)

    def test_the_checkpoint_is_of_single_blocks(self, runtime: Runtime, tmp_path: Path) -> None:
        """What is saved does not tell which runtime trained it: names and shapes are the model's own."""
        from models.families import build_model

        config = tiny_trial(tmp_path, **DROPS)
        train(config, runtime, Events())
        found = Checkpoints(str(tmp_path), keep=1).load_latest()
        assert found is not None
        own = {name: value.shape for name, value in build_model(config.model).state_dict().items()}
        for part in ("model", "momenta", "average"):
            assert {name: value.shape for name, value in found[1][part].items()} == own
