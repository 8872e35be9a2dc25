"""The learning rate's shape: up in equal amounts, at its peak once, down along a cosine to zero."""

import itertools
import math

import pytest

from trainables.schedule import learning_rate_at


def test_warms_up_linearly_then_decays_to_zero():
    rates = [learning_rate_at(step, peak=1.6, warmup_steps=4, steps=20) for step in range(21)]
    assert rates[:5] == pytest.approx([0.32, 0.64, 0.96, 1.28, 1.6])
    assert rates[12] == pytest.approx(0.8)
    assert rates[20] == 0.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_every_trained_step_has_a_positive_rate():
    for warmup_steps in (0, 1, 7):
        assert all(learning_rate_at(s, peak=0.4, warmup_steps=warmup_steps, steps=7) > 0 for s in range(7))


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate_at(0, peak=0.8, warmup_steps=0, steps=10) == 0.8
    assert learning_rate_at(5, peak=0.8, warmup_steps=0, steps=10) == pytest.approx(0.4 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize(("step", "warmup_steps"), [(-1, 0), (11, 0), (3, 11), (3, -1)])
def test_refuses_a_step_or_a_warm_up_outside_the_run(step, warmup_steps):
    with pytest.raises(ValueError, match="from 0 to 10"):
        learning_rate_at(step, peak=1.0, warmup_steps=warmup_steps, steps=10)
