"""WebDataset shards that are there already: what is found in them, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

import trainables.data.remote
from tests.trainables.http_ranges import serving
from tests.trainables.shard_sets import encoded
from trainables.config import DataConfig
from trainables.data import DataError, Splits, open_splits
from trainables.data.building import begin, finish
from trainables.data.crew import Progress, do_all
from trainables.data.storage import open_storage
from trainables.data.webdatasets import plan_index

Sample = dict[str, bytes]
SPLITS = {"train": ["train-{000..001}.tar"], "heldout": ["val-*.tar"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trainables.data.remote, "_WAITS_S", (0.0,))


def write_tar(path: Path, samples: Iterable[tuple[str, Sample]], kind: int = tarfile.PAX_FORMAT) -> None:
    """A shard as others write it: members of each sample one after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for key, members in samples:
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mtime = len(content), 1.5
                tar.addfile(member, io.BytesIO(content))


def with_cls(numbers: Sequence[int], classes: int = 3) -> list[tuple[str, Sample]]:
    return [
        (f"{number:04}", {"jpg": encoded(number, "JPEG"), "cls": b"%d\n" % (number % classes)}) for number in numbers
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards to train on of six images each, and one held out of three."""
    for number, (name, first) in enumerate((("train-000", 0), ("train-001", 6), ("val-0", 12))):
        write_tar(tmp_path / "there" / f"{name}.tar", with_cls(range(first, first + (6 if number < 2 else 3))))
    return tmp_path / "there"


def index(address: Path | str, patterns: dict[str, list[str]] = SPLITS, **settings: Any) -> Progress:
    plan = plan_index(open_storage(str(address)), patterns, **settings)
    assert begin(plan) is None
    progress = do_all(plan, workers=1, tell=lambda progress: None)
    finish(plan)
    return progress


def opened(address: Path | str) -> Splits:
    return open_splits(DataConfig("shards", 8, path=str(address)))


def reds(source: Any) -> list[tuple[int, int]]:
    """By which images are told apart, rounded as JPEG leaves it, and their classes."""
    return [(round(int(source.read(number)[0, 0, 0]) / 5), source.label(number)) for number in range(len(source))]


# ---------------------------------------------------------------- what is found


def test_shards_are_read_as_they_are(shards: Path) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    index(shards)
    splits = opened(shards)
    assert (reds(splits.train), splits.classes) == ([(n, n % 3) for n in range(12)], ("0", "1", "2"))
    assert reds(splits.heldout) == [(n, n % 3) for n in range(12, 15)]
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in shards.iterdir() if path not in before) == [
        "dataset.json", "heldout.index", "train.index"]  # fmt: skip


def test_shards_that_webdataset_itself_wrote_are_read(tmp_path: Path) -> None:
    for name in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar"), encoder=False) as tar:
            for number in range(4):
                tar.write({"__key__": f"{number:04}", "png": encoded(number), "cls": str(number % 2).encode()})
    index(tmp_path, {"train": ["train.tar"], "heldout": ["val.tar"]})
    assert reds(opened(tmp_path).train) == [(number, number % 2) for number in range(4)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_file_and_of_key_is_read(tmp_path: Path, kind: int) -> None:
    """Long names (but for ustar), folders, endings of several parts, and members that are not of a sample."""
    key = "a/b.c/" + ("x" * 130 if kind != tarfile.USTAR_FORMAT else "x" * 60)
    samples = [
        ("__notes__", {"txt": b"not a sample"}),
        (f"{key}1", {"CLS": b"1", "img.JPEG": encoded(1, "JPEG"), "json": b"{}"}),
        (f"{key}2", {"img.JPEG": encoded(2, "JPEG"), "CLS": b"0", "txt": b"a picture" * 100}),
    ]
    write_tar(tmp_path / "s.tar", samples, kind)
    write_tar(tmp_path / "h.tar", samples, kind)
    index(tmp_path, {"train": ["s.tar"], "heldout": ["h.tar"]})
    assert reds(opened(tmp_path).train) == [(1, 1), (2, 0)]


def test_classes_come_from_json_and_may_be_names(tmp_path: Path) -> None:
    for name, labels in (("t1", ["dog", "cat"]), ("t2", ["eel"]), ("h", ["dog"])):
        samples = [
            (f"{number}", {"png": encoded(number), "json": json.dumps({"label": label, "width": 5}).encode()})
            for number, label in enumerate(labels)
        ]
        write_tar(tmp_path / f"{name}.tar", samples)
    index(tmp_path, {"train": ["t{1,2}.tar"], "heldout": ["h.tar"]}, label="json.label")
    splits = opened(tmp_path)
    assert splits.classes == ("cat", "dog", "eel")
    assert [splits.train.label(number) for number in range(3)] == [1, 0, 2]
    assert splits.heldout.label(0) == 1


def test_names_of_classes_may_be_given(shards: Path, tmp_path: Path) -> None:
    index(shards, classes=("ant", "bee", "cow", "dog"))
    assert opened(shards).classes == ("ant", "bee", "cow", "dog")
    with pytest.raises(
        DataError, match=r"train-000.tar' has the class 2; allowed: the 2 classes given, 'ant' to 'bee'"
    ):
        index(f"file://{tmp_path}/elsewhere", absolute(shards), classes=("ant", "bee"))


def absolute(shards: Path | str) -> dict[str, list[str]]:
    return {split: [f"{shards}/{pattern}" for pattern in patterns] for split, patterns in SPLITS.items()}


def test_the_index_may_lie_elsewhere_than_the_shards(shards: Path, tmp_path: Path) -> None:
    """On this machine, of shards that a web server has and nobody can write to."""
    index(shards)
    with serving(shards) as served:
        patterns = {"train": [f"{served.address}/train-{{000..001}}.tar"], "heldout": [f"{served.address}/val-0.tar"]}
        index(tmp_path / "web", patterns)
        web = opened(tmp_path / "web")
        assert reds(web.train) == reds(opened(shards).train)
        assert web.digest == opened(shards).digest
        assert web.train.name(7) == f"{served.address}/train-001.tar[1]"
    index(tmp_path / "disk", absolute(shards))
    assert opened(tmp_path / "disk").digest == opened(shards).digest


def test_what_was_read_is_not_read_again(shards: Path) -> None:
    plan = plan_index(open_storage(str(shards)), SPLITS)
    begin(plan)
    content = (shards / "train-001.tar").read_bytes()
    (shards / "train-001.tar").write_bytes(content[:3000])
    with pytest.raises(DataError):
        do_all(plan, workers=1, tell=lambda progress: None)
    (shards / "train-001.tar").write_bytes(content)
    progress = index(shards)
    assert (progress.images_before, progress.images) == (6, 9)
    assert len(opened(shards).train) == 12


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"classes": ("a", "b")}, {"classes": ("a", "b", "c")}),
        ({"patterns": {**SPLITS, "train": ["train-{000..001}.tar", "empty.tar"]}}, {}),
        ({"patterns": {**SPLITS, "train": ["train-000.tar", "spoilt.tar"]}}, {}),
    ],
)
def test_what_an_error_says_may_be_mended_and_nothing_is_read_again(
    shards: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    (shards / "empty.tar").write_bytes(tar_of())
    (shards / "spoilt.tar").write_bytes(b"no tar file")
    with pytest.raises(DataError):
        index(shards, **first)
    progress = index(shards, **then)
    assert progress.images_before >= 6
    assert reds(opened(shards).train) == [(n, n % 3) for n in range(12)]


def test_a_class_that_is_not_given_is_told_at_its_first_shard(shards: Path) -> None:
    plan = plan_index(open_storage(str(shards)), SPLITS, classes=("a", "b"))
    begin(plan)
    done: list[Progress] = []
    with pytest.raises(DataError, match=r"train-000.tar' has the class 2; allowed: the 2 classes given, 'a' to 'b'"):
        do_all(plan, workers=1, tell=done.append)
    assert max(progress.done for progress in done) == 0


def test_what_is_no_sample_is_passed_over_as_webdataset_does(tmp_path: Path) -> None:
    out = tmp_path / "t.tar"
    with tarfile.open(out, "w") as tar:
        for name, content in (
            ("._0000.jpg", b"of a Mac"),
            ("sub/.DS_Store", b"too"),
            ("README", b"a text"),
            *((f"{key}.{ending}", content) for key, sample in with_cls(range(3)) for ending, content in sample.items()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_tar(tmp_path / "h.tar", with_cls(range(3)))
    index(tmp_path, {"train": ["t.tar"], "heldout": ["h.tar"]})
    assert reds(opened(tmp_path).train) == [(0, 0), (1, 1), (2, 2)]


def test_examples_that_cannot_be_used_are_left_out_and_told(shards: Path) -> None:
    """An empty image is in any case."""
    bad: list[tuple[str, Sample]] = [
        ("empty", {"jpg": b"", "cls": b"1"}),
        ("bare", {"cls": b"1"}),
        ("no class", {"jpg": IMAGE}),
        ("two", {"jpg": IMAGE, "png": IMAGE, "cls": b"1"}),
        ("twice", {"jpg": IMAGE, "cls": b"1", "JPG": IMAGE}),
        ("large", {"jpg": IMAGE, "cls": b"9" * 5000}),
    ]
    for name, samples in (("train-001", bad), ("val-0", bad[:1])):
        write_tar(shards / f"{name}.tar", [*with_cls(range(6)), *samples])
    with pytest.raises(DataError, match=r"'bare' has no image"):
        index(shards)
    progress = index(shards, bad_images="skip")
    where = shards / "train-001.tar"
    assert progress.left_out == [*(f"{where}: {key}" for key, _ in bad), f"{shards}/val-0.tar: empty"]
    assert (len(opened(shards).train), len(opened(shards).heldout)) == (12, 6)


@pytest.mark.parametrize("form", ["~", "file://"])
def test_paths_of_shards_may_be_written_as_any_path(
    shards: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = "~/there" if form == "~" else f"file://{shards}"
    index(tmp_path / "index", absolute(there))
    assert reds(opened(tmp_path / "index").train) == [(n, n % 3) for n in range(12)]


def test_a_name_may_have_brackets(shards: Path) -> None:
    (shards / "train-000.tar").rename(shards / "t[1].tar")
    index(shards, {**SPLITS, "train": ["t[1].tar", "train-*.tar"]})
    assert len(opened(shards).train) == 12


# ---------------------------------------------------------------- what is refused


def tar_of(*samples: tuple[str, Sample]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for key, members in samples:
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


WHOLE = tar_of(*with_cls(range(6)))
IMAGE = encoded(1)
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as _tar:
    HEADER = _tar.getmembers()[4].offset


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no tar file, or is damaged (empty file); bring it back whole"),
        (b"a text, and no tar file" * 100, "is no tar file, or is damaged ("),
        (gzip.compress(WHOLE), "is compressed (gzip), so no image in it can be read by itself; unpack it"),
        (WHOLE[:700], "is no tar file, or is damaged (unexpected end of data); bring it back whole"),
        (
            WHOLE[:HEADER] + bytes([WHOLE[HEADER] ^ 8]) + WHOLE[HEADER + 1 :],
            f"is damaged at byte {HEADER}, or is several tar files in one; bring it back whole, or pack it anew",
        ),
        (WHOLE + WHOLE, "or is several tar files in one; bring it back whole, or pack it anew"),
        (WHOLE[:4096], "bytes without tar's mark of the end; bring it back whole"),
        (tar_of(("a", {"cls": b"1"})), "'a' has no image (bmp, jpeg, jpg, png, webp), but cls; say what images are ca"),
        (
            tar_of(("a", {"png": IMAGE})),
            "'a' has no class, as 'cls' beside its image (it has png); say where class",
        ),
        (tar_of(("a", {"png": IMAGE, "seg.png": IMAGE, "cls": b"1"})), "'a' has 2 images (cls, png, seg.png); say wh"),
        (tar_of(("a", {"png": IMAGE, "cls": b"-1"}), ("b", {"png": IMAGE, "cls": b"1"})), "classes are '-1' and 1; "),
        (tar_of(("a", {"png": IMAGE, "cls": b"0"}), ("b", {"png": IMAGE, "cls": b"x"})), "classes are 'x' and 0; give"),
        (tar_of(("a", {"png": IMAGE, "cls": b"9" * 5000})), "has the class '9999999999999"),
        (tar_of(("a", {"png": IMAGE, "cls": b"1000"})), "has the class 1000, and there are 10 images in all; allowed:"),
        (tar_of(("a", {"png": IMAGE, "cls": b"99999999"})), "'a' has the class 99999999; allowed: a number from 0 to "),
        (tar_of(("a", {"png": IMAGE, "cls": b""})), "'a' has the class ''; allowed: a number from 0 to 16777215, or a"),
        (tar_of(("a", {"png": IMAGE, "cls": b"1", "PNG": IMAGE})), "'a' has 'png' twice; give each example a key of"),
        (tar_of(("a", {"png": IMAGE, "cls": b"cat"})), "classes are texts in '"),
        (tar_of(), "holds no images; leave it out"),
    ],
)
def test_a_shard_that_cannot_be_used_is_one_line_that_names_it(shards: Path, content: bytes, said: str) -> None:
    (shards / "train-001.tar").write_bytes(content)
    with pytest.raises(DataError) as refused:
        index(shards)
    assert "\n" not in str(refused.value)
    assert said in str(refused.value)
    assert f"{shards}/train-001.tar" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"label": "json.name"},
            "'0000' has no class, as 'json' beside its image (it has cls, jpg); say where",
        ),
        ({"label": "json"}, "--label: 'json' given; allowed: an ending such as cls, or json.KEY such as json.label"),
        ({"label": ""}, "--label: '' given; allowed: an ending such as cls"),
        ({"image": "png"}, "'0000' has no 'png', but cls, jpg; say what images are called with --image"),
        (
            {"patterns": {**SPLITS, "train": ["t{000..009}.tar"]}},
            "t000.tar' cannot be read (No such file or dire",
        ),
        ({"patterns": {**SPLITS, "train": ["nothing-*.tar"]}}, "nothing-*.tar' given, and nothing matches; correct it"),
        (
            {"patterns": {**SPLITS, "train": ["x{9..1}.tar"]}},
            "shards: '{9..1}' given in 'x{9..1}.tar'; allowed: num",
        ),
        ({"patterns": {**SPLITS, "train": ["x{0..999999999}.tar"]}}, "--train: more than 1,000,000 shards given; allo"),
        ({"patterns": {**SPLITS, "train": ["https://h/x.tar?sig=SECRET"]}}, "given with a password or a query (?...)"),
        ({"patterns": {**SPLITS, "heldout": []}}, "--heldout: nothing given; give shards, such as --heldout 'heldout"),
        ({"patterns": {**SPLITS, "heldout": ["train-000.tar"]}}, "train-000.tar' is given twice; give each shard once"),
        ({"patterns": {**SPLITS, "heldout": ["gs://b/x.tar"]}}, "allowed: names below the data set's address, or full"),
        (
            {"patterns": {"train": ["gs://b/x.tar"], "heldout": ["gs://c/x.tar"]}},
            "shards: 'gs://b/x.tar' and 'gs://c/x.tar' given; allowed: addresses on one storage",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(shards: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as refused:
        index(shards, **settings)
    assert said in str(refused.value)


def test_one_class_is_too_few(tmp_path: Path) -> None:
    for name in "th":
        write_tar(tmp_path / f"{name}.tar", with_cls(range(3), classes=1))
    with pytest.raises(DataError, match="has one class only; give images of two or more"):
        index(tmp_path, {"train": ["t.tar"], "heldout": ["h.tar"]})
