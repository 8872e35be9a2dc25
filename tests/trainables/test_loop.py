"""A trial from config to held-out loss: its result, its events, and that no interruption changes either."""

import dataclasses
import gc
import json
import logging
import random
import time
import weakref

import numpy as np
import pytest
import torch

import trainables.loop
from tests.trainables.asynchronous import AsynchronousRuntime, Clock
from tests.trainables.trials import Events, tiny_trial
from trainables.checkpoint import Checkpoints
from trainables.config import TrialRefused
from trainables.loop import train
from trainables.runtime import select_runtime
from trainables.trial import flops_per_image, identity


@pytest.fixture(scope="module")
def runtime():
    before = torch.get_num_threads()
    yield select_runtime("cpu", cores=1)
    torch.set_num_threads(before)


@pytest.fixture(params=["synchronous", "asynchronous"])
def either(request, runtime):
    """The CPU as it is, and as a device whose losses come 16 at a time: neither changes a trial's end."""
    return runtime if request.param == "synchronous" else AsynchronousRuntime(Clock())


@pytest.fixture(scope="module")
def undisturbed(runtime, tmp_path_factory):
    """The trial that the others must equal: its result and its final state."""
    folder = tmp_path_factory.mktemp("undisturbed")
    events = Events()
    config = tiny_trial(folder, optimiser__ema_decay=0.9)
    return train(config, runtime, events), Checkpoints(str(folder), keep=1).load_latest()[1], events


class Killed(BaseException):
    """The process dies here."""


def assert_same_end(result, folder, undisturbed) -> None:
    """Equal to the undisturbed trial bit for bit: losses, weights, momenta, averages, random state."""
    expected, expected_state, _ = undisturbed
    state = Checkpoints(str(folder), keep=1).load_latest()[1]
    assert result.outcome == "finished"
    for name in ("heldout_loss", "heldout_accuracy", "ema_heldout_loss", "train_loss", "step"):
        assert getattr(result, name) == getattr(expected, name), name
    for part in ("model", "momenta", "average"):
        assert state[part].keys() == expected_state[part].keys()
        for name, value in expected_state[part].items():
            assert torch.equal(state[part][name], value), f"{part} {name}"
    assert torch.equal(state["rng"][0], expected_state["rng"][0])


def test_a_trial_ends_with_finite_numbers_and_a_meter(undisturbed):
    result, state, _ = undisturbed
    assert (result.outcome, result.step, result.reason) == ("finished", 6, None)
    assert 0 < result.heldout_loss < 10
    assert 0 <= result.heldout_accuracy <= 1
    assert result.ema_heldout_loss != result.heldout_loss
    assert result.meter["images"] == 6 * 16
    assert result.meter["flops"] == 6 * 16 * 1e6
    assert result.meter["mfu"] is None
    assert result.meter["seconds_productive"] > 0
    assert result.meter["seconds_repeated"] == result.meter["seconds_compilation"] == 0
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict() == state["result"]


def test_events_come_in_the_order_of_life(undisturbed):
    *_, events = undisturbed
    assert [event["event"] for event in events.events] == ["started", *["progressed"] * 3, "checkpointed"]
    points = [point for event in events.named("progressed") for point in event["points"]]
    assert [point[0] for point in points] == [2, 4, 6]
    assert [point[2] for point in points] == pytest.approx([0.4, 0.4 * 0.6545085, 0.4 * 0.0954915])
    assert all(np.isfinite(loss) and speed > 0 for _, loss, _, speed in points)
    json.dumps(events.events)


