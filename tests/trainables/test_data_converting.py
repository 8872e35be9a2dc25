"""From a folder of images to shards: what goes where, what is refused, and that an interruption changes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image

import trainables.data.crew
from trainables.config import DataConfig
from trainables.data import DataError, open_splits
from trainables.data.building import alone, begin, finish
from trainables.data.converting import Conversion, FolderJob, plan_conversion
from trainables.data.crew import Progress, do_all
from trainables.data.recode import smaller
from trainables.data.shard_source import ShardSource
from trainables.data.storage import LocalStorage, open_storage

ROOT = Path(__file__).resolve().parents[2]


def picture(number: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty images of three classes, some of them PNG, and no held-out folder."""
    for number in range(60):
        path = tmp_path / "images" / "abc"[number % 3] / f"{number:02}.{'PNG' if number % 5 == 0 else 'jpeg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG" if number % 5 == 0 else "JPEG"))
    return tmp_path / "images"


def convert(folder: Path, address: Path | str, *, workers: int = 1, **settings: Any) -> Progress:
    work = plan_conversion(Conversion(str(folder), **({"shard_size": 2**16} | settings)), open_storage(str(address)))
    assert begin(work.plan) is None
    with alone(work.plan.storage):
        progress = do_all(work.plan, workers=workers, tell=lambda progress: None)
    finish(work.plan)
    return progress


def contents(source: Any) -> list[tuple[bytes, int]]:
    """The bytes and classes of all images, in order."""
    if isinstance(source, ShardSource):
        fetched = source.fetched(range(len(source)))
        return [(fetched.content(number), source.label(number)) for number in range(len(source))]
    return [(Path(source.name(number)).read_bytes(), source.label(number)) for number in range(len(source))]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("split", [False, True])
def test_shards_have_the_images_that_the_folder_has_for_training_and_held_out(
    folder: Path, tmp_path: Path, split: bool
) -> None:
    if split:
        for name in "abc":
            (folder / "train").mkdir(exist_ok=True)
            (folder / name).rename(folder / "train" / name)
            (folder / "val" / name).mkdir(parents=True)
            (folder / "val" / name / "1.jpg").write_bytes(picture(100))
    convert(folder, tmp_path / "out", held_out_fraction=0.3, split_seed=4)
    shards = open_splits(DataConfig("shards", 8, path=str(tmp_path / "out")))
    there = open_splits(DataConfig("folder", 8, path=str(folder), held_out_fraction=0.3, split_seed=4))
    assert shards.classes == there.classes
    for one, other in ((shards.train, there.train), (shards.heldout, there.heldout)):
        assert sorted(contents(one)) == sorted(contents(other))
    assert contents(shards.train) != contents(there.train)  # shuffled
    assert not (tmp_path / "out" / "parts").exists()


def test_the_same_comes_out_whatever_the_processes_and_another_order_by_another_seed(
    folder: Path, tmp_path: Path
) -> None:
    settings: list[dict[str, Any]] = [{"workers": 1}, {"workers": 3}, {"seed": 1}]
    for name, change in zip("xyz", settings, strict=True):
        convert(folder, tmp_path / name, **change)
    assert files(tmp_path / "x") == files(tmp_path / "y")
    assert len(files(tmp_path / "x")) > 4
    digests = {name: open_splits(DataConfig("shards", 8, path=str(tmp_path / name))).digest for name in "xyz"}
    assert digests["x"] == digests["y"] != digests["z"]


def test_shards_are_not_larger_than_asked_for(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out")
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) > 3
    assert max(sizes) <= 2**16


