"""How the benchmarks read a search's ledger; no search is run."""

from __future__ import annotations

import pytest

from benchmarks.searches import Search, split
from search.ledger import Record
from trainables.meter import BUCKETS


def ledger_of(*trials: tuple[str, float, float, float]) -> list[Record]:
    """Trials as (slice, suggested, set up, result), each 8 s productive, 0.5 s evaluation and 0.1 s start-up."""
    events: list[tuple[float, str, dict[str, object]]] = []
    seconds = {f"seconds_{bucket}": 0.0 for bucket in BUCKETS}
    seconds |= {"seconds_productive": 8.0, "seconds_evaluation": 0.5, "seconds_start_up": 0.1}
    for number, (slice_name, suggested, setup, result) in enumerate(trials):
        trial = f"trial-{number}"
        wait_s = setup + 0.1 - suggested
        events.append((suggested, "trial_suggested", {"trial": trial}))
        events.append((setup + 0.1, "trial_started", {"trial": trial, "slice": slice_name, "wait_s": wait_s}))
        meter = {"images_per_second": 100.0, **seconds}
        events.append((result, "trial_ended", {"trial": trial, "result": {"meter": meter}}))
    events.append((max(result for *_, result in trials) + 0.5, "session_ended", {}))
    events.sort(key=lambda event: event[0])
    return [Record(seq, time, event, fields) for seq, (time, event, fields) in enumerate(events)]


def search_of(slices: int, records: list[Record]) -> Search:
    end = records[-1].time
    moments = {"closing": end + 1, "closed": end + 3, "ended": end + 3}
    return Search(slices, called=90.0, exited=end + 4, moments=moments, records=records)


def test_two_slots_are_split_into_named_parts_that_add_up_to_the_wall_time() -> None:
    records = ledger_of(("a", 95, 100, 109), ("b", 95, 102, 110.8), ("a", 109, 109.1, 118))
    found = split(search_of(2, records))
    assert found.start_of_cluster == pytest.approx(11)
    assert found.wall == pytest.approx(17)
    assert found.productive == pytest.approx(12)
    assert found.no_trial_left == pytest.approx((118 - 110.8) / 2)
    assert found.between_trials == pytest.approx(17 - 12 - 0.75 - 0.15 - 3.6)
    assert sum(found.closing.values()) == pytest.approx(4.5)


def test_the_ratios_include_less_and_less() -> None:
    found = split(search_of(1, ledger_of(("a", 95, 100, 109), ("a", 109, 109.1, 118))))
    assert found.ratio == pytest.approx((18 + 4.5) / 16)
    assert found.ratio_of_trials == found.ratio_busy == pytest.approx(18 / 16)
    assert found.ratio_with(2) == pytest.approx(found.ratio)
    assert found.ratio_with(100) < found.ratio
