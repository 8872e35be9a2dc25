from __future__ import annotations

from benchmarks.step import Case, measure


def test_each_round_has_the_speed_of_all_three_loops() -> None:
    found = measure(Case("F0", 8, 1 / 32, 4, steps=2, batch_size=8), rounds=1)
    assert len(found) == 1
    assert min(found[0].ours.wall, found[0].contiguous.wall, found[0].channels_last.cpu) > 0
