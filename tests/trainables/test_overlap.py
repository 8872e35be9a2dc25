"""On a device that works while the host waits for input, the meter counts each second where the device spent it."""

import functools

import pytest

import trainables.loop
from tests.trainables.asynchronous import AsynchronousRuntime, Clock
from tests.trainables.trials import Events, tiny_trial
from trainables.loop import train
from trainables.meter import Meter
from trainables.overlap import InputOverlap
from trainables.runtime import select_runtime


@pytest.fixture
def metered(monkeypatch, tmp_path):
    """Trains 32 steps on the fake device, its input coming `wait_s` late, and gives the meter's summary."""

    def run(step_s: float, wait_s: float, **changes) -> dict:
        clock = Clock()
        runtime = AsynchronousRuntime(clock, step_s)
        monkeypatch.setattr(runtime, "peak_flops_per_s", lambda _precision: 16 * 1e6 / step_s)
        monkeypatch.setattr(trainables.loop, "Meter", functools.partial(Meter, clock=clock))
        few_unreadable = trainables.loop.few_unreadable

        def late(batches, source, *tell):
            for batch in few_unreadable(batches, source, *tell):
                if len(batch["image"]) == 16:  # not the held-out ones
                    clock.now += wait_s
                yield batch

        monkeypatch.setattr(trainables.loop, "few_unreadable", late)
        config = tiny_trial(tmp_path, steps=32, log_points=2, **changes)
        return train(config, runtime, Events()).meter

    return run


@pytest.mark.parametrize("every_steps", [None, 5])
def test_input_that_comes_while_the_device_works_is_no_wait(metered, every_steps):
    summary = metered(step_s=1.0, wait_s=0.25, checkpoint__every_steps=every_steps)
    assert summary["seconds_productive"] == pytest.approx(32.0)
    # The device is idle for the first batch, which is part of the start, and for the one after the losses of step 16.
    assert summary["seconds_input_wait"] == pytest.approx(0.25)
    assert summary["mfu"] == pytest.approx(1.0)


def test_input_that_comes_late_is_a_wait_only_where_the_device_is_idle(metered):
    summary = metered(step_s=0.5, wait_s=2.0)
    assert summary["seconds_productive"] == pytest.approx(32 * 0.5)
    assert summary["seconds_input_wait"] == pytest.approx(30 * 1.5 + 2.0)
    assert summary["seconds_start_up"] == pytest.approx(2.0)
    assert summary["mfu"] == pytest.approx(1.0)


def test_a_device_that_the_host_waits_for_has_nothing_overlapped():
    clock = Clock()
    meter = Meter(cores=1, clock=clock)
    overlap = InputOverlap(select_runtime("cpu"), meter)
    for step in range(3):
        meter.enter("input_wait")
        clock.now += 2
        meter.enter("productive")
        overlap.batch_came(step)
        clock.now += 1
        overlap.step_given()
    overlap.settle()
    assert (meter.seconds["input_wait"], meter.seconds["productive"]) == (6, 2)
