"""Which changes of a study and its data let a run go on, and which are refused, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.budgets import open_budgets
from search.ledger import Record
from search.resume import as_begun, described, opened_again, refuse_changed_study, without_trials
from search.runs import SessionError
from search.state import BudgetState, StudyState, TrialState
from search.study import Study, read_study
from tests.search.test_director import STUDY as TWO_BUDGETS
from tests.search.test_director import World
from trainables.data import Splits, open_splits

STUDY = """
name: tiny
data: {source: digits, image_size: 8}
model: {variants: [F0, F1, F3], width: 0.0625, group_size: 8, stem: small}
budgets: [1e10 FLOPs]
epochs: {min: 0.25, max: 16}
"""
RATES = "learning_rate: {base: 0.4, factor: 2, min: 0.2, max: 1.6}"


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study(STUDY)


@pytest.fixture(scope="module")
def splits(study: Study) -> Splits:
    return open_splits(study.data_config())


def state_of(study: Study, splits: Splits, **identity: Any) -> StudyState:
    """A run of the study as its ledger has it; `identity` is what was different there, or more."""
    opened = {"run": "run-1", "identity": study.identity() | identity, **described(splits)}
    return StudyState(opened, {"1e10 FLOPs": BudgetState("1e10 FLOPs", 1e10, 1, [], frozenset())})


def refusal(changed: str, state: StudyState, splits: Splits) -> str:
    with pytest.raises(SessionError) as caught:
        refuse_changed_study(read_study(changed, source="tiny.yaml"), state, splits)
    message = str(caught.value)
    assert message.startswith("tiny.yaml: changed since run-1 of this study began (")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "changes",
    [
        ("max: 16", "max: 32"),
        ("min: 0.25", "min: 0.1"),
        ("[F0, F1, F3]", "[F0, F1]"),
        ("[F0, F1, F3]", "[F0, F1, F3, F7]"),
        ("source: digits", "source: digits, bad_images: skip"),
        ("[1e10 FLOPs]", "[1e10 FLOPs, 1.6e11 FLOPs]"),
        ("[1e10 FLOPs]", "[10 GFLOPs]"),
    ],
)
def test_a_study_may_grow_and_shrink_and_be_mended(changes: tuple[str, str], study: Study, splits: Splits) -> None:
    assert changes[0] in STUDY
    refuse_changed_study(read_study(STUDY.replace(*changes)), state_of(study, splits), splits)


def test_a_run_whose_identity_told_more_goes_on(study: Study, splits: Splits) -> None:
    """As earlier versions wrote it."""
    more = {"model.variants": ["F0"], "epochs.min": 1.0, "epochs.max": 2.0, "data.path": "/old", "data.bad_images": "x"}
    refuse_changed_study(study, state_of(study, splits, **more), splits)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("min: 0.25, max: 16", "grid: [1, 2]"), "epochs.grid: was None, now [1.0, 2.0]"),
        (("width: 0.0625", "width: 0.125"), "model.width: was 0.0625, now 0.125"),
        (("image_size: 8", "image_size: 8, flip: true"), "data.flip: was False, now True"),
    ],
)
def test_what_results_depend_on_is_named(changes: tuple[str, str], said: str, study: Study, splits: Splits) -> None:
    assert said in refusal(STUDY.replace(*changes), state_of(study, splits), splits)


def test_other_images_are_told_by_their_digest(study: Study, splits: Splits) -> None:
    assert "data_digest: was" in refusal(STUDY, state_of(study, splits), replace(splits, digest="0" * 64))


def test_core_hours_at_another_rate_are_another_budget(study: Study, splits: Splits) -> None:
    state = state_of(study, splits)
    state.budgets = {"1 core-hours": BudgetState("1 core-hours", 7.2e9, 1, [], frozenset())}
    text = STUDY.replace("1e10 FLOPs", "1 core-hours") + "compute: {flops_per_core_second: RATE}"
    refuse_changed_study(read_study(text.replace("RATE", "2e6")), state, splits)
    assert "budget 1 core-hours: was 7.2e+09 FLOPs, now 3.6e+09" in refusal(text.replace("RATE", "1e6"), state, splits)


def test_variants_that_come_when_all_trials_have_been_run_are_said() -> None:
    def warnings(trials: int, tried: str, rates: tuple[float, ...] = (0.4, 0.4, 0.8)) -> list[str]:
        study = read_study(STUDY + f"search: {{trials: {trials}}}\ntraining: {{batch_size: 16}}\n{RATES}")
        budgets, _ = open_budgets(study, 1617, 10)
        state = StudyState()
        state.budgets["1e10 FLOPs"] = known = BudgetState("1e10 FLOPs", 1e10, trials, [], frozenset())
        points = zip(tried.split(), rates, strict=True)
        known.trials = [SimpleNamespace(variant=variant, learning_rate=rate) for variant, rate in points]  # type: ignore[misc]
        return without_trials(study, state, budgets)

    assert warnings(3, "F0 F1 F0") == [
        "budget 1e10 FLOPs: all of its 3 trials have been run, none with F3; raise search.trials to have it tried"
    ]
    assert warnings(4, "F0 F1 F0") == []  # one is left
    assert warnings(3, "F0 F1 F3") == []
    assert warnings(3, "F0 F1 F7") == []  # one of a variant that was taken out does not count
    assert warnings(3, "F0 F1 F0", (12.8, 12.8, 12.8)) == []  # nor do those of a rate that was
    assert warnings(3, "F0 F1 F0", (0.4, 0.4, 0.4)) == []  # a further seed is no further point


def test_learning_rates_that_come_when_all_trials_have_been_run_are_said(trend: StudyState) -> None:
    wider = TREND.replace("min: 0.1", "min: 0.04")
    tried = {label: len(set(map(repr, map(point_of, known.trials)))) for label, known in trend.budgets.items()}
    for trials, left in ((min(tried.values()), False), (max(tried.values()) + 1, True)):
        study = read_study(wider.replace("trials: 3", f"trials: {trials}"))
        lines = without_trials(study, trend, open_budgets(study, 1437, 10)[0])
        assert all(f"all of its {trials} trials have been run, none with " in line for line in lines)
        assert [line.endswith("learning rate 0.05; raise search.trials to have it tried") for line in lines] == (
            [] if left else [True, True]
        )
    same = read_study(TREND.replace("trials: 3", f"trials: {min(tried.values())}"))
    assert "learning rate" not in "".join(without_trials(same, trend, open_budgets(same, 1437, 10)[0]))


def point_of(trial: TrialState) -> tuple[str, float]:
    return trial.variant, trial.learning_rate


# ---------------------------------------------------------------- what was begun by an earlier version

UNNAMED = TWO_BUDGETS.replace("search: {sampler: tpe, trials: 8}", "")


def searched(text: str, folder: Path) -> list[Record]:
    """The ledger of a search of a study in a folder, begun or gone on with."""
    study = read_study(text)
    with World(study, open_budgets(study, 1437, 10)[0], folder) as world:
        if not world.ledger.records:
            world.director.write("study_opened", run="run-1")
        world.run()
        assert world.director.done
        return list(world.ledger.records)


def before_trend(records: list[Record]) -> list[Record]:
    """As versions wrote it whose default sampler was tpe."""
    new = {"seeds", "doubt", "second_objective", "learning_rates"}
    return [replace(record, fields={k: v for k, v in record.fields.items() if k not in new}) for record in records]


def test_a_study_that_was_done_with_the_default_of_then_is_done(tmp_path: Path) -> None:
    records = before_trend(searched(TWO_BUDGETS.replace(", trials: 8", ""), tmp_path))
    state = StudyState.of(records)
    study, lines = as_begun(read_study(UNNAMED, source="tiny.yaml"), records)
    assert (study.search.sampler, study.source) == ("tpe", "tiny.yaml")
    assert lines == [
        "run-1 began when sampler tpe was the default, and goes on with it; set search.sampler: trend to change that"
    ]
    budgets = open_budgets(study, 1437, 10)[0]
    assert state.covers(budgets)
    assert opened_again(state, budgets) == []


@pytest.mark.parametrize("sampler", ["trend", "tpe", "grid"])
def test_a_sampler_that_the_study_names_is_taken(sampler: str, tmp_path: Path) -> None:
    records = before_trend(searched(TWO_BUDGETS.replace(", trials: 8", ""), tmp_path))
    study = read_study(UNNAMED + f"search: {{sampler: {sampler}}}")
    assert as_begun(study, records) == (study, [])


def test_what_was_begun_with_the_default_of_today_or_not_at_all_goes_on_with_it(tmp_path: Path) -> None:
    study = read_study(UNNAMED)
    records = searched(UNNAMED, tmp_path)
    for known in ([], records[:1], records):
        assert as_begun(study, known) == (study, [])


def test_a_budget_that_is_added_to_a_study_of_an_earlier_version_changes_no_sampler(tmp_path: Path) -> None:
    first = before_trend(searched(TWO_BUDGETS.replace(", trials: 8", "").replace(", 8e9 FLOPs", ""), tmp_path))
    records = [*first, *searched(TWO_BUDGETS.replace(", trials: 8", ""), tmp_path)[len(first) :]]
    assert as_begun(read_study(UNNAMED), records)[0].search.sampler == "tpe"


# ---------------------------------------------------------------- budgets that are opened again

TREND = UNNAMED + "search: {sampler: trend, trials: 3, seeds: 2, doubt: 0.15}\n"


@pytest.fixture(scope="module")
def trend(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    return StudyState.of(searched(TREND, tmp_path_factory.mktemp("trend")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("doubt: 0.15", "doubt: 0.15"), None),
        (("trials: 3", "trials: 2"), None),
        (("trials: 3", "trials: 4"), "4 trials instead of 3"),
        (("seeds: 2", "seeds: 3"), "3 seeds instead of 2"),
        (("seeds: 2", "seeds: 1"), None),
        (("doubt: 0.15", "doubt: 0.1"), "doubt 0.1 instead of 0.15"),
        (("doubt: 0.15", "doubt: 0.2"), None),
        (("doubt: 0.15", "second_objective: parameters"), "second objective parameters"),
        (("min: 0.1", "min: 0.04"), "learning rates 0.05"),
        (("min: 0.1", "min: 0.2"), None),
        (("[F0, F1]", "[F0]"), "variants F0"),
        (("trend, trials: 3", "grid, trials: 10"), "10 trials instead of 3, doubt 0 instead of 0.15"),
    ],
)
def test_a_closed_budget_that_is_opened_again_is_named_with_what_for(
    changes: tuple[str, str], said: str | None, trend: StudyState
) -> None:
    assert changes[0] in TREND
    budgets = open_budgets(read_study(TREND.replace(*changes)), 1437, 10)[0]
    assert trend.covers(budgets) == (said is None)
    assert opened_again(trend, budgets) == [
        f"budget {label} is opened again: {said}" for label in ("4e9 FLOPs", "8e9 FLOPs") if said is not None
    ]


def test_a_new_budget_is_not_opened_again(trend: StudyState) -> None:
    study = read_study(TREND.replace("8e9 FLOPs]", "8e9 FLOPs, 3e10 FLOPs]"))
    assert opened_again(trend, open_budgets(study, 1437, 10)[0]) == []