def test_training_learns(runtime, tmp_path):
    config = tiny_trial(
        tmp_path, steps=24, batch_size=32, model__drop_rate=0.0, model__drop_path_rate=0.0, flops_per_image=None
    )
    result = train(config, runtime, Events())
    assert result.heldout_loss < 2.25  # a uniform guess has 2.30
    assert result.meter["flops"] == 24 * 32 * flops_per_image(config) > 1e6


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_trial_goes_on_as_if_nothing_had_been(either, tmp_path, undisturbed, stop_at):
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9)
    first = Events(stop_at)
    stopped = train(config, either, first, should_stop=first.should_stop)
    assert (stopped.outcome, stopped.step, stopped.heldout_loss) == ("stopped", stop_at, None)
    assert first.named("checkpointed") == [{"event": "checkpointed", "step": stop_at}]
    torch.rand(7)  # what the process does in between has no influence
    second = Events()
    result = train(config, either, second)
    assert second.named("started") == [{"event": "started", "step": stop_at}]
    assert_same_end(result, tmp_path, undisturbed)
    assert result.meter["images"] == 6 * 16
    assert result.meter["seconds_repeated"] == result.meter["seconds_restart"] == 0


def test_a_stop_during_evaluation_is_seen_too(either, tmp_path, undisturbed):
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9)
    events = Events(stop_at=7)  # six steps and a batch of the evaluation
    assert train(config, either, events, should_stop=events.should_stop).outcome == "stopped"
    assert_same_end(train(config, either, Events()), tmp_path, undisturbed)


def test_a_killed_trial_goes_on_from_its_checkpoint_and_repeats_what_was_lost(
    either, tmp_path, undisturbed, monkeypatch
):
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9, checkpoint__every_steps=3, log_points=6)
    events = Events()
    with monkeypatch.context() as patch:

        def rate(step, **settings):
            if step == 5:
                raise Killed
            return 0.0 if step > 5 else learning_rate_at(step, **settings)

        learning_rate_at = trainables.loop.learning_rate_at
        patch.setattr(trainables.loop, "learning_rate_at", rate)
        with pytest.raises(Killed):
            train(config, either, events)
    assert events.named("checkpointed") == [{"event": "checkpointed", "step": 3}]
    last = events.named("progressed")[-1]
    assert last["step"] == 5
    previous = {"step": last["step"], "meter": last["meter"], "time": time.time() - 100}
    again = Events()
    result = train(config, either, again, previous=previous)
    assert again.named("started") == [{"event": "started", "step": 3}]
    state = Checkpoints(str(tmp_path), keep=1).load_latest()[1]
    for name, value in undisturbed[1]["model"].items():
        assert torch.equal(state["model"][name], value), name
    assert result.heldout_loss == undisturbed[0].heldout_loss
    assert result.meter["images"] == 6 * 16  # steps 4 and 5 count once
    assert result.meter["seconds_repeated"] > 0
    assert 0 < result.meter["seconds_restart"] < 160


def test_a_trial_after_others_equals_one_in_a_fresh_process(runtime, tmp_path, undisturbed):
    train(tiny_trial(tmp_path / "other", seed=8, model__variant="F1", steps=2), runtime, Events())
    torch.manual_seed(1234)
    random.seed(5)
    np.random.seed(5)
    result = train(tiny_trial(tmp_path / "same", optimiser__ema_decay=0.9), runtime, Events())
    assert_same_end(result, tmp_path / "same", undisturbed)


def test_nothing_of_a_trial_outlives_it(runtime, tmp_path, monkeypatch):
    alive = []
    at_start = trainables.loop.Trial.at_start

    def remembering(*args):
        trial = at_start(*args)
        alive.extend(weakref.ref(p) for p in trial.model.parameters())
        return trial

    monkeypatch.setattr(trainables.loop.Trial, "at_start", remembering)
    gc.disable()
    try:
        train(tiny_trial(tmp_path, steps=1, optimiser__ema_decay=0.9), runtime, Events())
        assert alive
        assert not any(ref() is not None for ref in alive)  # without waiting for the garbage collector
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16")
def test_it_trains_in_bfloat16(runtime, tmp_path, undisturbed):
    result = train(tiny_trial(tmp_path, optimiser__ema_decay=0.9, precision="bfloat16"), runtime, Events())
    assert result.heldout_loss == pytest.approx(undisturbed[0].heldout_loss, abs=0.05)
    assert result.heldout_loss != undisturbed[0].heldout_loss


