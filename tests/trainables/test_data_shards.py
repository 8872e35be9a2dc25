"""Sharded images as a source: on a disk, in memory, and from a web server by range requests."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import webdataset

import trainables.data.index
import trainables.data.remote
import trainables.data.shard_check
from tests.trainables.http_ranges import Served, serving
from tests.trainables.shard_sets import encoded, numbered, write_shards
from tests.trainables.trials import Events, tiny_trial
from trainables.config import DataConfig
from trainables.data import DataError, Splits, open_splits, why_not_here
from trainables.data.pipeline import Batch, heldout_batches, train_batches
from trainables.data.readable import check_heldout
from trainables.data.remote import RemoteStorage
from trainables.data.shard_source import ShardSource
from trainables.data.shards import ROW
from trainables.data.storage import LocalStorage, Span, Storage
from trainables.loop import train
from trainables.runtime import select_runtime

TRAIN, HELDOUT = 25, 7


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remote indexes are kept in the test's folder, tries follow each other at once, and memory begins empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trainables.data.remote, "_WAITS_S", (0.0, 0.0, 0.0))
    yield
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    trainables.data.shard_check._open.cache_clear()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_shards(tmp_path / "data", train=numbered(TRAIN), heldout=numbered(HELDOUT))
    return tmp_path / "data"


@pytest.fixture
def served(data: Path) -> Iterator[Served]:
    with serving(data) as server:
        yield server


@pytest.fixture
def memory(data: Path) -> str:
    for path in data.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/data/{path.name}", path.read_bytes())
    return "memory://data"


def opened(address: Path | str, **settings: Any) -> Splits:
    return open_splits(DataConfig("shards", 8, path=str(address), **settings))


def shards_of(source: Any) -> ShardSource:
    assert isinstance(source, ShardSource)
    return source


def refused(address: Path | str) -> str:
    with pytest.raises(DataError) as error:
        opened(address)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- what is written, and read again


def test_what_is_written_is_read_again(data: Path) -> None:
    splits = opened(data)
    assert (len(splits.train), len(splits.heldout), splits.classes) == (TRAIN, HELDOUT, ("a", "b", "c"))
    for number in (0, 9, 10, 24, 3):
        example = splits.train[number]
        assert example.label == splits.train.label(number) == number % 3
        assert (example.image == (number * 5, 100, 250 - number * 5)).all()
    assert splits.train.name(24) == f"{data}/train-000002.tar[4]"
    for outside in (TRAIN, -1):
        with pytest.raises(IndexError):
            splits.train.read(outside)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_itself_reads_the_shards(data: Path) -> None:
    """In order, an image and its class under one key. It leaves its files for the garbage collector to close."""
    shards = [str(path) for path in sorted(data.glob("train-*.tar"))]
    samples = [*webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)]
    assert [(int(sample["cls"]), sample["png"]) for sample in samples] == numbered(TRAIN)
    assert samples[13]["__key__"] == "001000003"


def test_an_index_has_16_bytes_an_example_and_the_format_that_is_documented(data: Path) -> None:
    content = (data / "train.index").read_bytes()
    assert len(content) == 16 * (1 + TRAIN)
    block, length, label, crc = np.frombuffer(content[16 * 14 : 16 * 15], "<u4").tolist()
    shard = (data / "train-000001.tar").read_bytes()
    assert shard[512 * block : 512 * block + length] == encoded(13)
    assert (label, crc) == (1, zlib.crc32(encoded(13) + bytes([1, 0, 0, 0])))
    described = json.loads((data / "dataset.json").read_text())
    assert described["version"] == 2
    assert [row[:2] for row in described["train"]] == [
        ["train-000000.tar", 10], ["train-000001.tar", 10], ["train-000002.tar", 5]]  # fmt: skip


def test_the_digest_tells_data_sets_apart_and_not_places(data: Path, tmp_path: Path, memory: str) -> None:
    shutil.copytree(data, tmp_path / "there")
    assert opened(tmp_path / "there").digest == opened(memory).digest == opened(data).digest
    others = {
        "classes": {"classes": "abd"},
        "an image": {"train": [*numbered(TRAIN - 1), (0, encoded(30))]},
        "a class": {"train": [*numbered(TRAIN - 1), (1, encoded(24))]},
        "the order": {"train": numbered(TRAIN)[::-1]},
    }
    for name, change in others.items():
        write_shards(tmp_path / name, **({"train": numbered(TRAIN), "heldout": numbered(HELDOUT)} | change))  # type: ignore[arg-type]
    assert len({opened(folder).digest for folder in (data, *(tmp_path / name for name in others))}) == 5


# ---------------------------------------------------------------- as a source


def test_a_source_travels_with_nothing_open(data: Path) -> None:
    source = shards_of(opened(data).train)
    source.read(3)
    sent = pickle.dumps(source)
    assert len(sent) < 1500
    again: ShardSource = pickle.loads(sent)
    assert isinstance(again.shards, LocalStorage)
    assert (len(again.shards._open), again.index._mapped) == (0, None)
    assert (again.read(17) == source.read(17)).all()
    assert again.label(17) == 2


def test_few_files_are_open_and_one_that_is_read_stays_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2, 2))
    storage = LocalStorage(str(data))
    held = storage._descriptor("train-000000.tar")
    storage.ranges([Span("train-000001.tar", 0, 10)])
    assert [*storage._open] == ["train-000001.tar"]
    assert len(os.pread(held.number, 10, 0)) == 10


def test_reading_is_safe_from_several_threads(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2, 2))
    source = opened(data).train
    wrong: list[int] = []

    def read() -> None:
        for number in list(range(TRAIN)) * 4:
            if source.label(number) != number % 3 or source.read(number)[0, 0, 0] != number * 5:
                wrong.append(number)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_opening_imports_neither_grain_nor_fsspec(data: Path) -> None:
    program = f"""import sys
