"""Where the time goes: every second in one bucket, and a restart neither loses nor doubles any."""

import json

import pytest

from trainables.meter import BUCKETS, Meter


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def trained(clock, steps: int, **settings) -> Meter:
    """Start-up of 5 s, then steps of 1 s input wait and 2 s work on 8 images."""
    meter = Meter(cores=4, flops_per_image=10.0, clock=clock, **settings)
    clock.pass_s(5)
    for step in range(steps):
        meter.enter("input_wait")
        clock.pass_s(1)
        meter.enter(meter.bucket_of(step))
        clock.pass_s(2)
        meter.count_step(step, 8)
    return meter


def test_every_second_is_in_one_bucket(clock):
    meter = trained(clock, 3)
    with meter.time("checkpoint"):
        clock.pass_s(7)
        with meter.time("evaluation"):
            clock.pass_s(11)
    clock.pass_s(0.5)
    summary = meter.summary()
    expected = {"start_up": 5, "input_wait": 3, "productive": 6.5, "checkpoint": 7, "evaluation": 11}
    assert {b: summary[f"seconds_{b}"] for b in BUCKETS} == {b: expected.get(b, 0.0) for b in BUCKETS}
    assert sum(summary[f"seconds_{b}"] for b in BUCKETS) == clock.now - 100


def test_a_block_that_raises_gives_the_clock_back(clock):
    meter = Meter(cores=1, clock=clock)

    def fail() -> None:
        with meter.time("evaluation"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.pass_s(2)
    assert meter.summary()["seconds_start_up"] == 2


def test_the_summary_is_arithmetic_on_the_buckets(clock):
    summary = trained(clock, 3, peak_flops_per_s=80.0).summary()
    assert summary["core_hours"] == pytest.approx(6 * 4 / 3600)
    assert summary["core_hours_total"] == pytest.approx(14 * 4 / 3600)
    assert summary["flops"] == 3 * 8 * 10
    assert summary["images"] == 24
    assert summary["images_per_second"] == pytest.approx(24 / 9)
    assert summary["mfu"] == pytest.approx(240 / (6 * 80))
    assert summary["goodput"] == pytest.approx(6 / 14)
    json.dumps(summary)


def test_an_unknown_peak_gives_no_utilisation_and_an_empty_meter_no_error(clock):
    summary = Meter(cores=1, clock=clock).summary()
    assert summary["mfu"] is None
    assert (summary["images_per_second"], summary["goodput"]) == (0.0, 0.0)


def test_compilation_is_taken_out_of_the_step_it_was_part_of(clock):
    meter = trained(clock, 1)
    meter.move(1.5, "compilation")
    summary = meter.summary()
    assert summary["seconds_compilation"] == 1.5
    assert summary["seconds_productive"] == 0.5


def test_it_travels_as_json(clock):
    meter = trained(clock, 2)
    values = json.loads(json.dumps(meter.to_dict()))
    again = Meter.from_dict(values, clock)
    assert again.summary() == meter.summary()


def test_a_stopped_trial_goes_on_without_dead_time(clock):
    saved = trained(clock, 2).to_dict()
    clock.pass_s(1000)
    meter = trained(clock, 0)
    meter.resume(2, saved, saved_at=50.0, now=1050.0)
    summary = meter.summary()
    assert summary["seconds_restart"] == summary["seconds_repeated"] == 0
    assert summary["seconds_start_up"] == 10
    assert summary["images"] == 16
    assert meter.bucket_of(2) == "productive"


def test_a_dead_attempts_lost_steps_are_repeated_and_its_silence_is_dead_time(clock):
    meter = trained(clock, 1)
    saved = meter.to_dict()
    meter.enter("productive")
    clock.pass_s(6)
    meter.count_step(1, 8)
    meter.count_step(2, 8)
    last = meter.to_dict()

    again = trained(clock, 0)
    again.resume(1, saved, saved_at=1000.0, previous={"step": 3, "meter": last, "time": 1006.0}, now=1026.0)
    for step in (1, 2, 3):
        again.enter(again.bucket_of(step))
        clock.pass_s(2)
        again.count_step(step, 8)
    summary = again.summary()
    assert summary["seconds_productive"] == 2 + 6 + 2
    assert summary["seconds_repeated"] == 4
    assert summary["seconds_restart"] == 20
    assert summary["images"] == 4 * 8


def test_what_passes_between_two_sessions_is_not_dead_time_though_lost_steps_are_repeated(clock):
    saved, last = trained(clock, 1).to_dict(), trained(clock, 3).to_dict()
    meter = trained(clock, 0)
    meter.resume(1, saved, saved_at=1000.0, previous={"step": 3, "meter": last}, now=1000.0 + 10 * 3600)
    summary = meter.summary()
    assert summary["seconds_restart"] == 0
    assert summary["core_hours_total"] == pytest.approx((5 + 9 + 5) * 4 / 3600)
    assert [meter.bucket_of(step) for step in (1, 2, 3)] == ["repeated", "repeated", "productive"]


def test_an_attempt_that_died_while_it_repeated_is_still_repeated(clock):
    meter = Meter(cores=1, clock=clock)
    meter.resume(0, None, previous={"step": 5, "meter": trained(clock, 5).to_dict(), "time": 10.0}, now=12.0)
    saved = meter.to_dict()
    again = Meter(cores=1, clock=clock)
    again.resume(2, saved, saved_at=20.0, previous={"step": 2, "meter": saved, "time": 20.0}, now=30.0)
    assert [again.bucket_of(step) for step in (4, 5)] == ["repeated", "productive"]
    assert again.summary()["seconds_restart"] == 2 + 10


def test_a_report_older_than_the_checkpoint_only_tells_when_it_was_alive(clock):
    saved = trained(clock, 4).to_dict()
    meter = Meter(cores=4, clock=clock)
    meter.resume(4, saved, saved_at=90.0, previous={"step": 2, "meter": {}, "time": 80.0}, now=100.0)
    assert meter.summary()["seconds_restart"] == 10
    assert meter.bucket_of(4) == "productive"
    assert meter.summary()["images"] == 32


def test_core_hours_follow_a_change_of_cores(clock):
    saved = trained(clock, 1).to_dict()
    meter = Meter(cores=1, clock=clock)
    meter.resume(1, saved, now=0.0)
    meter.enter("productive")
    clock.pass_s(10)
    assert meter.summary()["core_hours"] == pytest.approx((2 * 4 + 10) / 3600)
