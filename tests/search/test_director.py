"""The director, driven by a scripted fleet: no Ray, nothing trained, but a real ledger on disk."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.costs import training_memory
from search.budgets import Budget, open_budgets
from search.director import Director, Finished, Suggestion
from search.ledger import Ledger, Record, read_ledger
from search.memory import memory_by_variant
from search.second_objective import costs_of
from search.space import Point, Space
from search.state import StudyState, TrialState
from search.study import Study, read_study
from trainables.config import TrialConfig

STUDY: Final = """
name: tiny
data: {source: digits, image_size: 8}
model: {variants: [F0, F1], width: 0.0625, group_size: 8, stem: small}
budgets: [4e9 FLOPs, 8e9 FLOPs]
epochs: {min: 0.01, max: 100}
learning_rate: {base: 0.4, factor: 2, min: 0.1, max: 1.6}
search: {sampler: tpe, trials: 8}
training: {batch_size: 64}
"""


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study(STUDY)


@pytest.fixture(scope="module")
def budgets(study: Study) -> list[Budget]:
    return open_budgets(study, 1437, 10)[0]


def scripted_outcome(suggestion: Suggestion) -> dict[str, Any]:
    """How a trial ends: a function of its config, as in training. High rates diverge, one point fails."""
    config = TrialConfig.from_dict(suggestion.config)
    rate, variant = config.optimiser.learning_rate, config.model.variant
    if rate > 1:
        return {"outcome": "diverged", "result": {"step": 3, "meter": {}, "reason": "loss is not finite"}}
    if (rate, variant) == (0.1, "F1"):
        return {"outcome": "failed", "result": {"step": 0, "meter": {}, "error": "RuntimeError: scripted"}}
    loss = 1 + 0.1 * math.log2(rate / 0.4) ** 2 + 0.05 * (variant == "F1")
    return {"outcome": "finished", "result": {"heldout_loss": loss, "step": config.steps, "meter": {"flops": 1.0}}}


def events_of(suggestion: Suggestion, first: int = 0) -> list[dict[str, Any]]:
    """What a broker would pass on of one undisturbed attempt."""
    before = suggestion.previous["step"] if suggestion.previous else 0
    events: list[dict[str, Any]] = [
        {"event": "started", "slice": "slice-0", "step": before, "time": 2e9},
        {"event": "progressed", "step": before + 1, "points": [[before + 1, 2.0, 0.1, 9.0]], "meter": {"flops": 0.5}},
        {"event": "checkpointed", "step": before + 1},
        {"event": "ended", **scripted_outcome(suggestion)},
    ]
    return [
        {**event, "number": first + number, "attempt": suggestion.attempt + 1} for number, event in enumerate(events)
    ]


@dataclass
class World:
    """A director with a ledger on disk, and a fleet that trains the oldest trial in flight, one event at a time."""

    study: Study
    budgets: Sequence[Budget]
    folder: Path
    slices: int = 2
    heard: list[Record] = field(default_factory=list)
    flying: deque[tuple[Suggestion, deque[dict[str, Any]]]] = field(default_factory=deque)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(str(self.folder))
        self.director = Director(
            self.study, self.budgets, 10, str(self.folder), self.ledger, self.slices, self.heard.append
        )

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def suggest(self) -> Suggestion:
        suggestion = self.director.suggest()
        assert isinstance(suggestion, Suggestion)
        self.flying.append((suggestion, deque(events_of(suggestion))))
        return suggestion

    def fill(self) -> None:
        """Ask until there is nothing to be had."""
        while isinstance(suggestion := self.director.suggest(), Suggestion):
            self.flying.append((suggestion, deque(events_of(suggestion))))
        self.most_in_flight = max(self.most_in_flight, len(self.flying))

    def step(self) -> None:
        """One event of the oldest trial in flight."""
        suggestion, events = self.flying[0]
        self.director.take_events(suggestion.trial, [events.popleft()])
        if not events:
            self.flying.popleft()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """To the end, or until a condition holds."""
        self.fill()
        while self.flying and not until():
            self.step()
            self.fill()

    @property
    def names(self) -> list[str]:
        return [record.event for record in self.ledger.records]


def outcomes(folder: Path) -> dict[str, str | None]:
    return {trial.trial_id: trial.outcome for trial in StudyState.of(read_ledger(str(folder))).trials.values()}


def told(folder: Path, event: str) -> list[str]:
    """The trials, or budgets, of which the ledger tells an event, each as often as it does."""
    key = "trial" if event.startswith("trial") else "budget"
    return [record[key] for record in read_ledger(str(folder)) if record.event == event]


@pytest.fixture(scope="module")
def undisturbed(study: Study, budgets: list[Budget], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger's folder of a whole search that nothing befell."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with World(study, budgets, folder) as world:
        world.run()
        assert world.director.done
        assert world.most_in_flight == 2
    return folder


# ---------------------------------------------------------------- the order of suggestions


def test_trials_are_suggested_budget_by_budget_and_numbered(undisturbed: Path) -> None:
    assert told(undisturbed, "trial_suggested") == [
        f"{budget}-FLOPs-{number:03d}" for budget in ("4e9", "8e9") for number in range(8)
    ]
    assert set(outcomes(undisturbed).values()) == {"finished", "diverged", "failed"}  # the script has all of them


def test_the_next_budget_starts_when_the_current_one_is_suggested_though_not_ended(undisturbed: Path) -> None:
    records = read_ledger(str(undisturbed))
    opened = next(r.seq for r in records if r.event == "budget_opened" and r["index"] == 1)
    closed = next(r.seq for r in records if r.event == "budget_closed" and r["budget"] == "4e9 FLOPs")
    last = next(r.seq for r in records if r.event == "trial_suggested" and r["trial"] == "4e9-FLOPs-007")
    assert last < opened < closed
    assert records[opened + 1].event == "trial_suggested"


def test_a_budget_closes_with_its_best_trial(undisturbed: Path) -> None:
    state = StudyState.of(read_ledger(str(undisturbed)))
    for record in read_ledger(str(undisturbed)):
        if record.event == "budget_closed":
            losses = {
                t.trial_id: t.heldout_loss for t in state.budgets[record["budget"]].trials if t.outcome == "finished"
            }
            assert losses[record["best"]] == min(losses.values())


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_never_more_trials_are_in_flight_than_there_are_slices(
    study: Study, budgets: list[Budget], tmp_path: Path, slices: int
) -> None:
    with World(study, budgets, tmp_path, slices=slices) as world:
        world.fill()
        assert len(world.flying) == slices
        assert world.director.suggest() is None
        world.run()
        assert world.most_in_flight == slices
        assert isinstance(world.director.suggest(), Finished)


def test_a_suggestion_is_the_trial_as_the_ledger_has_it(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    with World(study, budgets, tmp_path) as world:
        suggestion = world.suggest()
        (record,) = [r for r in world.ledger.records if r.event == "trial_suggested"]
    config = TrialConfig.from_dict(json.loads(json.dumps(suggestion.config)))
    assert (suggestion.attempt, suggestion.previous) == (0, None)
    assert (config.trial_id, config.model.variant, config.steps) == (
        record["trial"], record["variant"], record["steps"],
    )  # fmt: skip
    assert (config.optimiser.learning_rate, config.seed) == (record["learning_rate"], record["seed"])
    assert config.checkpoint.folder == f"{tmp_path}/trials/{record['trial']}"
    assert record["params"] == {"variant": record["variant"], f"lr_{record['variant']}": record["learning_rate"]}


def test_a_budgets_suggestions_do_not_depend_on_the_other_budgets(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path
) -> None:
    with World(study, [replace(budgets[1], index=0)], tmp_path) as world:
        world.run()

    def points(folder: Path) -> list[tuple[str, float]]:
        records = [r for r in read_ledger(str(folder)) if r.event == "trial_suggested" and r["budget"] == "8e9 FLOPs"]
        return [(record["variant"], record["learning_rate"]) for record in records]

    assert points(tmp_path)[:5] == points(undisturbed)[:5]


# ---------------------------------------------------------------- records


def test_every_record_is_durable_before_a_listener_sees_it(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    heard: list[Record] = []

    def listen(record: Record) -> None:
        lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == record.seq + 1
        assert lines[-1] == record.to_json().encode() + b"\n"
        heard.append(record)

    with World(study, budgets[:1], tmp_path) as world:
        world.director.listen = listen
        world.run()
        assert heard == world.ledger.records


def test_events_become_records(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    with World(study, budgets, tmp_path, slices=1) as world:
        trial = world.suggest().trial
        before = len(world.ledger.records)
        started = {"event": "started", "slice": "slice-3", "step": 0, "time": world.ledger.records[-1].time + 7}
        points = [[5, 2.1, 0.4, 100.0]]
        ended = {"event": "ended", "outcome": "finished", "result": {"heldout_loss": 1.5, "step": 9, "meter": {"a": 1}}}
        events = [
            started,
            {"event": "progressed", "step": 5, "points": points, "meter": {"flops": 1.0}},
            {"event": "checkpointed", "step": 5},
            {"event": "crashed", "reason": "killed"},
            {**started, "attempt": 2, "step": 5},
            ended,
        ]
        world.director.take_events(trial, [{"attempt": 1, **event, "number": n} for n, event in enumerate(events)])
        records = world.ledger.records[before:]
    assert [record.event for record in records] == [
        "trial_started", "trial_progressed", "trial_checkpointed", "trial_lost", "trial_started", "trial_ended",
    ]  # fmt: skip
    assert {record["trial"] for record in records} == {trial}
    assert (records[0]["slice"], records[0]["attempt"], records[0]["step"]) == ("slice-3", 1, 0)
    assert records[0]["wait_s"] == pytest.approx(7, abs=0.5)
    assert (records[1]["step"], records[1]["points"], records[1]["meter"]) == (5, points, {"flops": 1.0})
    assert records[2]["step"] == 5
    assert (records[3]["kind"], records[3]["reason"], records[3]["attempt"]) == ("crashed", "killed", 1)
    assert (records[4]["attempt"], records[4]["step"]) == (2, 5)
    assert (records[5]["outcome"], records[5]["result"]) == (ended["outcome"], ended["result"])


def test_events_that_come_again_are_passed_over(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    """A proxy that Tune restarts pulls its trial's events from the first."""
    with World(study, budgets[:1], tmp_path, slices=1) as world:
        suggestion = world.suggest()
        events = events_of(suggestion)
        world.director.take_events(suggestion.trial, events[:2])
        world.director.take_events(suggestion.trial, events[:3])
        world.director.take_events(suggestion.trial, events)
        after = list(world.ledger.records)
        world.director.take_events(suggestion.trial, events)
        assert world.ledger.records == after
        assert Counter(world.names)["trial_ended"] == 1
        assert [name for name in world.names if name.startswith("trial_")] == [
            "trial_suggested", "trial_started", "trial_progressed", "trial_checkpointed", "trial_ended",
        ]  # fmt: skip


