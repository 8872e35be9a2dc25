"""Which changes of a study and its data let a run go on, and which are refused, by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from search.budgets import open_budgets
from search.resume import described, refuse_changed_study, without_trials
from search.runs import SessionError
from search.state import BudgetState, StudyState
from search.study import Study, read_study
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
