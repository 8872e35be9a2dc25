"""A study's data: what is there, what is declared of it, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import trainables.data.remote
from search.data import counts_of, open_data
from search.study import Study, StudyError, read_study
from tests.trainables.shard_sets import write_shards


def study(declared: str = "train_images: 6, heldout_images: 2, classes: 3", path: str = "images") -> Study:
    text = f"""
name: mini
data: {{source: shards, path: "{path}", image_size: 32, declared: {{{declared}}}}}
budgets: [1e10 FLOPs]
"""
    return read_study(text, source="mini.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.data.remote, "_WAITS_S", ())


def write() -> None:
    write_shards("images", train=[(0, b"x")] * 6, heldout=[(2, b"x")] * 2)


def test_data_that_are_not_here_are_taken_as_declared_and_that_is_said() -> None:
    counts = counts_of(study())
    assert (counts.train, counts.heldout, counts.classes) == (6, 2, 3)
    assert counts.warnings == (
        "data.path: 'images' is not here, so data.declared is taken for granted, and was not checked",
    )


def test_a_search_needs_the_data() -> None:
    with pytest.raises(StudyError, match=r"^mini.yaml: data.path: 'images' does not exist; give a folder or"):
        open_data(study())


def test_a_storage_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(
        StudyError, match=r"^mini.yaml: data.path: 'http://127.0.0.1:9/x/dataset.json' cannot be read \(Can"
    ):
        open_data(study(path="http://127.0.0.1:9/x"))


def test_data_that_are_here_are_opened() -> None:
    write()
    counts = counts_of(study("train_images: 6, heldout_images: 2, classes: 3"))
    assert (counts.train, counts.heldout, counts.classes, counts.warnings) == (6, 2, 3, ())
    assert len(open_data(study()).train) == 6


def test_data_that_are_here_and_not_as_declared_are_refused() -> None:
    write()
    for opened in (counts_of, open_data):
        with pytest.raises(StudyError) as refused:
            opened(study("train_images: 6000, heldout_images: 2, classes: 4"))
        assert str(refused.value) == (
            "mini.yaml: data.declared.train_images: 6,000 given, and the data have 6; classes: 4 given, and the data "
            "have 3; correct data.declared, or leave it out"
        )


def test_a_file_in_the_place_of_the_folder_is_refused_whatever_is_declared() -> None:
    Path("images").write_text("no folder")
    with pytest.raises(StudyError, match=r"'images' is not a folder; give a folder or an address"):
        counts_of(study())


def test_a_folder_that_is_here_and_not_whole_is_refused_whatever_is_declared() -> None:
    Path("images").mkdir()
    with pytest.raises(StudyError, match=r"'images' has no dataset.json"):
        counts_of(study())


def test_data_at_an_address_are_opened_or_taken_as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards("memory://images", train=[(0, b"x")] * 6, heldout=[(2, b"x")] * 2)
    assert counts_of(study(path="memory://images")).warnings == ()
    assert len(open_data(study(path="memory://images/")).train) == 6
    with pytest.raises(StudyError, match=r"data.declared.train_images: 7 given, and the data have 6"):
        counts_of(study("train_images: 7, heldout_images: 2, classes: 3", path="memory://images"))
    (told,) = counts_of(study(path="memory://elsewhere")).warnings
    assert told.startswith("data.path: 'memory://elsewhere' is not here, so data.declared is taken for granted")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    (told,) = counts_of(study(path="gs://bucket/images")).warnings
    assert told.startswith(
        "data.path: 'gs://bucket/images' cannot be reached ('gs://bucket/images' needs the package gcs"
    )
