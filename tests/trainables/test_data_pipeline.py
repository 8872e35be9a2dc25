"""The stream of batches: what it holds, that nothing but (seed, step) enters, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainables.data.pipeline
from tests.trainables.test_data_sources import open_folder, write_digits
from trainables.config import DataConfig
from trainables.data import DataError, Example, ImageSource
from trainables.data.grain_library import grain
from trainables.data.order import examples_at
from trainables.data.pipeline import Batch, heldout_batches, train_batches

SIZE = 8


@dataclass(frozen=True)
class FakeSource:
    """A source of `count` images, each its own; stands for images in memory. Those in `broken` cannot be read."""

    count: int
    broken: frozenset[int] = frozenset()
    image_size: int = SIZE

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return Example(self.read(index), self.label(index))

    def read(self, index: int, crop: np.ndarray | None = None) -> np.ndarray:
        if index in self.broken:
            raise DataError(f"cannot read image {self.name(index)!r}")
        image = np.random.default_rng(index).integers(1, 256, (SIZE, SIZE, 3), np.uint8)
        return image if crop is None else np.roll(image, int(crop[0] * 1000), axis=0)

    def label(self, index: int) -> int:
        return index % 3

    def name(self, index: int) -> str:
        return f"fake[{index}]"

    def fetched(self, indices: Sequence[int]) -> FakeSource:
        return self


CONFIG = DataConfig("digits", SIZE)


def joined(shares: list[Batch]) -> Batch:
    """The global batch, in the order of the stream, from the shares of all ranks."""
    return {
        name: np.stack([share[name] for share in shares], axis=1).reshape(-1, *shares[0][name].shape[1:])
        for name in shares[0]
    }


def run(
    source: ImageSource, config: DataConfig, *, start: int, steps: int, world: int, batch: int, seed: int
) -> list[Batch]:
    """The global batches of a run on `world` workers."""
    streams = [
        train_batches(
            source, config, batch_size=batch, seed=seed, start_step=start, steps=steps, rank=rank, world=world
        )
        for rank in range(world)
    ]
    return [joined(list(shares)) for shares in zip(*streams, strict=True)]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = {process.pid for process in psutil.Process().children()}
    yield
    gc.collect()
    left = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            # Python's own tracker of shared memory lives as long as the interpreter.
            if process.pid not in before and "resource_tracker" not in " ".join(process.cmdline()):
                left.append(process)
    assert left == []


# ---------------------------------------------------------------------------------------------------------- the stream


@settings(max_examples=25, deadline=None)
@given(
    examples=st.integers(1, 40),
    share=st.integers(1, 7),
    world=st.integers(1, 4),
    other_world=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 6),
    augment=st.sampled_from(["none", "shift", "crop"]),
    flip=st.booleans(),
)
def test_each_epoch_holds_every_example_once_whatever_the_workers_and_restarts(
    examples: int, share: int, world: int, other_world: int, seed: int, start: int, augment: str, flip: bool
) -> None:
    source = FakeSource(examples)
    config = replace(CONFIG, augment=augment, flip=flip)  # type: ignore[arg-type]
    batch = share * world * other_world
    steps = start + 2 + 2 * examples // batch
    whole = run(source, config, start=0, steps=steps, world=1, batch=batch, seed=seed)

    indices = np.concatenate([values["index"] for values in whole])
    assert len(indices) == steps * batch
    for epoch in range(len(indices) // examples):
        assert sorted(indices[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
    remainder = indices[len(indices) // examples * examples :]
    assert len(set(remainder)) == len(remainder)
    labels = np.concatenate([values["label"] for values in whole])
    assert np.array_equal(labels, indices % 3)

    interrupted = run(source, config, start=0, steps=start, world=world, batch=batch, seed=seed)
    resumed = run(source, config, start=start, steps=steps, world=other_world, batch=batch, seed=seed)
    assert_same(interrupted + resumed, whole)


def test_seeds_epochs_and_positions_differ() -> None:
    source = FakeSource(64)
    config = replace(CONFIG, augment="shift")
    first, second = run(source, config, start=0, steps=2, world=1, batch=64, seed=0)
    other = run(source, config, start=0, steps=1, world=1, batch=64, seed=1)[0]
    assert not np.array_equal(first["index"], second["index"])
    assert not np.array_equal(first["index"], other["index"])
    assert not np.array_equal(first["index"], np.arange(64))
    images = [values["image"][np.argsort(values["index"])] for values in (first, second)]
    assert not np.array_equal(images[0], images[1])


def test_seeds_that_follow_each_other_do_not_share_epochs() -> None:
    orders = [
        tuple(values["index"])
        for seed in range(4)
        for values in run(FakeSource(16), CONFIG, start=0, steps=4, world=1, batch=16, seed=seed)
    ]
    assert len(set(orders)) == 16


def test_the_order_of_a_large_data_set_is_that_of_grain() -> None:
    count = 2**16 + 3
    positions = np.array([0, 1, 77, count - 1, count, 5 * count + 12])
    shuffled = grain.MapDataset.range(count).shuffle(seed=5).repeat()
    assert examples_at(positions, count, 5).tolist() == [shuffled[int(position)] for position in positions]
    assert len(np.unique(examples_at(np.arange(3 * count, 3 * count + 2000), count, 5))) == 2000


def test_a_batch_has_the_shapes_and_types_promised() -> None:
    batch = next(train_batches(FakeSource(5), CONFIG, batch_size=12, seed=0, start_step=0, steps=1, rank=1, world=2))
    described = {name: (values.shape, str(values.dtype)) for name, values in batch.items()}
    assert described == {
        "image": ((6, SIZE, SIZE, 3), "uint8"),
        "label": ((6,), "int32"),
        "weight": ((6,), "float32"),
        "index": ((6,), "int64"),
    }
    assert batch["weight"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 7, "world": 2}, "batch_size 7 on 2 workers"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2 workers"),
        ({"seed": -1}, "seed -1"),
        ({"start_step": 3}, "start_step 3 of 2 steps"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_batches(FakeSource(5), CONFIG, **{"batch_size": 8, "seed": 0, "start_step": 0, "steps": 2, **settings})


@settings(max_examples=15, deadline=None)
@given(share=st.integers(1, 23), world=st.integers(1, 2), unit=st.integers(1, 9), start=st.integers(0, 2))
def test_a_batch_that_is_put_together_from_parts_is_the_same(share: int, world: int, unit: int, start: int) -> None:
    source, config = (
        FakeSource(31, broken=frozenset({3})),
        replace(CONFIG, augment="crop", flip=True, bad_images="skip"),
    )
    where: dict[str, int] = {"start": start, "steps": 4, "world": world, "batch": share * world, "seed": 7}

    def heldout() -> list[Batch]:
        return list(heldout_batches(source, config, batch_size=share * world, rank=world - 1, world=world))

    whole = [run(source, config, **where), heldout()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainables.data.pipeline, "_UNIT", unit)
        parts = [run(source, config, **where), heldout()]
    for left, right in zip(whole, parts, strict=True):
        assert_same(left, right)


def test_a_batch_that_no_memory_holds_is_an_error_at_once() -> None:
    batches = train_batches(FakeSource(5), CONFIG, batch_size=10**13, seed=0, start_step=0, steps=1)
    with pytest.raises(MemoryError):
        next(batches)


# ---------------------------------------------------------------------------------------------------------- held-out


@settings(max_examples=15, deadline=None)
@given(examples=st.integers(1, 30), share=st.integers(1, 6), world=st.integers(1, 3))
def test_held_out_examples_come_once_in_order_and_the_rest_is_padding(examples: int, share: int, world: int) -> None:
    source, batch = FakeSource(examples), share * world
    config = replace(CONFIG, augment="shift", flip=True)
    streams = [heldout_batches(source, config, batch_size=batch, rank=rank, world=world) for rank in range(world)]
    whole = [joined(list(shares)) for shares in zip(*streams, strict=True)]
    values = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    assert len(whole) == -(-examples // batch)
    assert values["index"].tolist() == list(range(examples)) + [-1] * (len(whole) * batch - examples)
    assert np.array_equal(values["weight"], (values["index"] >= 0).astype(np.float32))
    assert not values["image"][examples:].any()
    for index in range(examples):
        assert np.array_equal(values["image"][index], source.read(index))
        assert values["label"][index] == source.label(index)


# ---------------------------------------------------------------------------------------------------------- bad images


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, workers: int) -> None:
    write_digits(tmp_path, ".jpg", split=True)
    bad = tmp_path / "train" / "digit 1" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    config = DataConfig("folder", 8, path=str(tmp_path), decode_workers=workers)
    with pytest.raises(DataError, match="cannot read image") as error:
        list(train_batches(open_folder(tmp_path).train, config, batch_size=6, seed=0, start_step=0, steps=1))
    assert str(bad) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_skipped_and_can_be_named(tmp_path: Path) -> None:
    write_digits(tmp_path, ".jpg", split=True)
    bad = tmp_path / "train" / "digit 1" / "1.jpg"
    bad.write_bytes(b"")
    source = open_folder(tmp_path).train
    config = DataConfig("folder", 8, path=str(tmp_path), bad_images="skip", augment="shift", flip=True)
    batch = next(train_batches(source, config, batch_size=6, seed=0, start_step=0, steps=1))
    (row,) = np.flatnonzero(batch["weight"] == 0)
    assert source.name(int(batch["index"][row])) == str(bad)
    assert not batch["image"][row].any()
    assert batch["weight"].sum() == 5
    batch = next(heldout_batches(FakeSource(4, broken=frozenset({2})), config, batch_size=6))
    assert batch["weight"].tolist() == [1, 1, 0, 1, 0, 0]
    assert batch["index"].tolist() == [0, 1, 2, 3, -1, -1]


# ---------------------------------------------------------------------------------------------------------- processes


def test_decoding_processes_change_nothing_and_are_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, ".png", split=False)
    source = open_folder(tmp_path).train
    threads = DataConfig("folder", 8, path=str(tmp_path), augment="crop", flip=True)
    processes = replace(threads, decode_workers=2)
    expected = run(source, threads, start=3, steps=8, world=1, batch=4, seed=1)
    assert_same(run(source, processes, start=3, steps=8, world=1, batch=4, seed=1), expected)
    monkeypatch.setattr(trainables.data.pipeline, "_UNIT", 3)
    assert_same(run(source, processes, start=3, steps=8, world=1, batch=4, seed=1), expected)
    assert multiprocessing.active_children() == []


def test_closing_early_ends_processes_and_threads() -> None:
    config = replace(CONFIG, decode_workers=1)
    with train_batches(FakeSource(20), config, batch_size=4, seed=0, start_step=0, steps=1000) as batches:
        first = next(batches)
        assert len(multiprocessing.active_children()) == 1
    assert multiprocessing.active_children() == []
    assert first["image"].any()
    assert list(batches) == []
    batches.close()

    def readers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}

    before = readers()
    reading = train_batches(FakeSource(20), CONFIG, batch_size=4, seed=0, start_step=0, steps=1000)
    next(reading)
    threads = readers() - before
    assert threads
    del reading
    gc.collect()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


PARENT = """
import sys, time
from trainables.config import DataConfig
from trainables.data import open_splits
from trainables.data.pipeline import train_batches

