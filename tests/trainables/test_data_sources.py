"""Sources: digits and folders of image files."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

import trainables.data.decode
from trainables.config import DataConfig, TrialRefused
from trainables.data import DataError, Splits, folder, open_splits
from trainables.data.augment import CROP_DRAWS, crop_box, flip, shift, uniforms
from trainables.data.decode import decode_file
from trainables.data.sources import split_off


def write_digits(root: Path, suffix: str, *, split: bool, per_class: int = 3) -> None:
    """Writes the first digits of classes 0 to 2 as files of `suffix`, `per_class` of each, in either layout."""
    digits = open_splits(DataConfig("digits", 8)).train
    for label in range(3):
        found = [index for index in range(200) if digits.label(index) == label][:per_class]
        for place, index in enumerate(found):
            folder = root / ("val" if place == 0 else "train") / f"digit {label}" if split else root / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.read(index)).resize((24, 16)).save(folder / f"{place}{suffix}")


def open_folder(path: Path, **settings: object) -> Splits:
    return open_splits(DataConfig("folder", 8, path=str(path), **settings))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ digits


def test_digits_are_those_of_scikit_learn_as_rgb_bytes() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = open_splits(DataConfig("digits", 8))
    assert splits.classes == tuple("0123456789")
    for source in (splits.train, splits.heldout):
        for index in (0, 100, len(source) - 1):
            number = int(source.name(index).removeprefix("digits[").removesuffix("]"))
            example = source[index]
            assert example.label == bunch.target[number]
            assert example.image.dtype == np.uint8
            assert np.array_equal(
                example.image, np.repeat(np.rint(bunch.images[number] * 255 / 16)[:, :, None], 3, axis=2)
            )


def test_digits_split_holds_each_once_evenly_by_class_and_by_seed() -> None:
    splits = open_splits(DataConfig("digits", 16, held_out_fraction=0.2))
    names = [[source.name(i) for i in range(len(source))] for source in (splits.train, splits.heldout)]
    assert sorted(names[0] + names[1]) == sorted(f"digits[{i}]" for i in range(1797))
    counts = np.bincount([splits.heldout.label(i) for i in range(len(splits.heldout))])
    assert counts.min() >= 34
    assert counts.max() <= 37
    again, other = (open_splits(DataConfig("digits", 16, split_seed=seed)).heldout for seed in (0, 1))
    assert [again.name(i) for i in range(len(again))] == names[1]
    assert [other.name(i) for i in range(len(other))] != names[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"held_out_fraction": 1.0}, "data.held_out_fraction: 1.0"),
        ({"held_out_fraction": 0.0}, "data.held_out_fraction: 0.0"),
        ({"split_seed": -1}, "data.split_seed: -1"),
        ({"image_size": 0}, "data.image_size: 0"),
        ({"source": "digit"}, "data.source: 'digit'"),
        ({"source": "folder"}, "data.path: nothing is given"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        open_splits(DataConfig(**{"source": "digits", "image_size": 8, **settings}))  # type: ignore[arg-type]
    assert isinstance(error.value, TrialRefused)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp"])
@pytest.mark.parametrize("split", [True, False])
def test_a_folder_of_digits_gives_the_digits(tmp_path: Path, suffix: str, split: bool) -> None:
    write_digits(tmp_path, suffix, split=split)
    splits = open_folder(tmp_path, held_out_fraction=0.34)
    assert splits.classes == ("digit 0", "digit 1", "digit 2")
    assert (len(splits.train), len(splits.heldout)) == (6, 3)
    example = splits.train[0]
    assert example.image.shape == (8, 8, 3)
    assert 20 < example.image.mean() < 200
    names = [source.name(i) for source in (splits.train, splits.heldout) for i in range(len(source))]
    assert sorted(names) == sorted(str(path) for path in tmp_path.rglob(f"*{suffix}"))
    for source in (splits.train, splits.heldout):
        assert all(Path(source.name(i)).parent.name == splits.classes[source.label(i)] for i in range(len(source)))


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_names_of_the_held_out_folder(tmp_path: Path, name: str) -> None:
    write_digits(tmp_path, ".png", split=True)
    (tmp_path / "val").rename(tmp_path / name)
    assert f"/{name}/" in open_folder(tmp_path).heldout.name(0)


def test_train_alone_is_split_by_fraction(tmp_path: Path) -> None:
    write_digits(tmp_path / "train", ".png", split=False)
    splits = open_folder(tmp_path, held_out_fraction=0.34)
    assert (len(splits.train), len(splits.heldout)) == (6, 3)


def test_links_unicode_and_hidden_names(tmp_path: Path) -> None:
    write_digits(tmp_path / "real", ".png", split=False)
    data = tmp_path / "data"
    (data / ".cache").mkdir(parents=True)
    (data / "Ünï 数字").symlink_to(tmp_path / "real" / "digit 0")
    (data / "b").mkdir()
    (data / "b" / "one.png").symlink_to(tmp_path / "real" / "digit 1" / "0.png")
    (data / "b" / ".hidden.png").write_bytes(b"no image")
    (data / "b" / "notes.txt").write_text("no image")
    splits = open_folder(data)
    assert splits.classes == ("b", "Ünï 数字")
    assert len(splits.train) + len(splits.heldout) == 4
    assert [splits.train[i].label for i in range(len(splits.train))].count(0) == 1


def test_a_class_may_be_missing_from_the_held_out_images(tmp_path: Path) -> None:
    write_digits(tmp_path, ".png", split=True)
    (tmp_path / "val" / "digit 0" / "0.png").unlink()
    (tmp_path / "val" / "digit 0").rmdir()
    splits = open_folder(tmp_path)
    assert [splits.heldout.label(i) for i in range(len(splits.heldout))] == [1, 2]


def _no_images(root: Path) -> None:
    for path in (root / "train" / "digit 1").iterdir():
        path.unlink()


def _extra_class(root: Path) -> None:
    (root / "val" / "digit 9").mkdir()


def _one_class(root: Path) -> None:
    for label in (0, 1):
        (root / "train" / f"digit {label}").rename(root / f"elsewhere {label}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_images, "digit 1' has no images; add some"),
        (_extra_class, "the class 'digit 9', which train has not"),
        (_one_class, "one class only, 'digit 2'; give at least two"),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(tmp_path: Path, spoil: object, said: str) -> None:
    write_digits(tmp_path, ".png", split=True)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=said) as error:
        open_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_path_that_holds_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; give a folder that holds train/CLASS"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no class folders"):
        open_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        open_folder(tmp_path / "file")
    write_digits(tmp_path / "data", ".png", split=False, per_class=1)
    with pytest.raises(DataError, match="one image per class"):
        open_folder(tmp_path / "data")


def one_line(path: Path, **settings: object) -> str:
    """What the refusal of a folder says."""
    with pytest.raises(DataError) as error:
        open_folder(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("place", ["loop", "train/loop", "train/digit 0/loop", "train/digit 0/loop.png"])
def test_a_link_to_itself_is_refused_by_name(tmp_path: Path, place: str) -> None:
    write_digits(tmp_path, ".png", split=True)
    (tmp_path / place).symlink_to(Path(place).name)
    said = one_line(tmp_path)
    assert said.startswith(f"data.path: '{tmp_path / place}' cannot be read (Too many levels of symbolic links); ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_may_not_be_read_is_refused_by_name_and_its_storage_failing_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_digits(tmp_path, ".png", split=True)
    bad, scandir = str(tmp_path / "val" / "digit 1"), os.scandir

    def failing(path: str) -> object:
        if path == bad:
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    if number == errno.EACCES:
        assert one_line(tmp_path).startswith(f"data.path: '{bad}' cannot be read ({os.strerror(number)}); ")
        return
    with pytest.raises(OSError, match=os.strerror(number)) as failed:
        open_folder(tmp_path)
    assert not isinstance(failed.value, DataError)


def test_a_path_below_the_working_directory_is_said_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert one_line(tmp_path / "my-images").startswith("data.path: 'my-images' does not exist; ")
    write_digits(tmp_path / "my-images", ".png", split=True)
    _no_images(tmp_path / "my-images")
    assert one_line(tmp_path / "my-images").startswith("data.path: 'my-images/train/digit 1' has no images; ")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert one_line(tmp_path / "my-images").startswith(f"data.path: '{tmp_path}/my-images/train/digit 1' has no ")


def test_files_of_other_endings_and_deeper_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_digits(tmp_path / "im", ".png", split=True)
    assert open_folder(tmp_path / "im").warnings() == []
    for place in ("train/digit 0/a.tif", "val/digit 1/b.TIF", "train/digit 2/c.gif", "train/digit 2/README"):
        (tmp_path / "im" / place).touch()
    for place in ("train/digit 2/more", "train/digit 1/sub"):
        (tmp_path / "im" / place).mkdir()
    monkeypatch.chdir(tmp_path)
    endings, folders = open_folder(tmp_path / "im").warnings()
    assert endings == (
        "data.path: 'im': 4 file(s) left out because of their ending (.tif: 2, .gif: 1, no ending: 1); "
        "allowed: .jpg, .jpeg, .png, .webp, .bmp; convert those that are images"
    )
    assert folders == (
        "data.path: 'im': 2 folder(s) inside class folders left out, one is 'im/train/digit 1/sub'; "
        "put their images into the class folder itself"
    )
    for number in range(7):
        (tmp_path / "im" / "train" / "digit 1" / f"x.x{number}").touch()
    endings = open_folder(tmp_path / "im").warnings()[0]
    assert "(.tif: 2, .gif: 1, .x0: 1, .x1: 1, .x2: 1, of 5 more endings: 5)" in endings
    assert open_splits(DataConfig("digits", 8)).warnings() == []


def test_a_source_of_a_folder_is_small_and_travels(tmp_path: Path) -> None:
    write_digits(tmp_path, ".png", split=False)
    source = open_folder(tmp_path).train
    sent = pickle.dumps(source)
    assert len(sent) < 3000
    again = pickle.loads(sent)
    assert [again.name(i) for i in range(len(again))] == [source.name(i) for i in range(len(source))]
    with pytest.raises(IndexError):
        source.name(len(source))


def test_the_split_of_a_class_depends_on_the_seed_and_that_class_alone() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 500).astype(np.int32)
    train, heldout = split_off(labels, 0.3, seed=5)
    assert sorted([*train, *heldout]) == list(range(500))
    for label in range(7):
        members = np.flatnonzero(labels == label)
        expected = np.random.default_rng([5, label]).permutation(members)[: round(0.3 * len(members))]
        assert sorted(expected) == heldout[labels[heldout] == label].tolist()


def settle(root: Path) -> None:
    """Makes the folders look as if they had not been touched for a minute."""
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))


def test_a_folder_is_listed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_digits(tmp_path, ".png", split=True)
    listed = []
    list_folder = folder.list_folder
    monkeypatch.setattr(folder, "list_folder", lambda path: (listed.append(path), list_folder(path))[1])
    open_folder(tmp_path)
    open_folder(tmp_path)
    assert len(listed) == 2  # changed a moment ago: its time stamps tell nothing yet
    settle(tmp_path)
    splits = open_folder(tmp_path)
    assert open_folder(tmp_path, decode_workers=3, augment="crop") is splits
    assert open_folder(tmp_path, split_seed=1) is not splits
    assert len(listed) == 4
    (tmp_path / "train" / "digit 1" / "1.png").unlink()
    settle(tmp_path)
    assert len(open_folder(tmp_path).train) == len(splits.train) - 1


def test_the_digest_tells_data_sets_apart_and_not_places(tmp_path: Path) -> None:
    write_digits(tmp_path / "here", ".png", split=False)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    digest = open_folder(tmp_path / "here").digest
    assert len(digest) == 64
    assert open_folder(tmp_path / "there").digest == digest
    others = {digest, open_folder(tmp_path / "there", held_out_fraction=0.6).digest}
    (tmp_path / "there" / "digit 1" / "0.png").rename(tmp_path / "there" / "digit 1" / "other.png")
    others.add(open_folder(tmp_path / "there").digest)
    (tmp_path / "there" / "digit 1").rename(tmp_path / "there" / "digit one")
    others.add(open_folder(tmp_path / "there").digest)
    assert len(others) == 4
    digits = [
        open_splits(DataConfig("digits", size, split_seed=seed)).digest
        for size, seed in [(8, 0), (8, 0), (8, 1), (16, 0)]
    ]
    assert digits[0] == digits[1]
    assert len(set(digits)) == 3


def test_the_digest_of_a_data_set_is_what_it_always_was(tmp_path: Path) -> None:
    """A ledger holds it: another one would refuse every run that there is."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name / "sub").mkdir(parents=True)
            for file in ("0.jpg", "1.jpg", "2.jpg", "x.tif"):
                (tmp_path / split / name / file).touch()
    both = open_folder(tmp_path).digest
    assert both == "523e40496aa3b254cac952581040fbcf4088102cbef7c2aa475b199e87ab3d94"
    split_off_here = open_folder(tmp_path / "train", held_out_fraction=0.2).digest
    assert split_off_here == "3cf38e670b31273bb33a78fc387ca38e893274195e8e4d8471bd2b2737b5f4e4"


