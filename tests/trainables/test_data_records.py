"""The source of records: shards of encoded images with an index beside them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.config import DataConfig
from trainables.data import DataError, Splits, open_splits, records
from trainables.data.pipeline import heldout_batches, train_batches
from trainables.data.readable import check_heldout
from trainables.data.records import Index, Shards, read_index, write_records

TRAIN, HELDOUT = 25, 7


def encoded(number: int, kind: str = "PNG") -> bytes:
    """An image of 12 x 10 pixels whose colour tells its number."""
    image = Image.new("RGB", (12, 10), (number * 5, 100, 250 - number * 5))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def write(folder: Path, **changes: Any) -> Path:
    """A data set of three classes in shards of ten; `changes` replace what `write_records` is given."""
    wanted: dict[str, Any] = {
        "classes": ["a", "b", "c"],
        "train": ((number % 3, encoded(number)) for number in range(TRAIN)),
        "heldout": [(number % 3, encoded(number)) for number in range(HELDOUT)],
        "records_per_shard": 10,
    }
    write_records(folder, **(wanted | changes))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


def opened(folder: Path, **settings: Any) -> Splits:
    return open_splits(DataConfig("records", 8, path=str(folder), **settings))


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- what is written, and read again


def test_what_is_written_is_read_again(data: Path) -> None:
    splits = opened(data)
    assert (len(splits.train), len(splits.heldout), splits.classes) == (TRAIN, HELDOUT, ("a", "b", "c"))
    assert read_index(str(data)).train == tuple((f"train-{n:05d}.array_record", k) for n, k in enumerate((10, 10, 5)))
    for number in (0, 9, 10, 24, 3):
        example = splits.train[number]
        assert example.label == number % 3
        assert example.image.shape == (8, 8, 3)
        assert (example.image == (number * 5, 100, 250 - number * 5)).all()
    assert splits.train.name(24) == f"{data}/train-00002.array_record[4]"
    with pytest.raises(IndexError):
        splits.train.read(TRAIN)


def test_a_record_is_its_class_and_the_bytes_of_a_file(data: Path) -> None:
    """The format that the module documents, by the library's own reader."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(data / "heldout-00000.array_record"))
    assert reader.num_records() == HELDOUT
    assert reader.read([5])[0] == (5 % 3).to_bytes(4, "little") + encoded(5)
    assert json.loads((data / "dataset.json").read_text()) == {
        "version": 1,
        "classes": ["a", "b", "c"],
        "train": {"train-00000.array_record": 10, "train-00001.array_record": 10, "train-00002.array_record": 5},
        "heldout": {"heldout-00000.array_record": 7},
    }


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP"])
def test_any_image_that_a_folder_may_hold_may_be_a_record(tmp_path: Path, kind: str) -> None:
    splits = opened(write(tmp_path, classes=3, heldout=[(2, encoded(20, kind))]))
    assert splits.classes == ("0", "1", "2")
    assert np.abs(splits.heldout[0].image.astype(int) - (100, 100, 150)).max() < 12
    check_heldout(splits, DataConfig("records", 8, path=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": [(3, b"")]}, "class 3 given for an image of train; allowed: 0 to 2"),
        ({"heldout": []}, "no images given for heldout"),
        ({"records_per_shard": 0}, "records_per_shard 0 given; allowed: 1 or more"),
    ],
)
def test_what_cannot_be_written_leaves_no_index(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write(tmp_path, **changes)
    assert not (tmp_path / "dataset.json").exists()


# ---------------------------------------------------------------- as a source


def test_a_source_opens_nothing_until_it_is_read_and_travels(data: Path) -> None:
    source = opened(data).train
    source.read(3)
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again.shards._opened.reader is None
    assert (again.read(17) == source.read(17)).all()
    assert again.label(17) == 2


def test_an_image_and_its_label_are_read_once_and_a_label_decodes_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_of = Shards._read
    monkeypatch.setattr(Shards, "_read", lambda self, index: (read.append(index), read_of(self, index))[1])
    source = opened(data).train
    source.label(4)
    source.read(4)
    assert read == [4]
    monkeypatch.setattr("trainables.data.sources.decode_bytes", lambda *_: pytest.fail("an image was decoded"))
    assert [source.label(number) for number in range(TRAIN)] == [number % 3 for number in range(TRAIN)]


def test_reading_is_safe_from_several_threads(data: Path) -> None:
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


@pytest.mark.parametrize("decode_workers", [0, 2])
def test_every_record_is_seen_once_an_epoch(data: Path, decode_workers: int) -> None:
    config = DataConfig("records", 8, path=str(data), augment="crop", flip=True, decode_workers=decode_workers)
    splits = open_splits(config)
    with train_batches(splits.train, config, batch_size=5, seed=1, start_step=0, steps=5) as batches:
        found = list(batches)
    indices = np.concatenate([batch["index"] for batch in found])
    assert sorted(indices) == list(range(TRAIN))
    assert np.concatenate([batch["label"] for batch in found]).tolist() == (indices % 3).tolist()
    with train_batches(splits.train, config, batch_size=5, seed=1, start_step=3, steps=5) as batches:
        assert [batch["index"].tolist() for batch in batches] == [batch["index"].tolist() for batch in found[3:]]
    with heldout_batches(splits.heldout, config, batch_size=4) as batches:
        assert np.concatenate([batch["label"] for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


def test_the_digest_tells_data_sets_apart_and_not_places(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "there")
    assert opened(tmp_path / "there").digest == opened(data).digest
    others = [write(tmp_path / "x", classes=3), write(tmp_path / "y", records_per_shard=9)]
    assert len({opened(folder).digest for folder in (data, *others)}) == 3


def test_opening_imports_no_grain(data: Path) -> None:
    import subprocess

    program = f"""import sys
from trainables.config import DataConfig
from trainables.data import open_splits
open_splits(DataConfig("records", 8, path={str(data)!r}))
print("grain" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ---------------------------------------------------------------- what is wrong with it


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of `dataset.json`."""

    def spoil(folder: Path) -> None:
        index = json.loads((folder / "dataset.json").read_text())
        change(index)
        (folder / "dataset.json").write_text(json.dumps(index))

    return spoil


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "train-00001.array_record").write_bytes((folder / "train-00001.array_record").read_bytes()[:size])
        and None
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "' does not exist; give a folder that holds dataset.json and its shards"),
        (lambda folder: (folder / "dataset.json").unlink(), "' has no dataset.json; give a folder that holds it and"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json' cannot be read (Expecting"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "dataset.json': is not a JSON object"),
        (edit(lambda index: index.update(version=2)), "dataset.json': version 2 given; allowed: 1"),
        (edit(lambda index: index.update(classes="abc")), "classes: allowed: a list of names, or how many there are"),
        (edit(lambda index: index.update(classes=["a", "a"])), "classes: allowed: two or more, none twice"),
        (edit(lambda index: index.pop("heldout")), "heldout: allowed: each shard's file and its number of records"),
        (edit(lambda index: index["train"].update({"../x": 1})), "train: '../x' given; allowed: names of files beside"),
        (edit(lambda index: index["train"].update({"x": 0})), "train: 'x' has 0 records; allowed: whole numbers of 1"),
        (
            edit(lambda index: index["train"].update({"train-00001.array_record": 9})),
            "train-00001.array_record' has 10 records, and dataset.json says 9; correct dataset.json, or write the ",
        ),
        (
            lambda folder: (folder / "train-00001.array_record").unlink(),
            "train-00001.array_record' is named in dataset.json and cannot be read (No such file or directory); bring",
        ),
        (cut(0), "train-00001.array_record' is damaged, or no ArrayRecord file"),
        (cut(70_000), "train-00001.array_record' is damaged, or no ArrayRecord file"),
        (cut(131_000), "train-00001.array_record' is damaged, or no ArrayRecord file"),
    ],
)
def test_a_data_set_that_is_not_whole_is_one_line(data: Path, spoil: Callable[[Path], Any], said: str) -> None:
    opened(data)
    spoil(data)
    message = refused(data)
    assert message.startswith(f"data.path: '{data}")
    assert said in message