def test_the_seed_changes_the_result(runtime, tmp_path, undisturbed):
    result = train(tiny_trial(tmp_path, optimiser__ema_decay=0.9, seed=4), runtime, Events())
    assert result.heldout_loss != undisturbed[0].heldout_loss


def test_a_finished_trial_gives_its_result_again_without_training(runtime, undisturbed, tmp_path, monkeypatch):
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9)
    first = train(config, runtime, Events())

    def no_training(*_args, **_settings):
        raise AssertionError("it trained again")

    monkeypatch.setattr(trainables.loop, "train_batches", no_training)
    events = Events()
    assert train(config, runtime, events) == first
    assert events.events == []
    assert [saved.final for saved in Checkpoints(str(tmp_path), keep=2).saved()] == [True]


def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged(runtime, tmp_path):
    config = tiny_trial(tmp_path, optimiser__learning_rate=1e30, optimiser__agc_clip=None, warmup_steps=0)
    result = train(config, runtime, Events())
    assert result.outcome == "diverged"
    assert result.heldout_loss is None
    assert result.step < 6
    assert "training loss is " in result.reason
    assert train(config, runtime, Events()) == result


def test_weights_broken_by_the_last_step_are_a_divergence_too(runtime, tmp_path):
    config = tiny_trial(tmp_path, optimiser__learning_rate=1e30, optimiser__agc_clip=None, steps=1, warmup_steps=0)
    result = train(config, runtime, Events())
    assert (result.outcome, result.heldout_loss) == ("diverged", None)
    assert result.reason in {"held-out loss is nan at step 1", "held-out loss is inf at step 1"}


def test_a_loss_above_the_limit_for_long_ends_the_trial_as_diverged(either, tmp_path):
    config = tiny_trial(tmp_path, divergence__factor=0.1, divergence__patience=4, checkpoint__every_steps=3)
    events = Events(stop_at=3)
    assert train(config, either, events, should_stop=events.should_stop).outcome == "stopped"
    result = train(config, either, Events())  # the count goes on after a restart
    assert (result.outcome, result.step) == ("diverged", 4)
    assert result.reason == "training loss above 0.23 (0.1 x ln(classes)) for 4 steps on end, at step 4"


def test_checkpoints_follow_the_steps_and_the_last_are_kept(runtime, tmp_path):
    events = Events()
    train(tiny_trial(tmp_path, checkpoint__every_steps=2, checkpoint__keep=2), runtime, events)
    assert [event["step"] for event in events.named("checkpointed")] == [2, 4, 6]
    assert [(saved.step, saved.final) for saved in Checkpoints(str(tmp_path), keep=2).saved()] == [(6, True)]


