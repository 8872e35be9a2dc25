"""The fold of a ledger into budgets and trials."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.ledger import Record
from search.state import StudyState, TrialState
from tests.search.ledgers import BUDGETS, synthetic_records

RECORDS = synthetic_records(trials=15, fail=2)


def told(event: str) -> list[Record]:
    return [record for record in RECORDS if record.event == event]


def test_a_whole_ledger_becomes_budgets_and_trials_in_the_order_of_suggestion() -> None:
    state = StudyState.of(RECORDS)
    assert state.ended
    assert state.opened["study"] == "digits"
    assert [budget.flops for budget in state.budgets.values()] == list(BUDGETS)
    assert all(budget.closed and budget.trials_planned == 15 for budget in state.budgets.values())
    assert list(state.trials) == [record["trial"] for record in told("trial_suggested")]
    assert [trial for budget in state.budgets.values() for trial in budget.trials] == list(state.trials.values())
    assert {trial.outcome for trial in state.trials.values()} == {"finished", "diverged", "failed"}


def test_an_ended_trial_has_its_result() -> None:
    state = StudyState.of(RECORDS)
    for record in told("trial_ended"):
        trial = state.trials[record["trial"]]
        assert (trial.outcome, trial.result) == (record["outcome"], record["result"])
        assert (trial.step, trial.meter) == (record["result"]["step"], record["result"]["meter"])
        if trial.outcome == "finished":
            assert trial.heldout_loss == record["result"]["heldout_loss"]
        else:
            assert math.isnan(trial.heldout_loss)


def test_the_best_trial_is_the_finished_one_of_lowest_held_out_loss() -> None:
    state = StudyState.of(RECORDS)
    assert [budget.best and budget.best.trial_id for budget in state.budgets.values()] == [
        record["best"] for record in told("budget_closed")
    ]


@pytest.mark.parametrize("outcome", ["diverged", "failed", None])
def test_a_trial_that_did_not_finish_is_never_the_best(outcome: str | None) -> None:
    records = synthetic_records(budgets=BUDGETS[:1], trials=4)
    ends = [record for record in records if record.event == "trial_ended"]
    for record in ends[1:]:  # all but the first; with a loss that would be the best of all
        record.fields["outcome"] = outcome
        record.fields["result"] |= {"heldout_loss": 0.0}
    (budget,) = StudyState.of(records).budgets.values()
    assert budget.best is budget.trials[0]
    ends[0].fields["outcome"] = outcome
    (budget,) = StudyState.of(records).budgets.values()
    assert budget.best is None


def test_a_trial_in_training_has_its_attempt_its_checkpoint_and_what_it_last_reported() -> None:
    end = told("trial_ended")[0]
    state = StudyState.of(RECORDS[: end.seq])
    trial = state.trials[end["trial"]]
    progressed = told("trial_progressed")[0]
    assert trial.outcome is None
    assert (trial.attempt, trial.step, trial.checkpoint_step) == (1, progressed["step"], progressed["step"])
    assert trial.meter == progressed["meter"]
    assert trial.suggested_at == told("trial_suggested")[0].time

    again = Record(end.seq, end.time, "trial_started", {"trial": end["trial"], "attempt": 2, "step": 3, "slice": 0})
    state.apply(again)
    assert (trial.attempt, trial.step) == (2, 3)
    assert trial.meter == progressed["meter"]  # the new attempt reckons on from it


def test_an_ended_trial_without_a_meter_keeps_the_last_one_it_reported() -> None:
    end = told("trial_ended")[0]
    state = StudyState.of(RECORDS[: end.seq])
    before = state.trials[end["trial"]].meter
    state.apply(Record(end.seq, end.time, "trial_ended", {"trial": end["trial"], "outcome": "failed", "result": {}}))
    assert state.trials[end["trial"]].meter == before != {}


def test_a_budget_that_is_opened_again_keeps_its_trials_and_is_no_longer_closed() -> None:
    state = StudyState.of(RECORDS)
    opened = told("budget_opened")[0]
    state.apply(Record(len(RECORDS), 2e9, "budget_opened", {**opened.fields, "trials": 20}))
    budget = state.budgets[opened["budget"]]
    assert (budget.trials_planned, budget.closed, len(budget.trials)) == (20, False, 15)


def test_a_budget_that_is_opened_with_other_variants_waits_for_theirs_and_keeps_the_cells_of_the_others() -> None:
    state, opened = StudyState.of(RECORDS), told("budget_opened")[0]
    f0, f1, f3 = opened["cells"]
    f7 = {**f3, "variant": "F7"}
    state.apply(Record(len(RECORDS), 2e9, "budget_opened", {**opened.fields, "cells": [f7, f0]}))
    budget = state.budgets[opened["budget"]]
    assert (budget.variants, budget.cells) == ({"F7", "F0"}, [f0, f1, f3, f7])
    assert budget.ended
    (other, own) = (next(t for t in budget.trials if t.variant == variant) for variant in ("F3", "F0"))
    other.outcome = None
    assert budget.ended
    own.outcome = None
    assert not budget.ended


def test_only_trials_of_its_variants_count_towards_what_a_budget_plans() -> None:
    state, opened = StudyState.of(RECORDS), told("budget_opened")[0]
    budget = state.budgets[opened["budget"]]
    assert (budget.trials_counted, budget.trials_total) == (budget.trials, 15)
    state.apply(
        Record(len(RECORDS), 2e9, "budget_opened", {**opened.fields, "trials": 7, "cells": opened["cells"][:1]})
    )
    assert [trial.variant for trial in budget.trials_counted] == ["F0"] * 5
    assert (len(budget.trials), budget.trials_total) == (15, 7)
    state.apply(
        Record(len(RECORDS), 2e9, "budget_opened", {**opened.fields, "trials": 2, "cells": opened["cells"][:1]})
    )
    assert budget.trials_total == 5


def test_a_study_that_is_taken_up_again_has_not_ended() -> None:
    state = StudyState.of(RECORDS)
    state.apply(Record(len(RECORDS), 2e9, "session_started", {"host": "h"}))
    assert not state.ended


def test_events_of_a_later_version_are_passed_over() -> None:
    strange = [Record(0, 0.0, "budget_split", {"what": "ever"}), Record(0, 0.0, "trial_paused", {"trial": "none"})]
    assert StudyState.of([*strange, *RECORDS[:40], *strange, *RECORDS[40:], *strange]) == StudyState.of(RECORDS)


@given(cut=st.integers(0, len(RECORDS)))
def test_the_state_of_a_ledger_can_be_taken_up_anywhere(cut: int) -> None:
    state = StudyState.of(RECORDS[:cut])
    for record in RECORDS[cut:]:
        state.apply(record)
    assert state == StudyState.of(RECORDS)


def test_an_empty_ledger_is_an_empty_state() -> None:
    state = StudyState.of([])
    assert (state.opened, state.budgets, state.trials, state.ended) == ({}, {}, {}, False)


def test_trials_suggested_are_in_the_state_with_all_that_the_ledger_says_of_them() -> None:
    for record in told("trial_suggested"):
        trial = StudyState.of(RECORDS).trials[record["trial"]]
        assert isinstance(trial, TrialState)
        for key in ("budget", "variant", "epochs", "steps", "learning_rate", "seed", "flops", "parameters", "params"):
            assert getattr(trial, key) == record[key]
