"""What a trial does about images that cannot be read: found early, counted, and never trained around in silence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trainables.loop
from tests.trainables.trials import Events, tiny_trial
from trainables.checkpoint import Checkpoints
from trainables.config import DataConfig, TrialConfig
from trainables.data import DataError, open_splits
from trainables.data.readable import check_heldout
from trainables.loop import train
from trainables.runtime import select_runtime


@pytest.fixture
def runtime():
    before = torch.get_num_threads()
    yield select_runtime("cpu", cores=1)
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images to train on and eight held out, of two classes, in a folder."""
    for split, count in (("train", 20), ("val", 4)):
        for name in ("five", "six"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return tmp_path / "images"


def trial(images: Path, **changes: object) -> TrialConfig:
    bad_images = changes.pop("bad_images", "skip")
    data = DataConfig("folder", 8, path=str(images), bad_images=bad_images)  # type: ignore[arg-type]
    settings = {"data": data, "model__classes": 2, "steps": 2, "log_points": 1, **changes}
    return tiny_trial(images.parent / "trial", **settings)


def spoil_the_middle(path: Path) -> bytes:
    """Changes a byte that only decoding meets; returns what the file was."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    return data


def test_a_held_out_file_that_is_cut_off_is_met_before_any_step(runtime, images, monkeypatch):
    bad = images / "val" / "six" / "03.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:400])
    with monkeypatch.context() as patch:
        patch.setattr(trainables.loop.Trial, "at_start", None)  # nothing is even built
        with pytest.raises(DataError, match=r"cannot read image .*six/03\.png"):
            train(trial(images, bad_images="error"), runtime, Events())
    bad.write_bytes(whole)
    assert train(trial(images, bad_images="error"), runtime, Events()).outcome == "finished"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_whole_files_are_not_decoded_and_others_are(images, monkeypatch, suffix):
    for path in sorted(images.rglob("val/*/*.png")):
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        if suffix != ".png":
            path.unlink()
    config = DataConfig("folder", 8, path=str(images))
    with monkeypatch.context() as patch:
        patch.setattr("trainables.data.sources.decode_file", None)
        check_heldout(open_splits(config), config)
    bad = images / "val" / "five" / f"00{suffix}"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    check_heldout(open_splits(config), config)  # once per process and data set
    (images / "val" / "five" / f"01{suffix}").unlink()
    for rank in range(2):
        if rank == 0:
            with pytest.raises(DataError, match=bad.name):
                check_heldout(open_splits(config), config, rank=rank, world=2)
        else:
            check_heldout(open_splits(config), config, rank=rank, world=2)


def test_a_broken_held_out_file_met_in_the_evaluation_costs_no_training(runtime, images, monkeypatch):
    bad = images / "val" / "six" / "03.png"
    whole = spoil_the_middle(bad)
    config = trial(images, bad_images="error")
    with pytest.raises(DataError, match=r"six/03\.png"):
        train(config, runtime, Events())
    assert [(s.step, s.final) for s in Checkpoints(config.checkpoint.folder, 1).saved()] == [(2, False)]
    bad.write_bytes(whole)
    monkeypatch.setattr(trainables.loop, "learning_rate_at", None)  # no step is made again
    assert train(config, runtime, Events()).outcome == "finished"


def test_skipped_images_are_counted_in_both_splits(runtime, images):
    spoil_the_middle(images / "train" / "five" / "00.png")
    spoil_the_middle(images / "val" / "six" / "01.png")
    result = train(trial(images, steps=5, batch_size=16), runtime, Events())  # two epochs
    assert (result.skipped_images, result.skipped_heldout_images) == (2, 1)
    assert result.outcome == "finished"


def test_too_many_unreadable_images_end_the_trial_by_name(runtime, images):
    for number in range(6):
        spoil_the_middle(images / "train" / "five" / f"{number:02}.png")
    with pytest.raises(DataError, match=r"\d+ of 2\d\d images cannot be read, one is '.*five/0\d\.png'") as error:
        train(trial(images, steps=40), runtime, Events())
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("put good ones in their places, and go on with --retry-failed")


def test_a_short_trial_that_could_read_nothing_is_refused(runtime, images):
    for path in (images / "train").rglob("*.png"):
        spoil_the_middle(path)
    with pytest.raises(DataError, match="none of the 32 images met in training could be read"):
        train(trial(images), runtime, Events())


def test_a_folder_that_goes_away_is_an_error_that_is_tried_again(runtime, images, monkeypatch):
    def gone(config):
        splits = open_splits(config)
        (images / "train").rename(images / "moved")
        return splits

    monkeypatch.setattr(trainables.loop, "open_splits", gone)
    with pytest.raises(FileNotFoundError, match="has gone"):
        train(trial(images), runtime, Events())
