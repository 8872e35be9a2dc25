"""The command as a user runs it: whole searches on the digits in processes of their own, interrupted in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.ledger import Record, read_ledger
from search.state import StudyState
from tests.search.fleets import until

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).parent / "convscale"
STUDY = """
name: tiny
data: {source: digits, image_size: 8, augment: shift}
model: {variants: [F0, F1], width: 0.0625, group_size: 8, stem: small}
budgets: [3e9 FLOPs, 6e9 FLOPs]
epochs: {min: 0.1, max: 8}
learning_rate: {base: 0.8, min: 0.8, max: 1.6}
search: {sampler: grid}
training: {batch_size: 16, precision: float32, checkpoint: {every_s: null, every_steps: 5}, log_points: 1000}
compute: {device: cpu, slices: 1, cores_per_slice: 1}
storage: STORAGE
"""


class Command:
    """A `convscale` process in a process group of its own, marked so that whatever it starts can be found.

    `joins`: it has the token of this process's clusters, to join one. `program`: what is run instead of `convscale`.
    """

    def __init__(
        self, *arguments: str | Path, cwd: Path, joins: bool = False, program: Sequence[str | Path] = (COMMAND,)
    ) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, "CONVSCALE_TEST_MARK": self.mark}
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if not joins else ():
            environment.pop(name, None)
        self.log = cwd / f"output-{self.mark}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *map(str, arguments)],
                cwd=cwd,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def family(self) -> list[psutil.Process]:
        """Every living process that descends from the command, orphans included."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("CONVSCALE_TEST_MARK") == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def wait(self) -> int:
        return self.process.wait(timeout=900)

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start_one(*arguments: str | Path) -> Command:
        started.append(Command(*arguments, cwd=tmp_path))
        return started[-1]

    yield start_one
    for command in started:
        for process in command.family():
            process.kill()


def study_file(folder: Path, text: str = STUDY, storage: str = "runs") -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text.replace("STORAGE", storage))
    return path


def ended(records: list[Record]) -> dict[str, tuple[str, Any]]:
    """Every trial's outcome and held-out loss; fails if one ended twice."""
    found: dict[str, tuple[str, Any]] = {}
    for record in records:
        if record.event == "trial_ended":
            assert record["trial"] not in found
            found[record["trial"]] = (record["outcome"], record["result"]["heldout_loss"])
    return found


def in_the_middle(records: list[Record]) -> bool:
    """Whether the last event is a checkpoint in the first half of a trial."""
    last, trials = records[-1], StudyState.of(records).trials
    return last.event == "trial_checkpointed" and last["step"] < trials[last["trial"]].steps / 2


def wait_for(folder: Path, command: Command, condition: Callable[[list[Record]], bool]) -> None:
    def reached() -> bool:
        assert command.process.poll() is None, command.output
        return condition(read_ledger(str(folder)))

    until(reached, "the ledger to get there")


