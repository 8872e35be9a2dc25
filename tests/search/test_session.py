"""What a search comes to."""

from __future__ import annotations

from pathlib import Path

from search.budgets import Budget, open_budgets
from search.data import open_data
from search.ledger import read_ledger
from search.runs import RunFolder
from search.session import exit_status, open_study
from search.state import StudyState
from search.study import load_study
from tests.search.ledgers import synthetic_records
from tests.search.test_director import STUDY, World


def test_only_the_budgets_that_a_study_has_decide_its_exit_status() -> None:
    state = StudyState.of(synthetic_records(budgets=[1e13, 2e13], trials=2))
    one, two = (Budget(known.label, known.flops, 0, (), 2) for known in state.budgets.values())
    assert exit_status(state, [one, two]) == 0
    for trial in state.budgets[two.label].trials:
        trial.outcome = "diverged"
    assert exit_status(state, [one, two]) == 1
    assert exit_status(state, [one]) == 0


def test_a_password_in_the_study_file_stays_there(tmp_path: Path) -> None:
    file, run = tmp_path / "tiny.yaml", tmp_path / "run-1"
    file.write_text(f"{STUDY}tracking: {{uri: 'http://me:secret@mlflow.example:5000'}}  # of ours\n")
    study = load_study(file)
    with World(study, open_budgets(study, 1437, 10)[0], run) as world:
        open_study(world.director, study, file, RunFolder(str(run), "run-1"), open_data(study), "cpu", {})
    (opened,) = read_ledger(str(run))
    kept = f"{STUDY}tracking: {{uri: 'http://mlflow.example:5000'}}  # of ours\n"
    assert (opened["study_file"], (run / "study.yaml").read_text()) == (kept, kept)
    assert load_study(run / "study.yaml").identity() == study.identity()
