"""The folders of a study's runs: which there are, and which one a search goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.ledger import Ledger, LedgerError
from search.runs import RunFolder, choose_run, find_runs, local_folder, newest_begun, prepare_storage
from search.study import Study, read_study


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def study(storage: str = "runs") -> Study:
    return read_study(
        f"name: tiny\ndata: {{source: digits, image_size: 32}}\nbudgets: [1e10 FLOPs]\nstorage: '{storage}'"
    )


def begin(*runs: str) -> None:
    """Each run with one event in its ledger."""
    for run in runs:
        with Ledger(f"runs/tiny/{run}") as ledger:
            ledger.append("study_opened", run=run)


def test_runs_are_counted_up_and_the_newest_is_gone_on_with() -> None:
    assert choose_run(study(), fresh=False).run == choose_run(study(), fresh=True).run == "run-1"
    begin("run-1", "run-2", "run-10")
    Path("runs/tiny/notes").mkdir()
    assert [run.run for run in find_runs(study())] == ["run-1", "run-2", "run-10"]
    assert choose_run(study(), fresh=False).run == "run-10"
    assert choose_run(study(), fresh=True).run == "run-11"


def test_a_run_that_never_began_hides_no_earlier_one() -> None:
    begin("run-1")
    Ledger("runs/tiny/run-2").close()
    Path("runs/tiny/run-3/logs").mkdir(parents=True)
    assert choose_run(study(), fresh=False).run == "run-1"
    assert choose_run(study(), fresh=True).run == "run-4"
    begun = newest_begun(study())
    assert begun is not None
    assert (begun[0].run, begun[1][0]["run"]) == ("run-1", "run-1")


def test_where_no_run_has_begun_the_one_that_another_search_may_be_beginning_is_taken() -> None:
    with Ledger("runs/tiny/run-1"):
        chosen = choose_run(study(), fresh=False)
        assert chosen.run == "run-1"
        with pytest.raises(LedgerError, match="another search of this study is running"):
            Ledger(chosen.url)
    assert newest_begun(study()) is None


def test_a_damaged_ledger_is_neither_passed_over_nor_in_the_way_of_a_fresh_run() -> None:
    begin("run-1", "run-2")
    Path("runs/tiny/run-2/ledger.jsonl").write_text("{broken\n{}\n")
    with pytest.raises(LedgerError, match=r"run-2/ledger\.jsonl: line 1 is not an event"):
        choose_run(study(), fresh=False)
    assert choose_run(study(), fresh=True).run == "run-3"


def test_runs_in_remote_storage() -> None:
    remote = study("memory://test-runs/runs/")
    prepare_storage(remote)
    assert find_runs(remote) == []
    with Ledger(choose_run(remote, fresh=False).url) as ledger:
        ledger.append("study_opened")
    Ledger(choose_run(remote, fresh=True).url).close()
    assert [run.url for run in find_runs(remote)] == [f"memory://test-runs/runs/tiny/run-{n}" for n in (1, 2)]
    assert choose_run(remote, fresh=False).run == "run-1"
    assert find_runs(remote)[0].local is None


def test_runs_of_one_name_in_two_remote_storages_share_no_local_files() -> None:
    def local(storage: str) -> Path:
        return local_folder(study(storage), RunFolder(f"{study(storage).storage_url}/tiny/run-1", "run-1"))

    assert local("memory://one") == local("memory://one/")
    assert local("memory://one") != local("memory://two")
    assert local("memory://one").is_relative_to(Path.home() / ".cache" / "convscale")
    assert local("here") == Path.cwd() / "here" / "tiny" / "run-1"