from trainables.config import DataConfig
from trainables.data import open_splits
open_splits(DataConfig("shards", 8, path={str(data)!r})).train.read(0)
print({{"grain", "fsspec"}} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def epoch(address: Path | str, *, start: int = 0, world: int = 1, **settings: Any) -> list[list[Batch]]:
    """The batches of one epoch of every rank, from a step on."""
    config = DataConfig("shards", 8, path=str(address), augment="crop", flip=True, **settings)
    found = []
    for rank in range(world):
        source = open_splits(config).train
        with train_batches(
            source, config, batch_size=5 * world, seed=1, start_step=start, steps=5 // world, rank=rank, world=world
        ) as batches:
            found.append([*batches])
    return found


def test_every_image_is_seen_once_an_epoch_and_is_the_same_from_every_storage(
    data: Path, served: Served, memory: str
) -> None:
    """From a disk (also through decoding processes), from memory, and from a web server (also through processes)."""
    (here,) = epoch(data)
    indices = np.concatenate([batch["index"] for batch in here])
    assert sorted(indices) == list(range(TRAIN))
    assert np.concatenate([batch["label"] for batch in here]).tolist() == (indices % 3).tolist()
    others = [
        *epoch(data, decode_workers=2),
        *epoch(memory),
        *epoch(served.address),
        *epoch(served.address, decode_workers=2),
        here[:3] + epoch(served.address, start=3)[0],
    ]
    for other in others:
        for one, same in zip(here, other, strict=True):
            assert all(np.array_equal(one[name], same[name]) for name in one)


def test_held_out_images_come_once_in_order_by_few_requests(served: Served) -> None:
    """Neighbours in a shard are asked for together."""
    config = DataConfig("shards", 8, path=served.address)
    source = open_splits(config).heldout
    source.label(0)
    before = len(served.asked)
    with heldout_batches(source, config, batch_size=4) as batches:
        assert np.concatenate([batch["label"] for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert [path for path, _ in served.asked[before:]] == ["/heldout-000000.tar"] * 2


def test_a_unit_of_work_is_asked_for_at_the_same_time(served: Served) -> None:
    """The server answers no request for an image before there are three."""
    source = shards_of(opened(served.address).train)
    source.label(0)
    served.together = threading.Barrier(3, timeout=60)
    fetched = source.fetched([3, 22, 14])
    assert [fetched.read(number)[0, 0, 0] for number in (3, 22, 14)] == [15, 110, 70]


def test_more_requests_are_under_way_than_packages_have_by_themselves(served: Served) -> None:
    """The server answers none before there are 128."""
    storage = RemoteStorage(served.address)
    (Path(served.folder) / "large").write_bytes(bytes(128 * 2**17))
    served.together = threading.Barrier(128, timeout=60)
    found = storage.ranges([Span("large", number * 2**17, 10) for number in range(128)])
    assert found == [bytes(10)] * 128


def test_bytes_that_arrived_are_not_kept_longer_than_they_are_needed(served: Served) -> None:
    source = shards_of(opened(served.address).train)
    fetched = source.fetched(range(TRAIN))
    for number in range(TRAIN):
        assert fetched.parts
        fetched.content(number)
    assert not fetched.parts
    assert fetched.content(3) == encoded(3)


def test_an_image_of_no_bytes_is_not_asked_for(served: Served) -> None:
    storage = RemoteStorage(served.address)
    before = len(served.asked)
    assert storage.ranges([Span("train-000000.tar", 512, 0)]) == [b""]
    assert len(served.asked) == before


def test_a_storage_that_does_not_answer_is_not_asked_for_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of many requests, one after another: that would take hours."""
    asked: list[str] = []

    class Silent:
        def cat_ranges(self, paths: list[str], *_: Any, **__: Any) -> list[Exception]:
            return [TimeoutError() for _ in paths]

        def info(self, path: str) -> None:
            asked.append(path)
            raise TimeoutError

    storage = RemoteStorage("memory://x")
    monkeypatch.setattr(storage, "_connected", Silent())
    with pytest.raises(OSError, match="TimeoutError"):
        storage.ranges([Span("s.tar", number * 10**6, 10) for number in range(32)])
    assert asked == []


def test_a_trial_ends_with_the_same_losses_from_every_storage(data: Path, served: Served, tmp_path: Path) -> None:
    """From a disk, through decoding processes, and from a web server, through others."""
    results, threads = [], torch.get_num_threads()
    for name, address, decode_workers in (("a", str(data), 0), ("b", str(data), 2), ("c", served.address, 2)):
        config = DataConfig("shards", 8, path=address, augment="shift", decode_workers=decode_workers)
        events = Events()
        trial = tiny_trial(tmp_path / name, data=config, model__classes=3)
        result = train(trial, select_runtime("cpu", cores=1), events)
        curve = [point[1] for event in events.named("progressed") for point in event["points"]]
        results.append((result.outcome, result.heldout_loss, result.train_loss, curve))
    torch.set_num_threads(threads)
    assert results[0][0] == "finished"
    assert len(results[0][3]) > 1
    assert results[0] == results[1] == results[2]


# ---------------------------------------------------------------- the index of a remote data set


def test_a_remote_index_is_brought_to_this_host_once(served: Served, tmp_path: Path) -> None:
    opened(served.address).train.read(3)
    (kept,) = (path for path in (tmp_path / "cache/convscale/indexes").iterdir() if path.stat().st_size == 16 * 26)
    before = len(served.asked)
    again: ShardSource = pickle.loads(pickle.dumps(opened(served.address).train))
    assert again.label(3) == 0
    assert not any("index" in path for path, _ in served.asked[before:])
    assert kept.exists()


def test_an_index_that_this_host_has_kept_badly_is_brought_again(served: Served, tmp_path: Path) -> None:
    opened(served.address).train.read(3)
    for kept in (tmp_path / "cache").rglob("*.index"):
        kept.write_bytes(bytes(kept.stat().st_size))
    trainables.data.shard_check._open.cache_clear()
    assert opened(served.address).train.read(3)[0, 0, 0] == 15


def test_a_remote_index_that_is_too_large_is_asked_for_row_by_row(
    data: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here,) = epoch(data)
    monkeypatch.setattr(trainables.data.index, "MOST_BROUGHT", 100)
    (there,) = epoch(served.address)
    assert all(np.array_equal(one["image"], other["image"]) for one, other in zip(here, there, strict=True))
    assert not (tmp_path / "cache").exists()


def test_a_host_that_cannot_keep_an_index_holds_it_in_memory(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert opened(served.address).train.read(3)[0, 0, 0] == 15


# ---------------------------------------------------------------- what is wrong with it


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of `dataset.json`."""

    def spoil(folder: Path) -> None:
        described = json.loads((folder / "dataset.json").read_text())
        change(described)
        (folder / "dataset.json").write_text(json.dumps(described))

    return spoil


def cut(name: str, size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return spoil


def flip(name: str, place: int) -> Callable[[Path], None]:
    """A changed byte."""

    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 255
        (folder / name).write_bytes(content)

    return spoil


SPOILT = [
    (lambda folder: (folder / "dataset.json").unlink(), "has no dataset.json; give the folder or address that holds"),
    (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json': Expecting property name"),
    (lambda folder: (folder / "dataset.json").write_text("[]"), "dataset.json': is not a JSON object"),
    (edit(lambda said: said.update(version=1)), "version 1 given; allowed: 2; its shards are ArrayRecord files, which"),
    (edit(lambda said: said.update(classes="abc")), "classes: allowed: a list of names"),
    (edit(lambda said: said.update(classes=["a", "a"])), "classes: allowed: two or more, none twice"),
    (edit(lambda said: said.pop("heldout")), "heldout: allowed: each shard as ["),
    (edit(lambda said: said["train"][0].__setitem__(0, "../x")), "train: '../x' given; allowed: names below the"),
    (edit(lambda said: said["train"][0].__setitem__(1, -1)), "train: 'train-000000.tar' has -1 examples; allowed: "),
    (edit(lambda said: said["train"].pop()), "train.index' has 416 bytes, and 336 by dataset.json; bring it back"),
    (edit(lambda said: said["train"][1].__setitem__(2, 9)), "train-000001.tar' has 21504 bytes, and 9 by"),
    (lambda folder: (folder / "train-000001.tar").unlink(), "train-000001.tar' is part of the data set and cannot be"),
    (
        lambda folder: (folder / "train.index").unlink(),
        "train.index' is part of the data set and cannot be read (No su",
    ),
    (cut("train-000001.tar", 10_000), "train-000001.tar' has 10000 bytes, and 21504 by dataset.json; bring it back"),
    (cut("train.index", 100), "train.index' has 100 bytes, and 416 by dataset.json; bring it back whole"),
    (flip("train.index", 0), "train.index' is no index"),
    (flip("train.index", 200), "train.index' is damaged"),
    (flip("train-000001.tar", 9 * 2048 + 130), "train-000001.tar' has no image of 79 bytes at byte 18944, where the i"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=[said[:30] for _, said in SPOILT])
def test_a_data_set_that_is_not_whole_is_one_line(
    data: Path, served: Served, spoil: Callable[[Path], Any], said: str
) -> None:
    """On a disk and at an address alike."""
    spoil(data)
    for address in (str(data), served.address):
        message = refused(address)
        assert message.startswith(f"data.path: '{address}")
        assert said in message


def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere' does not exist; give a folder or an address that holds dataset.json" in refused(
        tmp_path / "nowhere"
    )
    with pytest.raises(DataError, match=r"^data.path: nothing is given; give a folder or an address that holds data"):
        open_splits(DataConfig("shards", 8))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gs://bucket/jft", r"'gs://bucket/jft' needs the package gcsfs, which is not installed here; install it besi"),
        (
            "nonsense://jft",
            r"'nonsense://jft' given, and 'nonsense://' cannot be used \(Protocol not known: nonse",
        ),
    ],
)
def test_an_address_that_cannot_be_reached_is_one_line(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(DataError, match=f"^data.path: {said}"):
        opened(address)
    why = why_not_here(address)
    assert why is not None
    assert why.startswith("cannot be reached (")


@pytest.mark.parametrize("number", [0, 1, 2, 4, 8])
def test_a_storage_that_fails_while_a_data_set_is_opened_is_no_mistake_of_the_users(
    served: Served, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for then: a trial is tried again for an OSError, and ended for a DataError."""
    monkeypatch.setattr(trainables.data.remote, "_WAITS_S", ())
    served.fails_from = len(served.asked) + number
    with pytest.raises(OSError, match=r"\[Errno 5\] 503, .*: 'http") as failed:
        opened(served.address)
    assert not isinstance(failed.value, DataError)
    monkeypatch.setattr(trainables.data.remote, "_WAITS_S", (0.0,) * 60)
    served.fails_from, served.failing = None, 50
    assert opened(served.address).train.read(4)[0, 0, 0] == 20


def test_a_server_that_cannot_be_reached_is_no_mistake_of_the_users() -> None:
    with pytest.raises(OSError, match=r"Cannot connect to host .*: 'http://127.0.0.1:9/jft/dataset.json'"):
        opened("http://127.0.0.1:9/jft")
    why = why_not_here("http://127.0.0.1:9/jft")
    assert why is not None
    assert why.startswith("cannot be reached (Cannot connect to host")


@pytest.mark.parametrize(
    "address", ["https://user:SECRET@host/x", "https://SECRET@host/x", "http://h/x?sig=SECRET", "s3://key:SECRET@b/x"]
)
def test_credentials_in_an_address_are_refused_and_not_told(address: str) -> None:
    said = refused(address)
    assert "given with a password or a query (?...), which would be told and kept; give the address alone" in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    ("address", "meant"), [("gs:/bucket/x", "gs://bucket/x"), ("file:/disk/x", "/disk/x"), ("s3:/b", "s3://b")]
)
def test_an_address_of_a_single_slash_is_no_folder(address: str, meant: str) -> None:
    assert refused(address).endswith(f"or an address with ://; write {meant}, or ./{address} for a folder")


def test_data_are_here_or_not(data: Path, served: Served, tmp_path: Path) -> None:
    found = [why_not_here(str(place)) for place in (data, served.address, tmp_path / "x", f"{served.address}/x")]
    assert found == [None, None, "is not here", "is not here"]


def test_of_very_many_shards_an_even_sample_is_looked_into(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut("train-000001.tar", 10)(data)
    monkeypatch.setattr(trainables.data.shard_check, "MOST_SHARDS", 2)
    opened(data)
    cut("train-000002.tar", 10)(data)
    assert "train-000002.tar' has 10 bytes" in refused(data)


# ---------------------------------------------------------------- while it is read


@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_image_is_told_by_name_or_left_out(data: Path, served: Served, remote: bool) -> None:
    flip("train-000000.tar", 512 + 20)(data)
    address = served.address if remote else str(data)
    splits = opened(address)
    said = rf"^cannot read image '{address}/train-000000.tar\[0\]' \(its bytes, or its class, are not those that were"
    with pytest.raises(DataError, match=said):
        splits.train.read(0)
    config = DataConfig("shards", 8, path=address, bad_images="skip")
    with train_batches(splits.train, config, batch_size=TRAIN, seed=0, start_step=0, steps=1) as batches:
        (batch,) = batches
    assert batch["index"][batch["weight"] == 0].tolist() == [0]


def test_a_class_that_was_changed_in_the_index_is_told(data: Path) -> None:
    splits = opened(data)
    flip("train.index", 16 * (1 + 3) + 8)(data)
    with pytest.raises(DataError, match=r"train-000000.tar\[3\]' \(its bytes, or its class, are not those"):
        splits.train.read(3)


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_that_is_cut_off_while_it_is_read_spoils_what_it_has_no_more(
    data: Path, served: Served, remote: bool
) -> None:
    splits = opened(served.address if remote else data)
    cut("train-000001.tar", 5000)(data)
    with pytest.raises(DataError, match=r"train-000001.tar\[9\]' \(its shard ends 79 bytes before it does\)"):
        splits.train.read(19)
    assert splits.train.read(10)[0, 0, 0] == 50


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_that_goes_away_is_the_storages_fault(data: Path, served: Served, remote: bool) -> None:
    source: ShardSource = pickle.loads(pickle.dumps(opened(served.address if remote else data).train))
    (data / "train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        source.read(0)


def test_a_storage_that_fails_for_a_moment_is_asked_again(served: Served) -> None:
    splits = opened(served.address)
    served.failing = 2
    assert splits.train.read(4)[0, 0, 0] == 20
    served.failing = 1_000
    with pytest.raises(OSError, match=r"503.*train-000000\.tar") as failed:
        splits.train.read(5)
    assert not isinstance(failed.value, DataError)


def test_a_server_without_byte_ranges_is_refused(served: Served) -> None:
    served.ranges = False
    assert "its server does not serve byte ranges; use one that does" in refused(served.address)


def test_bytes_that_are_no_image_are_told_by_their_place(tmp_path: Path) -> None:
    heldout = [(0, encoded(1)), (1, b"no image"), (2, encoded(2)[:-20])]
    write_shards(tmp_path, train=numbered(TRAIN), heldout=heldout)
    splits = opened(tmp_path)
    with pytest.raises(DataError, match=rf"^cannot read image '{tmp_path}/heldout-000000.tar\[1\]' \(cannot identify"):
        splits.heldout.read(1)
    with pytest.raises(DataError, match=r"cannot read image '.*\[[12]\]'"):
        check_heldout(splits, DataConfig("shards", 8, path=str(tmp_path)))


def test_a_class_that_the_data_set_has_not_is_told(data: Path) -> None:
    edit(lambda said: said.update(classes=["a", "b"]))(data)
    with pytest.raises(DataError, match=r"\[2\]' \(its class is 2, and the data set has 2, from 0\)"):
        opened(data).train.label(2)


def test_a_storage_is_what_its_contract_says(data: Path, memory: str) -> None:
    for storage in (LocalStorage(str(data)), RemoteStorage(memory)):
        conforms(storage)


def conforms(storage: Storage) -> None:
    with storage.writing("sub/one.txt") as file:
        file.write(b"0123456789")
    with contextlib.suppress(ZeroDivisionError), storage.writing("sub/two.txt") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert storage.matching("sub/*.txt") == ["sub/one.txt"]
    assert (storage.size("sub/one.txt"), storage.read("sub/one.txt")) == (10, b"0123456789")
    spans = [Span("sub/one.txt", start, length) for start, length in ((4, 2), (0, 1), (8, 5), (4, 1))]
    assert storage.ranges(spans) == [b"45", b"0", b"89", b"4"]
    with storage.stream("sub/one.txt") as stream:
        assert (stream.read(4), stream.read()) == (b"0123", b"456789")
    storage.remove(["sub/one.txt", "sub/never.txt"])
    assert storage.matching("sub/*") == []
    for look in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            look("sub/one.txt")
    assert pickle.loads(pickle.dumps(storage)).address == storage.address
    assert ROW.itemsize == 16