def test_checkpoints_follow_the_clock(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(trainables.loop, "_SAVING_SHARE", 1e9)
    events = Events()
    train(tiny_trial(tmp_path, checkpoint__every_s=0.0, steps=3, log_points=1), runtime, events)
    assert [event["step"] for event in events.named("checkpointed")] == [1, 2, 3]


@pytest.mark.parametrize(("took_s", "due"), [(0.0, True), (0.4, True), (0.6, False)])
def test_a_checkpoint_that_takes_long_is_written_less_often(tmp_path, took_s, due):
    config = tiny_trial(tmp_path, checkpoint__every_s=1.0)
    assert trainables.loop._is_due(config, 5, 4, time.monotonic() - 10, took_s) is due
    assert not trainables.loop._is_due(config, 4, 4, time.monotonic() - 10, took_s)
    often = tiny_trial(tmp_path, checkpoint__every_steps=5)
    assert trainables.loop._is_due(often, 5, 4, time.monotonic(), took_s)


def test_it_trains_on_any_fsspec_address(runtime, undisturbed):
    config = tiny_trial("memory://loop/trial", optimiser__ema_decay=0.9)
    events = Events(stop_at=2)
    train(config, runtime, events, should_stop=events.should_stop)
    assert train(config, runtime, Events()).heldout_loss == undisturbed[0].heldout_loss


def test_a_checkpoint_of_another_config_is_refused_by_name(runtime, tmp_path):
    events = Events(stop_at=1)
    train(tiny_trial(tmp_path), runtime, events, should_stop=events.should_stop)
    with pytest.raises(TrialRefused, match=r"optimiser\.learning_rate was 0\.4 and is now 0\.8"):
        train(tiny_trial(tmp_path, optimiser__learning_rate=0.8), runtime, Events())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0 is too few"),
        ({"warmup_steps": 7}, "warmup_steps 7 is longer than the run: give 0 to 6"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"model__image_size": 16}, "16 pixels and the data gives 8"),
        ({"model__variant": "F9"}, "F9"),
        ({"model__classes": 7}, "model.classes is 7, the data has 10"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(runtime, tmp_path, changes, message):
    with pytest.raises(TrialRefused, match=message) as caught:
        train(tiny_trial(tmp_path, **changes), runtime, Events())
    assert "\n" not in str(caught.value)


def test_a_device_without_the_memory_is_a_refusal_and_a_host_without_it_an_error(runtime, tmp_path, monkeypatch):
    def without(error):
        def fail(*_args, **_settings):
            raise error

        monkeypatch.setattr(trainables.loop, "learning_rate_at", fail)

    without(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has\nnothing"))
    with pytest.raises(
        TrialRefused, match=r"batch_size 16 .*: set training.micro_batch_size .*workers_per_slice"
    ) as caught:
        train(tiny_trial(tmp_path), runtime, Events())
    assert "\n" not in str(caught.value)
    without(MemoryError())
    with pytest.raises(MemoryError):
        train(tiny_trial(tmp_path), runtime, Events())


def test_where_the_data_stand_and_how_they_are_measured_is_no_part_of_a_trials_identity(runtime, tmp_path, undisturbed):
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9)
    assert not {"eval_batch_size", "micro_batch_size", "loop_from"} & identity(config).keys()
    assert not {"path", "bad_images", "decode_workers"} & identity(config)["data"].keys()
    first = Events(stop_at=3)
    train(config, runtime, first, should_stop=first.should_stop)
    data = dataclasses.replace(config.data, path="elsewhere", bad_images="skip")
    again = dataclasses.replace(config, eval_batch_size=32, data=data)
    assert train(again, runtime, Events()).heldout_loss == pytest.approx(undisturbed[0].heldout_loss)


def test_a_checkpoint_that_tells_more_of_its_trial_is_gone_on_with(runtime, tmp_path, undisturbed):
    """As earlier versions wrote them, which counted more as a trial's identity."""
    config = tiny_trial(tmp_path, optimiser__ema_decay=0.9)
    first = Events(stop_at=3)
    train(config, runtime, first, should_stop=first.should_stop)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    step, state = checkpoints.load_latest()
    state["config"]["data"]["bad_images"] = "skip"
    checkpoints.save(step, state)
    again = Events()
    assert train(config, runtime, again).heldout_loss == undisturbed[0].heldout_loss
    assert again.named("started") == [{"event": "started", "step": 3}]


def test_another_number_of_threads_is_told(runtime, tmp_path, caplog, monkeypatch):
    events = Events(stop_at=1)
    train(tiny_trial(tmp_path, steps=2), runtime, events, should_stop=events.should_stop)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with caplog.at_level(logging.WARNING):
        train(tiny_trial(tmp_path, steps=2), runtime, Events())
    assert "goes on with 3 threads and was trained with 1" in caplog.text