def test_an_address_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^data.path: 'gs://bucket/jft' given; allowed for source records: a folder of"
    ):
        read_index("gs://bucket/jft")
    with pytest.raises(DataError, match=r"^data.path: nothing is given; give a folder that holds dataset.json"):
        open_splits(DataConfig("records", 8))


def damage(folder: Path, name: str) -> None:
    """Flip bytes of a shard's first record; its footer stays whole."""
    path = folder / name
    content = bytearray(path.read_bytes())
    content[110:114] = b"\0\1\2\3"
    path.write_bytes(content)


def test_a_damaged_record_is_told_by_name_or_left_out(data: Path) -> None:
    damage(data, "train-00000.array_record")
    splits = opened(data)
    said = rf"^cannot read record {data}/train-00000.array_record\[0\] \(.*mismatch.*\); write its shard anew, or set"
    with pytest.raises(DataError, match=said):
        splits.train.read(0)
    config = DataConfig("records", 8, path=str(data), bad_images="skip")
    with train_batches(splits.train, config, batch_size=TRAIN, seed=0, start_step=0, steps=1) as batches:
        (batch,) = batches
    assert batch["index"][batch["weight"] == 0].tolist() == [0]


def test_a_class_that_the_data_set_has_not_is_told(data: Path) -> None:
    edit(lambda index: index.update(classes=2))(data)
    with pytest.raises(DataError, match=r"\[2\] \(its class is 2, and dataset.json has 2, from 0\)"):
        opened(data).train.label(2)


def test_bytes_that_are_no_image_are_told_by_the_records_name(tmp_path: Path) -> None:
    splits = opened(write(tmp_path, heldout=[(0, encoded(1)), (1, b"no image"), (2, encoded(2)[:-20])]))
    config = DataConfig("records", 8, path=str(tmp_path))
    said = rf"^cannot read image '{tmp_path}/heldout-00000.array_record\[1\]' \(cannot identify image file\); put"
    with pytest.raises(DataError, match=said):
        splits.heldout.read(1)
    with pytest.raises(DataError, match=r"cannot read image '.*\[[12]\]'"):
        check_heldout(splits, config)


def test_a_shard_that_goes_away_is_the_storages_fault(data: Path) -> None:
    splits = opened(data)
    (data / "train-00000.array_record").unlink()
    with pytest.raises(FileNotFoundError):
        splits.train.read(0)


def test_of_very_many_shards_an_even_sample_is_opened(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_SHARDS", 2)
    index = read_index(str(data))
    wrong = Index(index.classes, (index.train[0], ("train-00001.array_record", 9), index.train[2]), index.heldout)
    records.check_shards(str(data), wrong.train)
    with pytest.raises(DataError):
        records.check_shards(str(data), wrong.train[:2])