# ---------------------------------------------------------------- interrupted, and gone on with


def cut(source: Path, target: Path, records: int, rest: int = 0) -> None:
    """A folder with the first records of another's ledger, as `kill -9` may leave it: the last one half written."""
    lines = (source / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    target.mkdir()
    (target / "ledger.jsonl").write_bytes(b"".join(lines[:records]) + b"".join(lines[records:])[:rest])


def test_killed_after_any_record_a_search_comes_to_the_same_end(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path
) -> None:
    """At every record of a whole search: no finished trial runs again, none is counted twice, none is left out."""
    whole = outcomes(undisturbed)
    count = len(read_ledger(str(undisturbed)))
    for kept in range(count + 1):
        folder = tmp_path / str(kept)
        cut(undisturbed, folder, kept)
        ended = {trial for trial, outcome in outcomes(folder).items() if outcome is not None}
        with World(study, budgets, folder) as world:
            world.fill()
            handed_out = [suggestion.trial for suggestion, _ in world.flying]
            world.run()
            assert world.director.done, kept
        assert ended.isdisjoint(handed_out), kept
        assert outcomes(folder) == whole, kept
        assert max(Counter(told(folder, "trial_ended")).values()) == 1, kept
        assert sorted(told(folder, "trial_suggested")) == sorted(whole), kept
        assert sorted(told(folder, "budget_closed")) == ["4e9 FLOPs", "8e9 FLOPs"], kept


@settings(deadline=None, max_examples=20)
@given(kills=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200)), min_size=1, max_size=6))
def test_killed_again_and_again_a_search_comes_to_the_same_end(
    study: Study,
    budgets: list[Budget],
    undisturbed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[tuple[int, int]],
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    for steps, rest in kills:
        with World(study, budgets, folder) as world:
            before = len(world.ledger.records)
            world.run(until=lambda: len(world.ledger.records) - before >= steps)  # noqa: B023 - called within the loop
        path = folder / "ledger.jsonl"
        # part of one more record, as a crash would leave it
        path.write_bytes(path.read_bytes() + b'{"seq":9,"time":1.0,"event":"trial_ended","trial":"x"}\n'[: rest % 50])
    with World(study, budgets, folder) as world:
        world.run()
        assert world.director.done
    assert outcomes(folder) == outcomes(undisturbed)
    assert max(Counter(told(folder, "trial_ended")).values()) == 1


def test_open_trials_are_handed_out_first_with_what_they_last_reported(
    study: Study, budgets: list[Budget], tmp_path: Path
) -> None:
    with World(study, budgets, tmp_path) as world:
        first = world.suggest()
        second = world.suggest()
        for _ in range(3):
            world.step()  # started, progressed and checkpointed; then the driver is killed
    with World(study, budgets, tmp_path) as world:
        again = world.suggest()
        assert (again.trial, again.config, again.attempt) == (first.trial, first.config, 1)
        # no time: what passes between two sessions is not the trial's
        assert again.previous == {"step": 1, "meter": {"flops": 0.5}}
        unstarted = world.suggest()
        assert (unstarted.trial, unstarted.attempt, unstarted.previous) == (second.trial, 0, None)
        world.run()
        assert Counter(told(tmp_path, "trial_ended"))[first.trial] == 1
        starts = [
            r["attempt"] for r in world.ledger.records if r.event == "trial_started" and r["trial"] == first.trial
        ]
        assert starts == [1, 2]


def test_interrupted_it_suggests_nothing_more_and_stopped_trials_stay_open(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path
) -> None:
    with World(study, budgets, tmp_path) as world:
        world.run(until=lambda: world.names.count("trial_ended") == 3)
        world.director.interrupted = True
        assert isinstance(world.director.suggest(), Finished)
        stopped = [suggestion.trial for suggestion, _ in world.flying]
        for suggestion, events in world.flying:
            number = events[0]["number"]
            stop = {"event": "ended", "outcome": "stopped", "result": {"step": 1, "meter": {}}, "number": number}
            world.director.take_events(suggestion.trial, [{**stop, "attempt": 1}])
        assert len(stopped) == 2
        assert world.names.count("trial_ended") == 3
        assert not world.director.done
    with World(study, budgets, tmp_path) as world:
        world.fill()
        assert [suggestion.trial for suggestion, _ in world.flying] == stopped
        world.run()
    assert outcomes(tmp_path) == outcomes(undisturbed)


def test_a_search_that_is_done_has_nothing_to_suggest_and_nothing_to_write(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path
) -> None:
    cut(undisturbed, tmp_path / "done", 10_000)
    with World(study, budgets, tmp_path / "done") as world:
        before = len(world.ledger.records)
        assert isinstance(world.director.suggest(), Finished)
        assert world.director.done
        assert len(world.ledger.records) == before


# ---------------------------------------------------------------- a study that grows


def test_a_budget_that_is_added_later_is_opened(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path
) -> None:
    with World(study, budgets[:1], tmp_path) as world:
        world.run()
        assert world.director.done
    first = outcomes(tmp_path)
    with World(study, budgets, tmp_path) as world:
        assert not world.director.done
        world.run()
        assert world.director.done
    assert outcomes(tmp_path).items() > first.items()
    assert set(outcomes(tmp_path)) == set(outcomes(undisturbed))
    assert told(tmp_path, "budget_opened") == ["4e9 FLOPs", "8e9 FLOPs"]


def test_raising_the_trials_adds_trials(study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path) -> None:
    cut(undisturbed, tmp_path / "more", 10_000)
    more = [replace(budgets[0], trials=10), budgets[1]]
    with World(study, more, tmp_path / "more") as world:
        assert world.suggest().trial == "4e9-FLOPs-008"
        world.run()
        assert world.director.done
    after = outcomes(tmp_path / "more")
    assert set(after) - set(outcomes(undisturbed)) == {"4e9-FLOPs-008", "4e9-FLOPs-009"}
    assert None not in after.values()
    assert told(tmp_path / "more", "budget_closed").count("4e9 FLOPs") == 2


def test_lowering_the_trials_adds_none(study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path) -> None:
    cut(undisturbed, tmp_path / "fewer", 10_000)
    with World(study, [replace(budget, trials=2) for budget in budgets], tmp_path / "fewer") as world:
        assert isinstance(world.director.suggest(), Finished)
        assert world.director.done


def test_a_budget_whose_grid_is_exhausted_closes(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    endless = [replace(budgets[0], trials=1000)]
    for _ in range(2):  # and stays closed when the search is called again
        with World(study, endless, tmp_path) as world:
            world.run()
            assert world.director.done
    assert len(outcomes(tmp_path)) == 10  # two variants at five learning rates
    assert told(tmp_path, "budget_closed") == ["4e9 FLOPs"]


def test_a_failed_trial_counts_and_is_not_tried_again(study: Study, budgets: list[Budget], tmp_path: Path) -> None:
    with World(study, [replace(budgets[0], trials=2)], tmp_path, slices=1) as world:
        for _ in range(2):
            trial = world.director.suggest()
            assert isinstance(trial, Suggestion)
            failed = {"event": "ended", "outcome": "failed", "result": {"step": 0, "meter": {}, "error": "broken"}}
            world.director.take_events(trial.trial, [{**failed, "number": 0, "attempt": 1}])
        assert isinstance(world.director.suggest(), Finished)
        assert world.director.done
        assert world.ledger.records[-1].fields == {"budget": "4e9 FLOPs", "best": None}


@pytest.mark.parametrize("label", ["4e+9 FLOPs", "4.0e9 FLOPs", "4 GFLOPs", "4.000000001e9 FLOPs"])
def test_a_budget_that_is_spelt_anew_is_the_same(
    study: Study, budgets: list[Budget], undisturbed: Path, tmp_path: Path, label: str
) -> None:
    respelt = open_budgets(read_study(STUDY.replace("4e9 FLOPs", label)), 1437, 10)[0]
    assert respelt[0].label == label
    for kept in (10_000, 30):  # a whole search, and one that was interrupted
        folder = tmp_path / str(kept)
        cut(undisturbed, folder, kept)
        with World(study, respelt, folder) as world:
            assert world.director.done is (kept == 10_000)
            world.run()
            assert world.director.done
            assert world.director.state.covers(respelt)
        assert outcomes(folder) == outcomes(undisturbed)
        assert told(folder, "budget_opened") == ["4e9 FLOPs", "8e9 FLOPs"]


def with_variants(*variants: str) -> tuple[Study, list[Budget]]:
    """The study with other variants and every point of its grid, and its smaller budget."""
    text = STUDY.replace("[F0, F1]", f"[{', '.join(variants)}]").replace("sampler: tpe, trials: 8", "sampler: grid")
    other = read_study(text)
    return other, open_budgets(other, 1437, 10)[0][:1]


def test_a_variant_that_is_added_later_is_searched_in_a_budget_that_was_closed(tmp_path: Path) -> None:
    for variants in (["F0"], ["F0", "F1"]):
        with World(*with_variants(*variants), tmp_path) as world:
            assert not world.director.done
            world.run()
            assert world.director.done
    trials = StudyState.of(read_ledger(str(tmp_path))).trials
    assert list(trials) == [f"4e9-FLOPs-{number:03d}" for number in range(10)]
    assert [trial.variant for trial in trials.values()] == ["F0"] * 5 + ["F1"] * 5
    assert told(tmp_path, "budget_opened") == told(tmp_path, "budget_closed") == ["4e9 FLOPs"] * 2


def test_a_variant_that_is_taken_out_later_keeps_its_trials_and_gets_no_more(tmp_path: Path) -> None:
    with World(*with_variants("F0", "F1"), tmp_path) as world:
        world.run()
    before = outcomes(tmp_path)
    for _ in range(2):
        with World(*with_variants("F0"), tmp_path) as world:
            assert isinstance(world.director.suggest(), Finished)
            assert world.director.done
    assert outcomes(tmp_path) == before
    assert told(tmp_path, "budget_opened") == told(tmp_path, "budget_closed") == ["4e9 FLOPs"] * 2


def test_open_trials_of_a_variant_that_was_taken_out_are_left_alone_until_it_comes_back(tmp_path: Path) -> None:
    """Wherever the search was killed before."""
    whole = tmp_path / "whole"
    with World(*with_variants("F0", "F1"), whole) as world:
        world.run()
    variant_of = {trial.trial_id: trial.variant for trial in world.director.state.trials.values()}
    for kept in range(len(read_ledger(str(whole)))):
        folder = tmp_path / str(kept)
        cut(whole, folder, kept)
        before = outcomes(folder)
        with World(*with_variants("F0"), folder) as world:
            world.run()
            assert world.director.done, kept
        alone = {t: outcome for t, outcome in before.items() if variant_of[t] == "F1"}
        after = outcomes(folder)
        assert {t: after[t] for t in alone} == alone, kept
        with World(*with_variants("F0", "F1"), folder) as world:
            assert not world.director.done, kept
            world.fill()
            open_before = [t for t, outcome in alone.items() if outcome is None]
            assert [suggestion.trial for suggestion, _ in world.flying][: len(open_before)] == open_before
            world.run()
            assert world.director.done, kept
        points = [(t.variant, t.learning_rate) for t in world.director.state.trials.values()]
        assert len(points) == len(set(points)) == 10, kept
        assert None not in outcomes(folder).values(), kept
        assert max(Counter(told(folder, "trial_ended")).values()) == 1, kept


def test_failed_trials_of_a_variant_that_was_taken_out_are_not_tried_again(tmp_path: Path) -> None:
    with World(*with_variants("F0", "F1"), tmp_path) as world:
        world.run()
    assert Counter(outcomes(tmp_path).values())["failed"] == 1  # of F1
    with World(*with_variants("F0"), tmp_path) as world:
        world.director.reopen_failed()
        world.run()
        assert world.director.done
    assert told(tmp_path, "trial_reopened") == []


def test_failed_trials_are_tried_again_where_that_is_asked_for(tmp_path: Path) -> None:
    study, budgets = with_variants("F0", "F1")
    with World(study, budgets, tmp_path) as world:
        world.run()
    with World(study, budgets, tmp_path) as world:
        world.director.reopen_failed()
        assert not world.director.done
        world.run()
        assert world.director.done
    (failed,) = told(tmp_path, "trial_reopened")
    assert Counter(told(tmp_path, "trial_ended"))[failed] == 2


def test_open_trials_of_a_budget_that_was_taken_out_are_left_alone(
    study: Study, budgets: list[Budget], tmp_path: Path
) -> None:
    with World(study, budgets, tmp_path) as world:
        world.suggest()
    with World(study, budgets[1:], tmp_path) as world:
        world.run()
        assert world.director.done
    assert outcomes(tmp_path)["4e9-FLOPs-000"] is None


# ---------------------------------------------------------------- a sampler that knows an end


def trend_of(study: Study, *, trials: int | None = None) -> tuple[Study, list[Budget]]:
    """The study with the trend sampler, and with at most so many trials."""
    most = "null" if trials is None else str(trials)
    other = read_study(STUDY.replace("sampler: tpe, trials: 8", f"sampler: trend, trials: {most}"))
    assert other.budgets == study.budgets
    return other, open_budgets(other, 1437, 10)[0]


@dataclass
class InPairs:
    """In the sampler's place: proposes two points, waits until both have ended, and so on up to `most`."""

    most: int = 4
    asked: list[tuple[str | None, ...]] = field(default_factory=list)

    def __call__(self, sampler: str, space: Space, trials: Sequence[TrialState], **settings: object) -> Point | None:
        self.asked.append(tuple(trial.outcome for trial in trials))
        running = sum(trial.outcome is None for trial in trials)
        wait = running > 0 and len(trials) % 2 == 0
        return None if wait or len(trials) >= self.most else space.points()[len(trials)]


@pytest.fixture
def in_pairs(monkeypatch: pytest.MonkeyPatch) -> InPairs:
    sampler = InPairs()
    monkeypatch.setattr("search.director.propose", sampler)
    return sampler


def flying(world: World) -> list[str]:
    return [suggestion.trial for suggestion, _ in world.flying]


def end_oldest(world: World) -> None:
    count = len(world.flying)
    while len(world.flying) == count:
        world.step()


def test_while_a_sampler_waits_slices_begin_with_the_next_budget(
    study: Study, in_pairs: InPairs, tmp_path: Path
) -> None:
    with World(*trend_of(study), tmp_path, slices=3) as world:
        world.fill()
        assert flying(world) == ["4e9-FLOPs-000", "4e9-FLOPs-001", "8e9-FLOPs-000"]
        end_oldest(world)
        world.fill()
        assert flying(world) == ["4e9-FLOPs-001", "8e9-FLOPs-000", "8e9-FLOPs-001"], "one of the pair runs still"
        end_oldest(world)
        world.fill()
        assert flying(world) == ["8e9-FLOPs-000", "8e9-FLOPs-001", "4e9-FLOPs-002"], "the smaller budget goes first"


def test_when_every_budget_waits_there_is_none_to_be_had_yet_but_the_search_is_not_finished(
    study: Study, in_pairs: InPairs, tmp_path: Path
) -> None:
    with World(*trend_of(study), tmp_path, slices=9) as world:
        world.fill()
        assert len(world.flying) == 4
        assert world.director.suggest() is None
        assert not world.director.done
        assert told(tmp_path, "budget_closed") == []
        end_oldest(world)
        assert world.director.suggest() is None
        end_oldest(world)
        assert world.suggest().trial == "4e9-FLOPs-002"


def test_a_search_whose_sampler_waits_comes_to_its_end(study: Study, in_pairs: InPairs, tmp_path: Path) -> None:
    for slices in (1, 2, 3, 9):
        folder = tmp_path / str(slices)
        with World(*trend_of(study), folder, slices=slices) as world:
            world.run()
            assert isinstance(world.director.suggest(), Finished)
            assert world.director.done
        assert len(outcomes(folder)) == 8
        assert told(folder, "budget_closed") == ["4e9 FLOPs", "8e9 FLOPs"]


def test_a_sampler_that_waits_is_asked_again_when_something_has_happened_and_not_before(
    study: Study, in_pairs: InPairs, tmp_path: Path
) -> None:
    """Tune asks many times a second."""
    with World(*trend_of(study), tmp_path, slices=9) as world:
        world.fill()
        world.director.suggest()
        before = len(in_pairs.asked)
        for _ in range(100):
            assert world.director.suggest() is None
        assert len(in_pairs.asked) == before
        end_oldest(world)
        assert world.director.suggest() is None
        assert len(in_pairs.asked) > before


@pytest.mark.parametrize("outcome", ["failed", "diverged"])
def test_a_trial_that_was_waited_for_may_end_badly(
    study: Study, in_pairs: InPairs, tmp_path: Path, outcome: str
) -> None:
    with World(*trend_of(study), tmp_path, slices=2) as world:
        pair = [world.suggest().trial, world.suggest().trial]
        for trial in pair:
            ended = {"event": "ended", "outcome": outcome, "result": {"step": 0, "meter": {}}, "number": 0}
            world.director.take_events(trial, [{**ended, "attempt": 1}])
        assert world.suggest().trial == "4e9-FLOPs-002"


def test_interrupted_while_it_waits_it_finishes(study: Study, in_pairs: InPairs, tmp_path: Path) -> None:
    with World(*trend_of(study), tmp_path, slices=9) as world:
        world.fill()
        world.director.interrupted = True
        assert isinstance(world.director.suggest(), Finished)
        stopped = flying(world)
    with World(*trend_of(study), tmp_path, slices=9) as world:
        world.fill()
        assert flying(world) == stopped
        assert world.director.suggest() is None
        world.run()
        assert world.director.done
    assert len(outcomes(tmp_path)) == 8


def test_the_cap_ends_a_budget_whose_sampler_would_go_on(study: Study, in_pairs: InPairs, tmp_path: Path) -> None:
    for cap, trials, closed in ((2, 4, 1), (2, 4, 1), (3, 6, 2), (4, 8, 3), (10, 8, 4)):  # in one folder
        with World(*trend_of(study, trials=cap), tmp_path, slices=3) as world:
            world.run()
            assert world.director.done
            assert isinstance(world.director.suggest(), Finished)
        assert len(outcomes(tmp_path)) == trials
        assert told(tmp_path, "budget_closed").count("4e9 FLOPs") == closed


@pytest.fixture(scope="module")
def decided(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger's folder of a search with the trend sampler, one trial at a time."""
    folder = tmp_path_factory.mktemp("decided")
    with World(*trend_of(study, trials=9), folder, slices=1) as world:
        world.run()
        assert world.director.done
    return folder


def tried(folder: Path) -> list[tuple[str, str, float]]:
    records = [record for record in read_ledger(str(folder)) if record.event == "trial_suggested"]
    return [(record["trial"], record["variant"], record["learning_rate"]) for record in records]


def test_a_budget_that_is_decided_closes_with_fewer_trials_than_planned(study: Study, decided: Path) -> None:
    state = StudyState.of(read_ledger(str(decided)))
    for budget in state.budgets.values():
        assert budget.closed
        assert 1 <= len(budget.trials) < budget.trials_planned == 9
        assert budget.trials_total == len(budget.trials)
        assert budget.best is not None
        assert (budget.best.variant, budget.best.learning_rate) == ("F0", 0.4), "the script's best point"
    assert told(decided, "budget_closed") == ["4e9 FLOPs", "8e9 FLOPs"]


def test_a_decided_study_that_is_searched_again_starts_nothing(study: Study, decided: Path, tmp_path: Path) -> None:
    cut(decided, tmp_path / "again", 10_000)
    with World(*trend_of(study, trials=9), tmp_path / "again", slices=4) as world:
        before = len(world.ledger.records)
        assert world.director.done
        assert isinstance(world.director.suggest(), Finished)
        assert len(world.ledger.records) == before


def test_raising_the_cap_of_a_decided_study_asks_its_sampler_again(study: Study, decided: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raised"
    cut(decided, folder, 10_000)
    with World(*trend_of(study, trials=10), folder, slices=1) as world:
        assert not world.director.done
        world.run()
        assert world.director.done
    # what it is asked again is not what it was asked first: the smaller budget was decided on what it knew then
    assert tried(folder)[: len(tried(decided))] == tried(decided)
    assert told(folder, "budget_opened") == ["4e9 FLOPs", "8e9 FLOPs"] * 2
    assert sorted(told(folder, "budget_closed")) == ["4e9 FLOPs"] * 2 + ["8e9 FLOPs"] * 2


def test_without_any_doubt_a_budget_gets_all_of_its_trials(study: Study, tmp_path: Path) -> None:
    text = STUDY.replace("sampler: tpe, trials: 8", "sampler: trend, trials: 5, doubt: 0")
    other = read_study(text)
    with World(other, open_budgets(other, 1437, 10)[0], tmp_path) as world:
        world.run()
        assert world.director.done
    assert Counter(trial.budget for trial in world.director.state.trials.values()) == {"4e9 FLOPs": 5, "8e9 FLOPs": 5}


def test_killed_after_any_record_a_search_with_the_trend_tries_the_same_points(
    study: Study, decided: Path, tmp_path: Path
) -> None:
    whole, count = tried(decided), len(read_ledger(str(decided)))
    for kept in range(0, count + 1, 3):
        folder = tmp_path / str(kept)
        cut(decided, folder, kept)
        with World(*trend_of(study, trials=9), folder, slices=1) as world:
            world.run()
            assert world.director.done, kept
        assert tried(folder) == whole, kept
        assert outcomes(folder) == outcomes(decided), kept
        assert told(folder, "budget_closed") == ["4e9 FLOPs", "8e9 FLOPs"], kept


@pytest.mark.parametrize("slices", [2, 5])
def test_several_slices_do_not_try_a_point_twice_and_come_to_an_end(study: Study, tmp_path: Path, slices: int) -> None:
    with World(*trend_of(study), tmp_path, slices=slices) as world:
        world.run()
        assert world.director.done
        assert isinstance(world.director.suggest(), Finished)
    points = [(trial.budget, trial.variant, trial.learning_rate) for trial in world.director.state.trials.values()]
    assert len(set(points)) == len(points) <= 12


def test_memory_as_second_objective_is_what_the_plan_estimates(study: Study, tmp_path: Path) -> None:
    text = STUDY.replace("sampler: tpe, trials: 8", "sampler: random, trials: 2, second_objective: memory")
    other = read_study(text)
    with World(other, open_budgets(other, 1437, 10)[0], tmp_path) as world:
        world.run()
        assert world.director.done
    known = StudyState.of(read_ledger(str(tmp_path))).budgets["8e9 FLOPs"]
    assert known.second_objective == "memory"
    assert {cell["variant"]: cell["memory"] for cell in known.cells} == memory_by_variant(other, 10)
    assert costs_of("memory", world.director.state, known) == memory_by_variant(other, 10)


def test_memory_is_estimated_once_and_for_the_variants_that_a_budget_buys(tmp_path: Path) -> None:
    """It takes seconds for a large model, and slices wait for it."""
    text = STUDY.replace("sampler: tpe, trials: 8", "sampler: random, trials: 1, second_objective: memory")
    other = read_study(text.replace("[F0, F1]", "[F0, F7]").replace("min: 0.01", "min: 0.3"))
    budgets, _ = open_budgets(other, 1437, 10)
    assert [[cell.variant for cell in budget.cells] for budget in budgets] == [["F0"], ["F0"]]
    training_memory.cache_clear()
    with World(other, budgets, tmp_path) as world:
        world.run()
        assert world.director.done
    assert training_memory.cache_info().misses == 1


# ---------------------------------------------------------------- further seeds


def noisy(world: int, noise: float) -> Callable[[Suggestion], dict[str, Any]]:
    """How trials end where the loss depends on the seed, and F1 is as good as F0."""

    def outcome(suggestion: Suggestion) -> dict[str, Any]:
        config = TrialConfig.from_dict(suggestion.config)
        budget, rate = suggestion.trial.rsplit("-", 1)[0], config.optimiser.learning_rate
        chance = random.Random(f"{world} {budget} {config.model.variant} {rate} {config.seed}").gauss()
        loss = 2 * math.exp(0.02 * math.log2(rate / 0.4) ** 2 + noise * chance)
        return {"outcome": "finished", "result": {"heldout_loss": loss, "step": config.steps, "meter": {"flops": 1.0}}}

    return outcome


@pytest.mark.parametrize(("sampler", "seeds", "noise"), [("grid", 5, 0.1), ("trend", 3, 0.03), ("grid", 3, 0.01)])
def test_a_budget_never_takes_more_runs_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, seeds: int, noise: float
) -> None:
    """Where the noise is large, one lucky point after another looks best and is run again."""
    study = read_study(STUDY.replace("{sampler: tpe, trials: 8}", f"{{sampler: {sampler}, seeds: {seeds}}}"))
    budgets = open_budgets(study, 1437, 10)[0]
    for number in range(8):
        monkeypatch.setattr("tests.search.test_director.scripted_outcome", noisy(number, noise))
        with World(study, budgets, tmp_path / str(number), slices=3) as world:
            world.run()
            assert world.director.done
        for budget in budgets:
            known = world.director.state.budgets[budget.label]
            assert len(known.trials) <= budget.runs
            best = known.best
            assert best is not None
            of_best = [t for t in known.trials if (t.variant, t.learning_rate) == (best.variant, best.learning_rate)]
            assert len(of_best) == seeds or noise > 0.05