def test_interrupted_killed_and_resumed_gives_what_an_undisturbed_search_gives(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    undisturbed = start("search", study_file(quiet, storage=str(quiet)))
    assert undisturbed.wait() == 0, undisturbed.output
    expected = ended(read_ledger(str(quiet / "tiny" / "run-1")))
    assert len(expected) == 8
    assert {outcome for outcome, _ in expected.values()} == {"finished"}
    until(lambda: not undisturbed.family(), "the undisturbed search's processes to end")

    study, run = study_file(tmp_path), tmp_path / "runs" / "tiny" / "run-1"

    # Ctrl-C reaches the whole process group, in the middle of the first trial
    command = start("search", study)
    wait_for(run, command, lambda records: any(record.event == "trial_checkpointed" for record in records))
    command.signal_group(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "go on with: convscale search" in command.output
    assert "Traceback" not in command.output
    until(lambda: not command.family(), "everything to end after Ctrl-C")
    before = read_ledger(str(run))
    assert before[-1]["reason"] == "interrupted"

    # kill -9 of the driver, later
    command = start("search", study)
    wait_for(run, command, lambda records: len(ended(records)) >= 3 and in_the_middle(records))
    command.process.kill()
    command.wait()
    until(lambda: not command.family(), "everything to end after kill -9 of the driver")
    killed = StudyState.of(read_ledger(str(run)))
    in_flight = [trial for trial in killed.trials.values() if trial.outcome is None]
    assert in_flight
    # workers outlive a killed driver for a moment, in which a trial may come to its end
    over = {trial.trial_id for trial in in_flight if list((run / "trials" / trial.trial_id).glob("*final*"))}

    # the crash cut the last line off
    with (run / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"seq":')
    command = start("search", study)
    assert command.wait() == 0, command.output
    records = read_ledger(str(run))
    assert ended(records) == expected
    restarts = [record for record in records if record.event == "trial_started" and record["attempt"] > 1]
    assert restarts
    for record in restarts:
        saved = [
            earlier["step"]
            for earlier in records[: records.index(record)]
            if earlier.event == "trial_checkpointed" and earlier["trial"] == record["trial"]
        ]
        assert record["step"] >= max(saved, default=0)
    assert any(record["step"] > 0 for record in restarts)
    for trial in in_flight:
        again = [record for record in restarts if record["trial"] == trial.trial_id]
        assert again or not trial.attempt or trial.trial_id in over
        assert not again or trial.step - again[-1]["step"] <= 5 + 1

    # once more: nothing is left to do
    command = start("search", study)
    assert command.wait() == 0, command.output
    assert ended(read_ledger(str(run))) == expected
    assert "loss" in command.output
    assert (run / "figures" / "loss_vs_compute.png").stat().st_size > 10_000
    assert "</html>" in (run / "report.html").read_text()

    # --fresh begins beside it, never over it
    content = (run / "ledger.jsonl").read_bytes()
    command = start("search", study, "--fresh")
    wait_for(
        run.with_name("run-2"), command, lambda records: any(record.event == "trial_started" for record in records)
    )
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 130, command.output
    assert (run / "ledger.jsonl").read_bytes() == content


def test_own_images_with_two_slices_mlflow_and_optuna(tmp_path: Path, start: Callable[..., Command]) -> None:
    write_images(tmp_path / "images")
    text = STUDY.replace("source: digits", "source: folder, path: images, decode_workers: 1, bad_images: skip")
    text = text.replace("slices: 1", "slices: 2").replace("budgets: [3e9 FLOPs, 6e9 FLOPs]", "budgets: [2e9 FLOPs]")
    study, run = study_file(tmp_path, text), tmp_path / "runs" / "tiny" / "run-1"
    command = start("search", study)
    assert command.wait() == 0, command.output
    records = read_ledger(str(run))
    results = [record["result"] for record in records if record.event == "trial_ended"]
    assert len(results) == 4
    assert all(result["skipped_images"] > 0 for result in results)
    assert "broken.jpg" in command.output
    assert {record["slice"] for record in records if record.event == "trial_started"} == {"slice-0", "slice-1"}
    assert sum(result["heldout_loss"] is not None for result in results) == 4

    import mlflow
    import optuna

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    kinds = [run.data.tags.get("trial") for run in runs]
    assert len([kind for kind in kinds if kind]) == 4
    losses = {run.data.tags["trial"]: run.data.metrics["heldout_loss"] for run in runs if run.data.tags.get("trial")}
    assert losses == {
        record["trial"]: record["result"]["heldout_loss"] for record in records if record.event == "trial_ended"
    }
    names = optuna.get_all_study_names(f"sqlite:///{run}/optuna.db")
    frozen = optuna.load_study(study_name=names[0], storage=f"sqlite:///{run}/optuna.db").trials
    assert sorted(trial.value for trial in frozen) == sorted(losses.values())

    command = start("sync", study)
    assert command.wait() == 0, command.output
    assert "0 made" in command.output
    command = start("results", study)
    assert command.wait() == 0, command.output


def write_images(folder: Path) -> None:
    """The digits 0 and 1 as PNG and JPEG files in a folder per class, and one file that is none."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label > 1:
            continue
        path = (
            folder
            / ("train" if number % 5 else "val")
            / f"digit {label}"
            / f"{number}.{'png' if number % 2 else 'jpg'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image * 15.9, dtype=np.uint8)).resize((16, 16)).save(path)
    (folder / "train" / "digit 0" / "broken.jpg").write_bytes(b"not an image")


def test_bad_input_costs_nothing(tmp_path: Path, start: Callable[..., Command]) -> None:
    study = study_file(tmp_path, STUDY.replace("sampler: grid", "sampler: gird"))
    command = start("search", study)
    assert command.wait() == 2
    lines = command.output.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"convscale: {study}: search.sampler: ")
    assert not (tmp_path / "runs").exists()


def test_a_second_interrupt_ends_at_once_and_the_ledger_stays_whole(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    study, run = study_file(tmp_path), tmp_path / "runs" / "tiny" / "run-1"
    command = start("search", study)
    wait_for(run, command, lambda records: "trial_progressed" in {record.event for record in records})
    command.process.send_signal(signal.SIGINT)
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "Traceback" not in command.output
    until(lambda: not command.family(), "everything to end")
    assert not list(Path(tempfile.gettempdir()).glob(f"convscale-{command.process.pid}-*"))
    assert StudyState.of(read_ledger(str(run))).trials


def test_a_reader_that_goes_away_ends_no_search(tmp_path: Path) -> None:
    text = STUDY.replace("budgets: [3e9 FLOPs, 6e9 FLOPs]", "budgets: [1e9 FLOPs]").replace("[F0, F1]", "[F0]")
    study = study_file(tmp_path, text)
    subprocess.run(f"{COMMAND} search {study} | head -n 1", shell=True, cwd=tmp_path, check=True, timeout=900)
    state = StudyState.of(read_ledger(str(tmp_path / "runs" / "tiny" / "run-1")))
    assert state.ended
    assert [trial.outcome for trial in state.trials.values()] == ["finished", "finished"]


def test_trials_that_all_fail_end_the_search_with_their_reason_and_are_tried_again_once_that_is_mended(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    write_images(tmp_path / "images")
    text = STUDY.replace("source: digits", "source: folder, path: images, bad_images: error")
    text = text.replace("budgets: [3e9 FLOPs, 6e9 FLOPs]", "budgets: [1e9 FLOPs]")
    study, run = study_file(tmp_path, text), tmp_path / "runs" / "tiny" / "run-1"
    command = start("search", study)
    assert command.wait() == 1, command.output
    last = command.output.splitlines()[-1]
    assert last.startswith("convscale: 3 trials in a row failed")
    assert "broken.jpg" in last
    assert "data.bad_images to 'skip'" in last
    assert "--retry-failed" in last
    assert "Traceback" not in command.output

    study_file(tmp_path, text.replace("bad_images: error", "bad_images: skip"))
    command = start("search", study, "--retry-failed")
    assert command.wait() == 0, command.output
    records = read_ledger(str(run))
    assert [record.event for record in records].count("trial_reopened") == 3
    state = StudyState.of(records)
    assert [trial.outcome for trial in state.trials.values()] == ["finished"] * 4
    assert state.ended