def test_images_are_converted_to_an_address(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out")
    convert(folder, "memory://converted/there")
    found = fsspec.filesystem("memory").find("/converted")
    assert sorted(path.removeprefix("/converted/there/") for path in found) == sorted(files(tmp_path / "out"))
    digests = {
        open_splits(DataConfig("shards", 8, path=path)).digest
        for path in (str(tmp_path / "out"), "memory://converted/there")
    }
    assert len(digests) == 1


def test_images_become_smaller_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "00.PNG").write_bytes(picture(1, "PNG", (12, 16)))
    convert(folder, tmp_path / "out", image_size=16)
    shards = open_splits(DataConfig("shards", 8, path=str(tmp_path / "out")))
    kinds: dict[tuple[str | None, int], int] = {}
    for content, _ in contents(shards.train) + contents(shards.heldout):
        with Image.open(io.BytesIO(content)) as image:
            kinds[image.format, min(image.size)] = kinds.get((image.format, min(image.size)), 0) + 1
    assert kinds == {("JPEG", 16): 59, ("PNG", 12): 1}


def test_an_image_that_becomes_smaller_is_upright_and_on_white() -> None:
    grey = Image.new("RGBA", (80, 40), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    grey.save(out, "PNG", exif=exif)
    content, changed = smaller(out.getvalue(), 20, "x")
    with Image.open(io.BytesIO(content)) as image:
        assert (changed, image.size, image.getpixel((3, 3)), image.mode) == (True, (20, 40), (255, 255, 255), "RGB")
        assert not image.getexif()


# ---------------------------------------------------------------- images that cannot be read


def spoil(folder: Path) -> list[str]:
    cut, gone = folder / "a" / "03.jpeg", folder / "b" / "04.jpeg"
    cut.write_bytes(cut.read_bytes()[:-100])
    gone.unlink()
    gone.symlink_to("nowhere")
    return [str(cut), str(gone)]


@pytest.mark.parametrize("image_size", [None, 16])
def test_images_that_cannot_be_read_are_told_and_left_out(folder: Path, tmp_path: Path, image_size: int | None) -> None:
    bad = spoil(folder)
    progress = convert(folder, tmp_path / "out", bad_images="skip", workers=2, image_size=image_size)
    assert sorted(progress.left_out) == bad
    splits = open_splits(DataConfig("shards", 8, path=str(tmp_path / "out")))
    assert len(splits.train) + len(splits.heldout) == 58


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_read_is_an_error_and_may_be_mended_or_skipped_after(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=r"^cannot read image '.*\.jpeg' \(.*\); put a good one in its place, or leave"):
        convert(folder, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "dataset.json").exists()
    convert(folder, tmp_path / "out", workers=workers, bad_images="skip")
    convert(folder, tmp_path / "at once", bad_images="skip")
    assert files(tmp_path / "out") == files(tmp_path / "at once")


# ---------------------------------------------------------------- interruptions


def command(folder: Path, out: Path) -> list[str]:
    program = "from search.cli import main; main()"
    arguments = ["data", "convert", str(folder), str(out), "--shard-size", "64KiB", "--workers", "2"]
    return [sys.executable, "-c", program, *arguments]


def test_a_conversion_that_was_killed_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    for number in range(600):
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG", (128, 128)))
    process = subprocess.Popen(command(folder, out), cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    while not len([*out.glob("parts/*")]) >= 3:
        assert process.poll() is None, "it was to be killed on its way"
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)
    assert not (out / "dataset.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if path.stat().st_size}
    done = {f"{path.name}.tar" for path in out.glob("parts/*") if path.suffix != ".aside"}

    again = subprocess.run(command(folder, out), cwd=ROOT, capture_output=True, text=True, check=True)
    assert " of them before" in again.stdout
    assert all((out / name).stat().st_mtime_ns == before[name] for name in done)

    subprocess.run(command(folder, tmp_path / "undisturbed"), cwd=ROOT, capture_output=True, check=True)
    assert files(out) == files(tmp_path / "undisturbed")


@pytest.mark.parametrize("spoil_it", ["shard", "part", "rows"])
def test_what_an_interruption_left_half_done_is_done_again(folder: Path, tmp_path: Path, spoil_it: str) -> None:
    work = plan_conversion(Conversion(str(folder), shard_size=2**16), open_storage(str(tmp_path / "out")))
    begin(work.plan)
    do_all(work.plan, workers=1, tell=lambda progress: None)
    shard, part = tmp_path / "out" / "train-000000.tar", tmp_path / "out" / "parts" / "train-000000"
    if spoil_it == "shard":
        shard.write_bytes(shard.read_bytes()[:100])
    elif spoil_it == "part":
        part.write_bytes(part.read_bytes()[:20])
    else:
        part.write_bytes(part.read_bytes()[:-16])
    progress = do_all(work.plan, workers=1, tell=lambda progress: None)
    assert 0 < progress.images < work.images == progress.images + progress.images_before
    finish(work.plan)
    convert(folder, tmp_path / "undisturbed")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def names_of(out: Path) -> list[str]:
    """The keys of all images in shards."""
    found = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [f"{path.name[:5]}{name[:9]}" for name in tar.getnames() if not name.endswith(".cls")]
    return found


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("grows", [True, False])
def test_an_image_that_is_mended_as_an_error_says_is_taken_once_and_all_else_is_kept(
    tmp_path: Path, image_size: int | None, grows: bool
) -> None:
    """Whatever it changes about how large shards become; every image is in the end in the data set, once."""
    folder, random = tmp_path / "images", np.random.default_rng(0)
    for number in range(240):
        path = folder / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, size=(64 + 8 * int(random.integers(30)), 64)))
    settings: dict[str, Any] = {"image_size": image_size, "shard_size": 2**16}
    plan = plan_conversion(Conversion(str(folder), **settings), open_storage(str(tmp_path / "order"))).plan
    job = next(job for job in reversed(plan.jobs) if job.split == "train")
    assert isinstance(job, FolderJob)
    bad = Path(job.files.path(0))  # of the last shard, so that there are finished ones
    good = bad.read_bytes()
    bad.write_bytes(good[:200] + (b"" if grows else bytes(len(good) - 200)))
    with pytest.raises(DataError, match=r"^cannot read image"):
        convert(folder, tmp_path / "out", **settings)
    bad.write_bytes(good)
    progress = convert(folder, tmp_path / "out", **settings)
    assert progress.images_before >= 150
    names = names_of(tmp_path / "out")
    assert (len(names), len(set(names))) == (240, 240)
    splits = open_splits(DataConfig("shards", 8, path=str(tmp_path / "out")))
    if image_size is None:
        there = open_splits(DataConfig("folder", 8, path=str(folder)))
        assert sorted(contents(splits.train)) == sorted(contents(there.train))


