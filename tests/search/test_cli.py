"""The command line: what a mistake looks like (one line, status 2, before any cluster), and the commands that train
nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from search import cli, session
from search.budgets import open_budgets
from search.ledger import Ledger, read_ledger
from search.programs import Programs
from search.rates import core_hour_rates
from search.resume import described, refuse_changed_study
from search.runs import SessionError
from search.state import StudyState
from search.study import Study, read_study
from search.tracking import SyncReport
from search.views import Views
from tests.search.ledgers import synthetic_records
from tests.search.programs import compiled
from tests.search.test_director import World
from tests.trainables.shard_sets import write_shards
from trainables.data import Splits, open_splits

STUDY: dict[str, Any] = {
    "name": "digits",
    "data": {"source": "digits", "image_size": 8},
    "model": {"variants": ["F0", "F1"], "width": 0.0625, "group_size": 8, "stem": "small"},
    "budgets": ["4e9 FLOPs", "8e9 FLOPs"],
    "epochs": {"min": 0.01, "max": 100},
    "learning_rate": {"base": 0.4, "min": 0.1, "max": 1.6},
    "search": {"trials": 4},
    "training": {"batch_size": 64, "precision": "float32"},
    "compute": {"device": "cpu", "slices": 1, "cores_per_slice": 1},
    "storage": "runs",
}


class ClusterStartedError(AssertionError):
    """A search got as far as its cluster."""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command runs in a folder of its own, and none may start Ray."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise ClusterStartedError

    import ray

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def write_study(**changes: Any) -> None:
    """digits.yaml in the working directory; a change of None leaves a field out."""
    values = {key: value for key, value in (STUDY | changes).items() if value is not None}
    Path("digits.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls convscale with arguments, in this process; its exit status, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convscale", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return left.value.code or 0, out, err  # type: ignore[return-value]

    return call


@pytest.fixture
def refused(called: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Calls convscale with a mistake in it; the one line that it must end with, and nothing but that line."""

    def call(*arguments: str) -> str:
        status, out, err = called(*arguments)
        assert status == 2, err
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("convscale: ")
        return line

    return call


def open_run(
    run: str = "run-1", *, data: Mapping[str, Any] | None = None, until: int | None = None, **identity: Any
) -> Path:
    """A run of digits.yaml as an earlier search would have left it; `identity` and `data` are what differed then.
    `until` cuts the ledger off after so many records.
    """
    study = read_study(Path("digits.yaml").read_text())
    folder = Path(study.storage_url) / study.name / run
    with Ledger(str(folder)) as ledger:
        for record in synthetic_records(trials=2, until=until):
            fields = record.fields
            if record.event == "study_opened":
                fields |= described(open_splits(study.data_config())) | (data or {})
                fields |= {"identity": study.identity() | identity, "run": run}
            ledger.append(record.event, **fields)
    return folder


# ---------------------------------------------------------------- mistakes in the study file, for each command

COMMANDS = ("plan", "search", "results", "sync")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_study_file_that_is_not_there(command: str, refused: Callable[..., str]) -> None:
    write_study()
    assert refused(command, "digit.yaml") == (
        "convscale: digit.yaml: no such file; did you mean digits.yaml?"
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_yaml_that_is_broken_is_named_by_line_and_column(command: str, refused: Callable[..., str]) -> None:
    Path("digits.yaml").write_text("name: digits\ndata: {source: digits\nbudgets: [1]\n")
    assert refused(command, "digits.yaml").startswith("convscale: digits.yaml:3:")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rat": {"base": 1}}, ["learning_rat: unknown field", "did you mean learning_rate?"]),
        ({"search": {"sampler": "tpa"}}, ['search.sampler: "tpa" given', "'tpe', 'gp', 'random' or 'grid'"]),
        ({"compute": {"workers_per_slice": 3}, "training": {"batch_size": 64, "eval_batch_size": 3}},
         ["training.batch_size: 64 given", "multiples of compute.workers_per_slice (3)", "use 63"]),
        ({"budgets": None}, ["budgets: missing; add it"]),
    ],
)  # fmt: skip
def test_a_wrong_field(command: str, changes: dict[str, Any], said: list[str], refused: Callable[..., str]) -> None:
    write_study(**changes)
    line = refused(command, "digits.yaml")
    assert line.startswith("convscale: digits.yaml: ")
    assert [part for part in said if part not in line] == []


