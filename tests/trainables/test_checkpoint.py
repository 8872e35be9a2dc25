"""What is saved comes back, whatever happened to the writer or to the newest file."""

import logging
import uuid

import fsspec
import pytest
import torch

import trainables.checkpoint
from trainables.checkpoint import Checkpoints
from trainables.config import TrialRefused


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "trial") if request.param == "local" else f"memory://{uuid.uuid4().hex}/trial"


def state_at(step: int) -> dict:
    return {"weights": {"w": torch.full((3,), float(step))}, "step": step, "reason": None}


def names(folder: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(folder)
    return sorted(path.rsplit("/", 1)[-1] for path in fs.ls(root, detail=False))


def overwrite(folder: str, name: str, change) -> None:
    fs, root = fsspec.core.url_to_fs(folder)
    fs.pipe_file(f"{root}/{name}", change(fs.cat_file(f"{root}/{name}")))


def test_nothing_is_there_at_first(folder):
    assert Checkpoints(folder, keep=2).load_latest() is None


def test_the_newest_comes_back_and_the_last_two_are_kept(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, state_at(step))
    step, state = Checkpoints(folder, keep=2).load_latest()
    assert step == state["step"] == 15
    assert torch.equal(state["weights"]["w"], torch.full((3,), 15.0))
    assert [(s.step, s.final) for s in checkpoints.saved()] == [(10, False), (15, False)]


def test_the_final_one_is_marked_and_the_only_one_left(folder):
    checkpoints = Checkpoints(folder, keep=3)
    for step in (3, 7):
        checkpoints.save(step, state_at(step))
    checkpoints.save(7, {**state_at(7), "reason": "done"}, final=True)
    assert checkpoints.load_latest()[1]["reason"] == "done"
    assert [s.final for s in checkpoints.saved()] == [True]
    assert names(folder)[0].startswith("step-00000007-final.")


def test_a_store_that_is_not_known_gets_its_files_aside_first(folder, monkeypatch):
    monkeypatch.setattr(trainables.checkpoint, "_ATOMIC", frozenset())
    checkpoints = Checkpoints(folder, keep=1)
    moved = []
    move = checkpoints._fs.mv
    monkeypatch.setattr(checkpoints._fs, "mv", lambda old, new: (moved.append(old), move(old, new)))
    checkpoints.save(1, state_at(1))
    assert [".aside-" in name for name in moved] == [True]
    assert checkpoints.load_latest()[0] == 1
    assert len(names(folder)) == 1


def test_an_object_store_gets_one_upload_and_no_copy(monkeypatch):
    checkpoints = Checkpoints(f"memory://{uuid.uuid4().hex}/trial", keep=1)
    monkeypatch.setattr(checkpoints._fs, "mv", None)
    checkpoints.save(1, state_at(1))
    assert checkpoints.load_latest()[0] == 1


def test_the_new_name_is_on_the_disk_before_an_older_file_goes(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(1, state_at(1))
    there = []
    sync = trainables.checkpoint._sync_folder
    monkeypatch.setattr(
        trainables.checkpoint, "_sync_folder", lambda path: (there.append(len(names(str(tmp_path)))), sync(path))
    )
    checkpoints.save(2, state_at(2))
    assert there == [2]
    assert len(names(str(tmp_path))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut off"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], id="one bit changed"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before(folder, damage, caplog):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, state_at(1))
    checkpoints.save(2, state_at(2))
    overwrite(folder, names(folder)[-1], damage)
    with caplog.at_level(logging.WARNING):
        step, state = checkpoints.load_latest()
    assert (step, state["step"]) == (1, 1)
    assert "step-00000002" in caplog.text
    assert "falling back" in caplog.text


def test_a_file_that_is_no_checkpoint_of_ours_is_refused_and_never_unpickled(folder, tmp_path):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, state_at(1))
    checkpoints.save(2, {"surprise": tmp_path})  # a class that weights_only loading refuses
    with pytest.raises(TrialRefused, match=r"step-00000002\S* is whole, but no checkpoint") as error:
        checkpoints.load_latest()
    assert "\n" not in str(error.value)
    assert len(names(folder)) == 2


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError(), MemoryError()])
def test_a_fault_of_the_store_is_no_damage(folder, monkeypatch, error):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, state_at(1))

    def fail(*_args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._fs, "cat_file", fail)
        with pytest.raises(type(error)):
            checkpoints.load_latest()
    assert checkpoints.load_latest()[0] == 1


def test_bytes_that_come_right_when_read_again_are_no_damage(folder, monkeypatch):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, state_at(1))
    read = checkpoints._fs.cat_file
    answers = iter([b"half"])
    monkeypatch.setattr(checkpoints._fs, "cat_file", lambda path: next(answers, None) or read(path))
    assert checkpoints.load_latest()[0] == 1


def test_what_a_dead_writer_left_is_ignored_and_cleaned(folder):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(3, state_at(3))
    fs, root = fsspec.core.url_to_fs(folder)
    fs.pipe_file(f"{root}/.aside-123", b"half a checkpo")
    assert checkpoints.load_latest()[0] == 3
    checkpoints.clean()
    assert len(names(folder)) == 1


def test_a_failed_save_leaves_the_one_before(folder):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, state_at(1))
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        checkpoints.save(2, {"w": lambda: None})
    assert checkpoints.load_latest()[0] == 1
    checkpoints.clean()
    assert len(names(folder)) == 1


def test_saving_a_step_again_replaces_it(folder):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(4, state_at(4))
    checkpoints.save(8, state_at(8))
    checkpoints.save(8, {**state_at(8), "reason": "again"})
    assert checkpoints.load_latest()[1]["reason"] == "again"
    assert [s.step for s in checkpoints.saved()] == [4, 8]


def test_after_a_fall_back_the_damaged_newer_one_goes(folder):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(10, state_at(10))
    checkpoints.save(20, state_at(20))
    overwrite(folder, names(folder)[-1], lambda data: data[:100])
    assert checkpoints.load_latest()[0] == 10
    checkpoints.save(15, state_at(15))
    assert checkpoints.load_latest()[0] == 15
    assert [s.step for s in checkpoints.saved()] == [10, 15]


def test_a_newer_one_that_is_whole_is_never_dropped(folder):
    Checkpoints(folder, keep=1).save(20, state_at(20))
    late = Checkpoints(folder, keep=1)
    late.save(15, state_at(15))
    late.save(16, state_at(16), final=True)
    assert [s.step for s in late.saved()] == [16, 20]
    assert late.load_latest()[0] == 20


def test_keeping_none_is_refused(folder):
    with pytest.raises(ValueError, match="keep 0 is too few"):
        Checkpoints(folder, keep=0)
