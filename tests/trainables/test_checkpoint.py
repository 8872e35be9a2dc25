"""What is saved comes back, whatever happened to the writer or to the newest file."""

import logging
import uuid

import fsspec
import pytest
import torch

from trainables.checkpoint import Checkpoints


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


def test_the_final_one_is_marked_and_newer_than_another_of_its_step(folder):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(7, state_at(7))
    checkpoints.save(7, {**state_at(7), "reason": "done"}, final=True)
    assert checkpoints.load_latest()[1]["reason"] == "done"
    assert [s.final for s in checkpoints.saved()] == [False, True]
    assert names(folder)[0].startswith("step-00000007-final.")


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


def test_a_file_that_is_no_checkpoint_of_ours_is_never_unpickled(folder, tmp_path):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, state_at(1))
    checkpoints.save(2, {"surprise": tmp_path})  # a class that weights_only loading refuses
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
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(20, state_at(20))
    overwrite(folder, names(folder)[-1], lambda data: data[:100])
    checkpoints.save(15, state_at(15))
    assert checkpoints.load_latest()[0] == 15
    assert [s.step for s in checkpoints.saved()] == [15]


def test_keeping_none_is_refused(folder):
    with pytest.raises(ValueError, match="keep 0 is too few"):
        Checkpoints(folder, keep=0)