if __name__ == "__main__":
    config = DataConfig("digits", 8, decode_workers=1)
    batches = train_batches(open_splits(config).train, config, batch_size=4, seed=0, start_step=0, steps=10**6)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
"""


def _parent(tmp_path: Path, end: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    pipe = subprocess.PIPE
    parent = subprocess.Popen(
        [sys.executable, str(script), end],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )
    assert parent.stdout is not None
    line = parent.stdout.readline()
    assert line, parent.stderr.read() if parent.stderr else ""
    child = psutil.Process(int(line))
    return parent, child


def test_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    parent, child = _parent(tmp_path, "wait")
    parent.kill()
    parent.communicate()
    child.wait(timeout=30)
    assert not child.is_running()


def test_a_program_that_just_ends_leaves_no_process_and_says_nothing(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    done = subprocess.run(
        [sys.executable, str(script), "end"],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize("configured", ["", "logging.basicConfig(level=0); "])
def test_importing_grain_says_nothing_and_leaves_logging_alone(configured: str) -> None:
    program = (
        f"import logging; {configured}before = list(logging.root.handlers); import trainables.data.pipeline; "
        "assert logging.root.handlers == before; logging.getLogger('absl').error('still heard')"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert "jax" not in done.stderr
    assert "still heard" in done.stderr