# ------------------------------------------------------------------------------------------------ decoding

LEFT_RED = np.zeros((40, 60, 3), np.uint8)
LEFT_RED[:, :30] = (200, 0, 0)


def _decoded(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return decode_file(str(path), 8)


def test_the_centre_of_the_shorter_side_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert _decoded(Image.fromarray(wide), tmp_path / "wide.png")[:, 1:-1].min() > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"turned{suffix}"
    pixels = LEFT_RED.copy()
    pixels[:15, :, 2] = 200
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png")
    expected = decode_file(str(tmp_path / "upright.png"), 8).astype(int)
    assert np.abs(decode_file(str(path), 8) - expected).mean() < 6


def test_a_damaged_orientation_spoils_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jpg"
    Image.fromarray(LEFT_RED).save(path, exif=b"Exif\x00\x00no header of any kind")
    assert decode_file(str(path), 8)[:, 0, 0].min() > 150


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.full((12, 12), 128, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.full((12, 12), 128 * 257, np.uint16))
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    decoded = _decoded(image, tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    assert decoded.shape == (8, 8, 3)
    assert decoded.dtype == np.uint8
    assert abs(float(decoded.mean()) - 128) < 3


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (12, 12), (10, 20, 30, 0))
    assert _decoded(image, tmp_path / "clear.png").min() == 255
    palette = Image.new("P", (12, 12), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert _decoded(palette, tmp_path / "palette.png", transparency=bytes([0] * 256)).min() == 255


def test_large_jpegs_decode_smaller_to_the_same_picture(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 800).astype(np.uint8)[None, :], 600, axis=0)
    image = Image.fromarray(ramp).convert("RGB")
    fast = _decoded(image, tmp_path / "ramp.jpg").astype(int)
    assert np.abs(fast - _decoded(image, tmp_path / "ramp.png")).max() <= 4


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(LEFT_RED).save(good)
    spoilt = {
        "empty.jpg": b"",
        "text.png": b"not an image",
        "cut.jpg": good.read_bytes()[: good.stat().st_size // 2],
    }
    for name, content in spoilt.items():
        (tmp_path / name).write_bytes(content)
    os.symlink(tmp_path / "gone.png", tmp_path / "link.png")
    for name in [*spoilt, "link.png"]:
        with pytest.raises(DataError, match=name) as error:
            decode_file(str(tmp_path / name), 8)
        assert "\n" not in str(error.value)
        assert "cannot read image" in str(error.value)
        assert str(error.value).endswith(
            "; put a good one in its place, or set data.bad_images to 'skip', and go on with --retry-failed"
        )


def test_a_folder_that_has_gone_is_not_its_images_fault(tmp_path: Path) -> None:
    write_digits(tmp_path, ".png", split=True)
    source = open_folder(tmp_path).train
    (tmp_path / "train" / "digit 0").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="the folder of this image has gone"):
        source.read(0)
    (tmp_path / "train").rename(tmp_path / "elsewhere too")
    with pytest.raises(FileNotFoundError, match="digit 2"):
        source.read(len(source) - 1)


@pytest.mark.parametrize("error", [TypeError, ValueError, LookupError])
def test_a_mistake_of_ours_is_not_taken_for_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    Image.fromarray(LEFT_RED).save(tmp_path / "good.png")

    def mistaken(*_args: object) -> None:
        raise error("a mistake")

    monkeypatch.setattr(trainables.data.decode, "crop_box", mistaken)
    with pytest.raises(error, match="a mistake") as raised:
        decode_file(str(tmp_path / "good.png"), 8, np.zeros(CROP_DRAWS))
    assert not isinstance(raised.value, DataError)


# ------------------------------------------------------------------------------------------------ augmentation


def test_random_numbers_are_uniform_and_each_position_has_its_own() -> None:
    draws = uniforms(7, np.arange(20_000), 3)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(draws.var(axis=0) - 1 / 12).max() < 0.003
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert np.array_equal(uniforms(7, np.array([11, 5]), 2), draws[[11, 5], :2])
    assert not np.array_equal(uniforms(8, np.arange(5), 3), draws[:5])


def test_shift_moves_by_up_to_an_eighth_and_fills_with_black() -> None:
    images = np.arange(1, 1 + 16 * 16 * 3, dtype=np.int64).reshape(1, 16, 16, 3).astype(np.uint8) | 1
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    for row, column in [(0, 0), (2, 4), (4, 1)]:
        draws = np.array([[(row + 0.5) / 5, (column + 0.5) / 5]])
        assert np.array_equal(shift(images, draws)[0], padded[row : row + 16, column : column + 16])


def test_flip_mirrors_half_of_the_images() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    flipped = flip(images, np.array([0.4, 0.6]))
    assert np.array_equal(flipped[0], images[0, :, ::-1])
    assert np.array_equal(flipped[1], images[1])


def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for() -> None:
    areas = []
    for draws in uniforms(3, np.arange(500), CROP_DRAWS):
        left, top, right, bottom = crop_box(200, 150, draws)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 150
        assert 0.73 < (right - left) / (bottom - top) < 1.37
        areas.append((right - left) * (bottom - top) / 30_000)
    assert min(areas) < 0.12
    assert max(areas) > 0.85
    assert crop_box(1000, 1, np.full(CROP_DRAWS, 0.99))[3] == 1
