"""What a search comes to."""

from __future__ import annotations

from search.budgets import Budget
from search.session import exit_status
from search.state import StudyState
from tests.search.ledgers import synthetic_records


def test_only_the_budgets_that_a_study_has_decide_its_exit_status() -> None:
    state = StudyState.of(synthetic_records(budgets=[1e13, 2e13], trials=2))
    one, two = (Budget(known.label, known.flops, 0, (), 2) for known in state.budgets.values())
    assert exit_status(state, [one, two]) == 0
    for trial in state.budgets[two.label].trials:
        trial.outcome = "diverged"
    assert exit_status(state, [one, two]) == 1
    assert exit_status(state, [one]) == 0