def test_two_mistakes_are_two_lines(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study(colour="red", training={"momentum": 2})
    status, out, err = called("search", "digits.yaml")
    assert (status, out) == (2, "")
    assert [line.split(":")[:3] for line in err.splitlines()] == [
        ["convscale", " digits.yaml", " training.momentum"],
        ["convscale", " digits.yaml", " colour"],
    ]


# ---------------------------------------------------------------- mistakes that the machine shows


@pytest.mark.parametrize("command", ["plan", "search"])
def test_a_data_folder_that_is_not_there(command: str, refused: Callable[..., str]) -> None:
    write_study(data={"source": "folder", "path": "my-images", "image_size": 8})
    for _ in range(2):
        line = refused(command, "digits.yaml")
        assert line.startswith("convscale: digits.yaml: data.path: ")
        assert "my-images" in line
        Path("my-images").mkdir(exist_ok=True)  # and one that is empty


@pytest.mark.parametrize("command", ["plan", "search"])
@pytest.mark.parametrize("uri", ["ftp://host/x", "localhost:5000", "http://", "sqlite:///", "http://host:port"])
def test_a_malformed_tracking_address(command: str, uri: str, refused: Callable[..., str]) -> None:
    write_study(tracking={"uri": uri})
    line = refused(command, "digits.yaml")
    assert line.startswith("convscale: digits.yaml: tracking.uri: tracking address")
    assert uri in line
    assert "sqlite:////absolute/path/mlflow.db" in line


def test_storage_that_cannot_be_written_to(refused: Callable[..., str]) -> None:
    write_study()
    Path("runs").write_text("a file in its place")
    line = refused("search", "digits.yaml")
    assert "digits.yaml: storage: 'runs' given, but it cannot be written to" in line
    assert "name a folder or address that can be" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("storage", ["nosuch://bucket/runs", "abfs-of-nobody://x"])
def test_storage_of_an_unknown_kind(command: str, storage: str, refused: Callable[..., str]) -> None:
    write_study(storage=storage)
    assert f"digits.yaml: storage: '{storage}' given" in refused(command, "digits.yaml")


def test_core_hours_without_a_rate(refused: Callable[..., str]) -> None:
    write_study(budgets=["1 core-hours"], compute={"device": "cpu"})
    assert "set compute.flops_per_core_second" in refused("search", "digits.yaml")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["plan", "search"])