def test_a_part_of_other_images_than_its_job_has_is_done_again(folder: Path, tmp_path: Path) -> None:
    """Such as by another sample of how much smaller images become."""
    storage = open_storage(str(tmp_path / "out"))
    plan = plan_conversion(Conversion(str(folder), shard_size=2**16), storage).plan
    begin(plan)
    do_all(plan, workers=1, tell=lambda progress: None)
    cuts = {"share": 0.5, "train": [10, 48], "heldout": [12]}
    (tmp_path / "out" / "making.json").write_text(json.dumps({"made_by": plan.made_by, "kept": cuts}))
    again = plan_conversion(Conversion(str(folder), shard_size=2**16), storage).plan
    assert [len(job.files) for job in again.jobs if isinstance(job, FolderJob)] == [10, 38, 12]
    assert do_all(again, workers=1, tell=lambda progress: None).images_before == 12
    finish(again)
    names = names_of(tmp_path / "out")
    assert len(open_splits(DataConfig("shards", 8, path=str(tmp_path / "out"))).train) == 48
    assert len(set(names)) == 60


def test_processes_that_do_not_stop_are_ended_all_together_and_leave_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for an image that never comes."""
    for path in folder.rglob("*.jpeg"):
        path.unlink()
        os.mkfifo(path)
    monkeypatch.setattr(trainables.data.crew, "_PATIENCE_S", 0.0)
    plan = plan_conversion(Conversion(str(folder), shard_size=2**16), open_storage(str(tmp_path / "out"))).plan
    begin(plan)

    def interrupt(_: Progress) -> None:
        if [*(tmp_path / "out").glob("*.aside")]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_all(plan, workers=2, tell=interrupt)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["making.json"]


def test_a_process_at_work_that_is_killed_is_one_line(folder: Path, tmp_path: Path) -> None:
    work = plan_conversion(Conversion(str(folder), shard_size=2**16), open_storage(str(tmp_path / "out")))
    begin(work.plan)
    before = set(psutil.Process().children())

    def kill(progress: Progress) -> None:
        for child in set(psutil.Process().children()) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(
        DataError, match=r"^a process at work was killed \(exit status -9\), perhaps for want of memory"
    ):
        do_all(work.plan, workers=2, tell=kill)


def test_two_at_a_time_are_refused(folder: Path, tmp_path: Path) -> None:
    work = plan_conversion(Conversion(str(folder)), open_storage(str(tmp_path / "out")))
    begin(work.plan)
    with (
        alone(work.plan.storage),
        pytest.raises(DataError, match=r"out' is being written by another convscale data"),
        alone(open_storage(str(tmp_path / "out"))),
    ):
        pass
    with alone(work.plan.storage):
        pass


# ---------------------------------------------------------------- what is refused


def test_a_finished_data_set_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out")
    before = files(tmp_path / "out")
    plan = plan_conversion(Conversion(str(folder), shard_size=2**16), open_storage(str(tmp_path / "out"))).plan
    manifest = begin(plan)
    assert manifest is not None
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_images_or_settings_are_not_mixed_in(folder: Path, tmp_path: Path, finished: bool) -> None:
    convert(folder, tmp_path / "out")
    if not finished:
        made_by = open_storage(str(tmp_path / "out"))
        described = json.loads((tmp_path / "out" / "dataset.json").read_text())
        (tmp_path / "out" / "making.json").write_text(json.dumps({"made_by": described["made_by"]}))
        made_by.remove(["dataset.json"])
    what = "another data set" if finished else "the beginning of another data set"
    with pytest.raises(DataError, match=rf"out' holds {what} \(seed: 0 there, 7 given\); give another address, or rem"):
        convert(folder, tmp_path / "out", seed=7)
    (folder / "a" / "new.png").write_bytes(picture(1, "PNG"))
    os.utime(folder / "a", (0, 0))
    with pytest.raises(DataError, match=rf"out' holds {what} \(images: "):
        convert(folder, tmp_path / "out")


def test_shards_of_somebody_elses_are_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"holds shards already, such as 'train-000000.tar', and no dataset.json; give"):
        convert(folder, tmp_path / "out")


def no_room(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: 2**26)
    return {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            no_room,
            r"out' has 0.0671 GB left, and the shards need about 0.00018\d GB; make room, give another",
        ),
        (lambda _: {"shard_size": 10}, r"^--shard-size: 10 bytes given; allowed: 65,536 to 1,099,511,627,776, such as"),
        (lambda _: {"image_size": 0}, r"^--image-size: 0 given; allowed: a positive number of pixels"),
        (lambda _: {"seed": -1}, r"^--seed: -1 given; allowed: a whole number of at least 0"),
        (lambda _: {"held_out_fraction": 2.0}, r"^--held-out-fraction: 2.0 is given; give a number between 0 and 1"),
        (lambda _: {"split_seed": -1}, r"^--split-seed: -1 is given; give a whole number of at least 0"),
    ],
)
def test_settings_out_of_range_and_too_little_room_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., dict[str, Any]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        convert(folder, tmp_path / "out", **settings(monkeypatch))
    assert not (tmp_path / "out").exists()


def test_a_class_whose_name_is_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "b", os.fsencode(folder / "b") + b"\xff")
    with pytest.raises(
        DataError, match=r"^FOLDER: the class 'b\\udcff' has a name that is not UTF-8; rename its folder"
    ):
        convert(folder, tmp_path / "out")


def test_a_folder_that_is_not_laid_out_as_it_must_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^FOLDER: '.*/nowhere' does not exist; give a folder that holds train/CLASS"):
        convert(tmp_path / "nowhere", tmp_path / "out")