def test_a_precision_that_the_machine_lacks(
    command: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    write_study(training={"batch_size": 64})
    line = refused(command, "digits.yaml")
    assert line == "convscale: digits.yaml: training.precision: precision 'bfloat16' is not there on CPU: use float32"
    assert not Path("runs").exists()


@pytest.mark.parametrize("place", ["logs", "ledger.lock", "ledger.jsonl"])
def test_a_run_whose_files_cannot_be_written(place: str, refused: Callable[..., str]) -> None:
    """Something that is no file of ours stands in its place, which root's rights do not help with."""
    write_study()
    blocked = Path("runs/digits/run-1", place)
    if place == "logs":
        blocked.parent.mkdir(parents=True)
        blocked.touch()
    else:
        blocked.mkdir(parents=True)
    line = refused("search", "digits.yaml")
    assert line.startswith(f"convscale: {blocked.absolute()}: ")
    assert line.endswith("; mend that, and start again")


def test_a_tpu_that_is_not_there(refused: Callable[..., str]) -> None:
    write_study(compute={"device": "tpu"})
    assert refused("search", "digits.yaml") == (
        "convscale: digits.yaml: compute.device: 'tpu' given, and this machine has no TPU; set compute.device to auto "
        "or cpu, or name a cluster with --address"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [["plan"], ["search"], ["plan", "--device", "tpu-v4"]])
def test_a_batch_that_xla_cannot_split(arguments: list[str], refused: Callable[..., str]) -> None:
    write_study(
        training={"batch_size": 66, "precision": "float32"}, compute={"device": "xla-cpu", "cores_per_slice": 4}
    )
    assert refused(*arguments, "digits.yaml").startswith(
        "convscale: digits.yaml: training.batch_size: 66 given; allowed: multiples of the 4 "
    )


@pytest.mark.parametrize("command", ["search", "plan"])
def test_shards_that_are_not_as_declared(command: str, refused: Callable[..., str]) -> None:
    write_shards("images", train=[(0, b"x")] * 6, heldout=[(2, b"x")] * 2)
    declared = {"train_images": 7, "heldout_images": 2, "classes": 3}
    write_study(data={"source": "shards", "path": "images", "image_size": 8, "declared": declared})
    assert refused(command, "digits.yaml") == (
        "convscale: digits.yaml: data.declared.train_images: 7 given, and the data have 6; correct data.declared, or "
        "leave it out"
    )


def test_shards_that_are_not_there(refused: Callable[..., str]) -> None:
    declared = {"train_images": 7, "heldout_images": 2, "classes": 3}
    write_study(data={"source": "shards", "path": "images", "image_size": 8, "declared": declared})
    assert refused("search", "digits.yaml").startswith("convscale: digits.yaml: data.path: 'images' does not exist; ")


def test_a_device_that_no_plan_is_for(refused: Callable[..., str]) -> None:
    write_study()
    assert refused("plan", "digits.yaml", "--device", "v5e") == (
        "convscale: --device: 'v5e' given; allowed: tpu-v4; leave it out for the study's own"
    )


def test_a_file_that_programs_cannot_be_recorded_in(refused: Callable[..., str]) -> None:
    """Each is refused before anything is compiled, and what is in them stays."""
    write_study()
    for given in ("[1]", "[]", "1", '{"a": 1}', '{"a": {"b": 1}}', '{"a": {"format": 2}}', "not JSON"):
        Path("digits.json").write_text(given)
        assert refused("aot", "digits.yaml", "--record", "digits.json").startswith(
            "convscale: --record: digits.json given, but programs cannot be recorded in it ("
        )
        assert Path("digits.json").read_text() == given
    assert "(No such file or directory); name" in refused("aot", "digits.yaml", "--record", "nowhere/x.json")


def test_gpus_that_are_not_there(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    write_study(compute={"device": "cuda", "slices": 2})
    line = refused("search", "digits.yaml")
    assert "compute.device: 'cuda' given" in line
    assert "(2), but this machine has 1; lower compute.slices" in line


# ---------------------------------------------------------------- mistakes that an earlier run shows


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_ledger(command: str, refused: Callable[..., str]) -> None:
    write_study()
    path = open_run() / "ledger.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "{broken", *lines[3:]]) + "\n")
    line = refused(command, "digits.yaml")
    assert f"{path}: line 3 is not an event" in line
    assert "--fresh" in line


def test_a_changed_study_is_named_by_its_field(refused: Callable[..., str]) -> None:
    write_study()
    open_run(**{"training.momentum": 0.5})
    line = refused("search", "digits.yaml")
    assert "digits.yaml: changed since run-1 of this study began (training.momentum: was 0.5, now 0.9)" in line
    assert "--fresh" in line


def test_a_budget_that_changed_its_size(refused: Callable[..., str]) -> None:
    write_study(budgets=["1 core-hours"], compute={"device": "cpu", "flops_per_core_second": 1e6})
    folder = open_run()
    with Ledger(str(folder)) as ledger:
        ledger.append("budget_opened", budget="1 core-hours", index=0, flops=7.2e9, trials=1, cells=[])
    assert "budget 1 core-hours: was 7.2e+09 FLOPs, now 3.6e+09" in refused("search", "digits.yaml")


@pytest.fixture
def digits() -> tuple[Study, Splits]:
    study = read_study(yaml.safe_dump(STUDY))
    return study, open_splits(study.data_config())


@pytest.mark.parametrize(("key", "was"), [("train_examples", 1437), ("heldout_examples", 361), ("classes", 9)])
def test_data_that_changed_is_told(key: str, was: int, refused: Callable[..., str]) -> None:
    write_study()
    open_run(data={key: was})
    line = refused("search", "digits.yaml")
    assert f"changed since run-1 of this study began ({key}: was {was}, now " in line
    assert "restore the study and its data" in line
    assert "--fresh" in line


@pytest.mark.parametrize(("was", "now", "same"), [("ab", "ab", True), ("ab", "cd", False), (None, "cd", True)])
def test_data_of_the_same_size_is_told_by_its_digest(
    was: str | None, now: str, same: bool, digits: tuple[Study, Splits]
) -> None:
    study, splits = digits
    opened = {"identity": study.identity(), "run": "run-1", **described(splits), "data_digest": was}
    with contextlib.nullcontext() if same else pytest.raises(SessionError, match="data_digest: was ab, now cd"):
        refuse_changed_study(study, StudyState(opened=opened), replace(splits, digest=now))


def test_many_changes_are_cut_short(digits: tuple[Study, Splits]) -> None:
    study, splits = digits
    opened = {"identity": dict.fromkeys(study.identity(), "other"), "run": "run-2"}
    with pytest.raises(SessionError, match=r"; and \d+ more\)") as caught:
        refuse_changed_study(study, StudyState(opened=opened), splits)
    assert len(str(caught.value)) < 500


def test_what_changes_no_result_may_change(digits: tuple[Study, Splits]) -> None:
    study, splits = digits
    changes: dict[str, Any] = {"budgets": ["4e9 FLOPs"], "search": {"trials": 9, "sampler": "gp"}, "storage": "there"}
    changed = read_study(yaml.safe_dump(STUDY | changes))
    opened = {"identity": study.identity(), "run": "run-1", **described(splits)}
    refuse_changed_study(changed, StudyState(opened=opened), splits)


def test_a_search_that_is_running_already(refused: Callable[..., str]) -> None:
    write_study()
    with Ledger(str(open_run())):
        assert "another search of this study is running" in refused("search", "digits.yaml")


@pytest.mark.parametrize("arguments", [[], ["--fresh"]])
def test_a_study_that_is_right_gets_as_far_as_the_cluster(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """So the refusals above are not refusals of everything, and `--fresh` gets past a changed study."""
    write_study()
    open_run(**({"training.momentum": 0.5} if arguments else {}))
    monkeypatch.setattr(sys, "argv", ["convscale", "search", "digits.yaml", *arguments])
    with pytest.raises(ClusterStartedError):
        cli.main()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- a search without a cluster


class NoFleet:
    """Stands in for a `Fleet`: leases nothing. `last` is the newest one."""

    last: NoFleet

    def __init__(self, plan: Any, *, address: str | None, logs: Path | None = None) -> None:
        self.plan, self.address, self.logs, self.patience_s = plan, address, logs, 20.0
        NoFleet.last = self
        self.say: Callable[[str], None] = print

    def __enter__(self) -> NoFleet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lease(self) -> None:
        pass


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Has every search call a function in place of running trials, and no figure drawn."""

    def search_by(run: Callable[..., None]) -> None:
        monkeypatch.setattr("search.slices.Fleet", NoFleet)
        monkeypatch.setattr("search.driver.run", run)
        monkeypatch.setattr(session, "write_results", lambda *_: pytest.fail("figures were drawn"))

    return search_by


def interrupted_again(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_a_second_interrupt_ends_the_search_as_interrupted_and_draws_nothing(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    monkeypatch.setattr(Views, "close", lambda self, timeout_s: waited.append(timeout_s))
    monkeypatch.setattr(Views, "undelivered", 7)
    searches(interrupted_again)
    write_study(tracking={"enabled": False})
    status, out, err = called("search", "digits.yaml")
    assert (status, err) == (130, "")
    assert out.splitlines()[-2:] == [
        "7 events are not in MLflow; bring them with: convscale sync digits.yaml",
        "interrupted; go on with: convscale search digits.yaml",
    ]
    assert read_ledger("runs/digits/run-1")[-1].fields == {"reason": "interrupted"}
    assert waited == [2]
    assert NoFleet.last.patience_s == 1
    assert NoFleet.last.logs == Path.cwd() / "runs/digits/run-1/logs"  # where the search's own log is


def test_a_run_keeps_the_rate_by_which_its_core_hours_were_converted(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]]
) -> None:
    """And goes on by it, whatever is compiled since: its budgets stay the same FLOPs."""
    searches(interrupted_again)
    write_study(budgets=["0.0001 TPU-v4 core-hours"], tracking={"enabled": False}, epochs={"min": 0.001, "max": 1e6})
    assert called("search", "digits.yaml")[0] == 130
    opened = read_ledger("runs/digits/run-1")[0]
    assert opened.fields["core_hour_rates"] == {"TPU-v4": pytest.approx(0.29 * 137.5e12)}
    study = read_study(Path("digits.yaml").read_text())
    Programs(study).put(compiled(study))
    assert core_hour_rates(study, 10, {}) != opened.fields["core_hour_rates"]  # what a new run would go by
    _, planned, _ = called("plan", "digits.yaml")
    assert "converted at 3.99e+13 FLOPs per core-second, which is an estimate\n" in planned
    assert called("search", "digits.yaml")[0] == 130


def test_an_interrupt_while_the_views_come_to_their_end_waits_for_none_of_them(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    over, delivered = threading.Event(), []

    def hang(_: Views, timeout_s: float) -> None:
        delivered.append(over.wait(timeout_s))

    monkeypatch.setattr(Views, "close", hang)
    monkeypatch.setattr(NoFleet, "__exit__", interrupted_again)
    searches(lambda director, fleet: setattr(director, "interrupted", True))
    monkeypatch.setattr(session, "write_results", lambda *_: [])
    write_study(tracking={"enabled": False})
    status, out, err = called("search", "digits.yaml")
    assert (status, err) == (130, "")
    assert out.splitlines()[-1] == "interrupted; go on with: convscale search digits.yaml"
    assert delivered == []
    over.set()


def test_what_fails_at_the_end_hides_neither_the_error_of_the_search_nor_keeps_the_views_from_closing(
    searches: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.joining import FleetError

    seen: list[Any] = []

    def fail(*_: object) -> NoReturn:
        raise FleetError("the slices are gone")

    def broken(*_: object) -> NoReturn:
        raise KeyError("a mistake in the drawing")

    monkeypatch.setattr(Views, "close", lambda self, timeout_s: seen.append(timeout_s))
    monkeypatch.setattr(NoFleet, "__exit__", lambda self, *error: seen.append(error[0]))
    searches(fail)
    monkeypatch.setattr(session, "write_results", broken)
    write_study(tracking={"enabled": False})
    monkeypatch.setattr(sys, "argv", ["convscale", "search", "digits.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert sorted(seen, key=str) == [60, FleetError]  # the fleet is told what ended the search
    assert "a mistake in the drawing" in Path("runs/digits/run-1/logs/search.log").read_text()


def test_figures_that_could_not_be_drawn_are_said(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise KeyError("a mistake in the drawing")

    searches(lambda director, fleet: setattr(director, "interrupted", True))
    write_study(tracking={"enabled": False})
    said = "the figures could not be drawn; see runs/digits/run-1/logs/search.log"
    monkeypatch.setattr(session, "write_results", broken)
    assert said in called("search", "digits.yaml")[1]
    monkeypatch.setattr(session, "write_results", lambda *_: [])
    assert said not in called("search", "digits.yaml")[1]


def test_a_terminal_that_went_away_is_no_error_of_the_search(
    searches: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> NoReturn:
        raise BrokenPipeError

    searches(lambda director, fleet: setattr(director, "interrupted", True))
    monkeypatch.setattr(session, "write_results", lambda *_: [])
    monkeypatch.setattr(session, "show_results", gone)
    write_study(tracking={"enabled": False})
    monkeypatch.setattr(sys, "argv", ["convscale", "search", "digits.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_files_of_the_data_that_are_left_out_are_told(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Splits, "warnings", lambda self: ["80 files [.tif] are left out"])
    searches(interrupted_again)
    write_study(tracking={"enabled": False})
    assert "80 files [.tif] are left out" in called("search", "digits.yaml")[1]
    assert "Warning: 80 files [.tif] are left out" in called("plan", "digits.yaml")[1]


def test_more_threads_than_the_machine_has_are_warned_of(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    searches(interrupted_again)
    write_study(compute={"device": "cpu", "slices": 1, "cores_per_slice": 64}, tracking={"enabled": False})
    _, out, _ = called("search", "digits.yaml")
    assert "digits.yaml: compute: 64 CPU threads asked for (slices 1 x 64), but this machine has 2" in out


def test_a_fresh_search_that_is_refused_leaves_the_run_there_was(
    searches: Callable[..., None], refused: Callable[..., str], called: Callable[..., tuple[int, str, str]]
) -> None:
    searches(interrupted_again)
    write_study()
    open_run()
    write_study(budgets=["1 FLOPs"])
    assert "buys no variant" in refused("search", "digits.yaml", "--fresh")
    write_study(tracking={"enabled": False})
    assert called("search", "digits.yaml")[0] == 130
    assert read_ledger("runs/digits/run-1")[-1].fields == {"reason": "interrupted"}
    assert read_ledger("runs/digits/run-2") == []


def begun_before_trend(until: int | None = None) -> Path:
    """A run of digits.yaml, which names no sampler, by a version whose default was tpe; `until`: its first records."""
    study = read_study(Path("digits.yaml").read_text())
    text = Path("digits.yaml").read_text() + "search: {sampler: tpe}\n"
    with World(read_study(text), open_budgets(read_study(text), 1617, 10)[0], Path("tpe")) as world:
        world.director.write("study_opened", run="run-1", identity=study.identity())
        world.run()
        world.director.write("study_ended")
    folder = Path(study.storage_url) / study.name / "run-1"
    with Ledger(str(folder)) as ledger:
        for record in world.ledger.records[:until]:
            new = ("seeds", "doubt", "second_objective", "learning_rates")
            ledger.append(record.event, **{key: value for key, value in record.fields.items() if key not in new})
    return folder


def test_a_study_that_an_earlier_version_finished_is_finished(called: Callable[..., tuple[int, str, str]]) -> None:
    """Its sampler was another by default: by that of today there would be more to do."""
    write_study(search=None, tracking={"enabled": False})
    folder = begun_before_trend()
    before = read_ledger(str(folder))
    status, out, err = called("search", "digits.yaml")
    assert (status, err) == (0, "")
    assert "began when sampler" not in out
    assert read_ledger(str(folder)) == before
    _, planned, _ = called("plan", "digits.yaml")
    assert "Warning: run-1 began when sampler tpe was the default, and goes on with it" in planned
    assert "In all: 8 trials" in planned
    write_study(search={"sampler": "trend"}, tracking={"enabled": False})
    assert "In all: at most 12 trials" in called("plan", "digits.yaml")[1]


def test_a_search_says_with_what_it_goes_on_and_which_budgets_it_opens_again(
    searches: Callable[..., None], called: Callable[..., tuple[int, str, str]]
) -> None:
    searches(interrupted_again)
    write_study(search=None, tracking={"enabled": False})
    begun_before_trend(until=-5)
    assert "run-1 began when sampler tpe was the default, and goes on with it" in called("search", "digits.yaml")[1]
    write_study(search={"sampler": "trend"}, tracking={"enabled": False})
    _, out, _ = called("search", "digits.yaml")
    assert "budget 4e9 FLOPs is opened again: 6 trials instead of 4\n" in out
    assert "budget 8e9 FLOPs is opened again" not in out  # it is not closed


# ---------------------------------------------------------------- results and sync


@pytest.mark.parametrize("command", ["results", "sync"])
def test_without_a_run_there_is_nothing_to_show(command: str, refused: Callable[..., str], tmp_path: Path) -> None:
    write_study()
    line = refused(command, "digits.yaml")
    assert f"no run of digits in {tmp_path}/runs; start one with: convscale search digits.yaml" in line
    assert not Path("runs").exists()


def test_a_server_that_does_not_answer(refused: Callable[..., str]) -> None:
    write_study()
    open_run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    line = refused("sync", "digits.yaml", "--uri", uri)
    assert line.startswith(f"convscale: MLflow at {uri} cannot be reached (")
    assert line.endswith("; start it, or correct the address")


def test_an_address_given_to_sync_that_is_malformed(refused: Callable[..., str]) -> None:
    write_study()
    open_run()
    assert "tracking address 'there' is neither a server nor" in refused("sync", "digits.yaml", "--uri", "there")


def test_a_run_that_never_began_hides_no_earlier_one(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    open_run()
    Path("runs/digits/run-2/logs").mkdir(parents=True)
    status, out, err = called("results", "digits.yaml")
    assert (status, err) == (0, "")
    assert "runs/digits/run-1/figures" in out


def test_results_that_cannot_be_written_are_shown(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    folder = open_run()
    (folder / "figures").touch()
    status, out, err = called("results", "digits.yaml")
    assert (status, err) == (0, "")
    assert "1.8e12 FLOPs" in out
    (line,) = [line for line in out.splitlines() if "could not be written" in line]
    assert str(folder / "figures") in line
    assert "Figure of" not in out


def test_paths_are_shown_as_they_are(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study(storage="out[old]/:x:")
    open_run()
    assert " out[old]/:x:/digits/run-1/figures/loss_vs_compute.png\n" in called("results", "digits.yaml")[1]


def test_a_password_is_not_shown(called: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.commands.sync", lambda *_, **__: SyncReport(10, refused={"[x]": "[y]"}))
    write_study()
    open_run()
    status, out, err = called("sync", "digits.yaml", "--uri", "https://me:secret@host:1")
    assert (status, err) == (0, "")
    assert out.startswith("https://host:1: 10 runs of digits run-1, ")
    assert "refused: [x] ([y])" in out


def test_results_are_shown_from_the_ledger_alone(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    open_run()
    newest = open_run("run-2")
    status, out, err = called("results", "digits.yaml")
    assert (status, err) == (0, "")
    for budget in ("2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"):
        assert budget in out
    figure = newest / "figures" / "loss_vs_compute.png"
    assert f"Figure of held-out loss against compute: {figure.relative_to(Path.cwd())}\n" in out
    assert figure.exists()
    assert (newest / "results.csv").exists()
    assert "mlflow ui --backend-store-uri sqlite:///" in out
    assert "optuna-dashboard sqlite:///runs/digits/run-2/optuna.db" in out


@pytest.mark.parametrize("until", [2, 3, 4, 5, 6, 8, 15])
def test_results_of_a_search_in_progress(until: int, called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    folder = open_run(until=until)
    with Ledger(str(folder)):  # the search goes on
        status, out, err = called("results", "digits.yaml")
    assert (status, err) == (0, "")
    assert ("No trials yet." in out) == (until < 4)
    assert ("0 of 2 trials" in out) == (4 <= until < 8)
    assert (folder / "figures" / "learning_rate_valley.png").exists()
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + (until > 3) + (until > 8)


@pytest.mark.slow
def test_sync_fills_mlflow_and_optuna_and_again_changes_nothing(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    folder = open_run()
    status, out, err = called("sync", "digits.yaml")
    assert (status, err) == (0, "")
    assert "10 runs of digits run-1, 10 made" in out  # the study, three budgets, six trials
    assert Path("runs/mlflow.db").exists()
    assert (folder / "optuna.db").exists()
    status, out, err = called("sync", "digits.yaml")
    assert (status, err) == (0, "")
    assert "0 made, 0 brought up to date, 0 metric points" in out


# ---------------------------------------------------------------- plan


def test_plan_prints_and_trains_nothing(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    status, out, err = called("plan", "digits.yaml")
    assert (status, err) == (0, "")
    for word in ("4e9 FLOPs", "8e9 FLOPs", "F0", "F1"):
        assert word in out
    assert not Path("runs").exists()


def test_plan_learns_from_the_newest_run(called: Callable[..., tuple[int, str, str]]) -> None:
    write_study()
    open_run()
    status, out, err = called("plan", "digits.yaml")
    assert (status, err) == (0, "")
    assert "measured by an earlier search, at its goodput of 90.0 %" in out


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("model", {"width": 0.125}),
        ("data", {"image_size": 16}),
        ("training", {"batch_size": 32}),
        ("compute", {"device": "cuda"}),
    ],
)
def test_plan_learns_nothing_from_trials_of_another_kind(
    section: str, changes: dict[str, Any], called: Callable[..., tuple[int, str, str]]
) -> None:
    compute = STUDY["compute"] | {"flops_per_core_second": 1e9}
    write_study(compute=compute)
    open_run()
    study = STUDY | {"compute": compute}
    write_study(**study | {section: study[section] | changes})
    status, out, err = called("plan", "digits.yaml")
    assert (status, err) == (0, "")
    assert "estimated from" in out
    assert "measured by an earlier search" not in out


def test_plan_learns_from_other_variants_and_past_a_run_that_never_began(
    called: Callable[..., tuple[int, str, str]],
) -> None:
    write_study(model=STUDY["model"] | {"variants": ["F0", "F1", "F3"]})
    open_run()
    Ledger("runs/digits/run-2").close()
    write_study()
    assert "measured by an earlier search" in called("plan", "digits.yaml")[1]


def test_a_budget_that_buys_nothing(refused: Callable[..., str]) -> None:
    write_study(budgets=["1 FLOPs"])
    assert "budgets[0]: 1 FLOPs buys no variant within the range" in refused("plan", "digits.yaml")


# ---------------------------------------------------------------- the command line itself


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plann", "digits.yaml"], "No such command 'plann'"),
        (["plan"], "Missing argument"),
        (["search", "digits.yaml", "--frsh"], "No such option: --frsh"),
        (["search", "digits.yaml", "more"], "unexpected extra argument"),
        (["sync", "digits.yaml", "--uri"], "requires an argument"),
    ],
)
def test_a_command_that_is_not_one(arguments: list[str], said: str, refused: Callable[..., str]) -> None:
    line = refused(*arguments)
    assert said in line
    assert line.endswith("See convscale --help.")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["search", "--help"]])
def test_help(arguments: list[str], called: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = called(*arguments)
    assert (status, err) == (0, "")
    assert "Usage: convscale" in out


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, called: Callable[..., tuple[int, str, str]]) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.commands.plan_study", interrupt)
    assert called("plan", "digits.yaml") == (130, "", "")


def test_the_exit_status_of_a_search_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, called: Callable[..., tuple[int, str, str]]
) -> None:
    asked: list[dict[str, Any]] = []

    def pretend(path: Path, **options: Any) -> int:
        asked.append({"path": path, **options})
        return 130

    monkeypatch.setattr(session, "search", pretend)
    assert called("search", "digits.yaml", "--fresh", "--address", "auto")[0] == 130
    assert (asked[0]["path"], asked[0]["fresh"], asked[0]["address"]) == (Path("digits.yaml"), True, "auto")


def test_a_cluster_that_failed_is_status_1(
    monkeypatch: pytest.MonkeyPatch, called: Callable[..., tuple[int, str, str]]
) -> None:
    from search.joining import FleetError

    def fail(*_: object, **__: object) -> NoReturn:
        raise FleetError("slice-0 cannot start its workers (3 times): no space left")

    monkeypatch.setattr(session, "search", fail)
    status, _, err = called("search", "digits.yaml")
    assert (status, err) == (1, "convscale: slice-0 cannot start its workers (3 times): no space left\n")


@pytest.mark.parametrize(
    "error",
    [ValueError("ours"), RuntimeError("ours"), KeyError("ours"), OSError("ours"), FileNotFoundError(2, "ours", "x")],
)
def test_an_error_of_our_own_is_not_passed_off_as_the_users(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("search.commands.plan_study", fail)
    monkeypatch.setattr(sys, "argv", ["convscale", "plan", "digits.yaml"])
    with pytest.raises(type(error), match="ours"):
        cli.main()


def test_a_mistake_is_told_without_importing_what_is_slow() -> None:
    """In a process of its own: neither Ray nor torch, MLflow nor Optuna, for a field that is misspelt."""
    write_study(tracking={"uri": "ftp://x"})
    program = (
        "import sys; sys.argv = ['convscale', 'search', 'digits.yaml']\n"
        "from search.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'ray', 'torch', 'mlflow', 'timm'} & set(sys.modules)))"
    )
    root = str(Path(cli.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == "[]\n"
    assert len(done.stderr.splitlines()) == 1
    assert "neither a server nor an SQLite file" in done.stderr
