"""Decoding and resizing: a JPEG's fast way gives what Pillow gives, whatever the file; resizing is Pillow's bicubic."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cykooz_resizer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.data import decode, jpeg, resize
from trainables.data.augment import CROP_DRAWS, Images, uniforms
from trainables.data.decode import decode_bytes, decode_file, resize_array
from trainables.data.errors import DataError
from trainables.data.resize import resize as resized

BICUBIC = Image.Resampling.BICUBIC
ROOT = Path(__file__).resolve().parents[2]


def picture(width: int = 150, height: int = 101) -> Images:
    """Smooth colours, an edge and some grain, as a photograph has."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256], axis=2)
    channels[height // 3 :, : width // 4] //= 3
    grain = np.random.default_rng(0).integers(-20, 21, channels.shape)
    return np.clip(channels + grain, 0, 255).astype(np.uint8)


def jpeg_file(mode: str = "RGB", size: tuple[int, int] = (150, 101), **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(*size)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


CROP = uniforms(5, np.arange(1), CROP_DRAWS)[0]
KINDS: dict[str, bytes] = {
    "4:4:4": jpeg_file(subsampling=0),
    "4:2:2": jpeg_file(subsampling=1),
    "4:2:0": jpeg_file(subsampling=2),
    "progressive": jpeg_file(progressive=True),
    "restart markers": jpeg_file(restart_marker_rows=1),
    "RGB, not YCbCr": jpeg_file(keep_rgb=True),
    "grey": jpeg_file("L"),
    "CMYK": jpeg_file("CMYK"),
    "one pixel": jpeg_file(size=(1, 1)),
    "one row": jpeg_file(size=(300, 1)),
    "bytes after its end": jpeg_file() + b"and more",
}
DAMAGED: dict[str, bytes] = {
    "cut off": jpeg_file()[:-500],
    "without an end": jpeg_file()[:-2],
    "nothing": b"",
    "a header alone": jpeg_file()[:200],
    "a size that no memory has": jpeg_file().replace(b"\x00\x65\x00\x96", b"\xff\xff\xff\xff"),
}


def outcome(content: bytes, size: int = 24, crop: np.ndarray | None = None) -> bytes | str:
    """The pixels, or how they are refused."""
    try:
        return decode_bytes(content, size, "the picture", crop).tobytes()
    except DataError as error:
        return str(error)


def by_pillow(decoding: Callable[[], bytes | str]) -> bytes | str:
    """The same with the fast decoder out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "decode", lambda *_: None)
        return decoding()


# ------------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 24, 200])
@pytest.mark.parametrize("crop", [None, CROP], ids=["centre", "crop"])
def test_every_kind_of_jpeg_has_pillows_pixels(kind: str, size: int, crop: np.ndarray | None) -> None:
    found = outcome(KINDS[kind], size, crop)
    assert len(found) == size * size * 3
    assert found == by_pillow(lambda: outcome(KINDS[kind], size, crop))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_jpeg_is_refused_as_by_pillow(kind: str) -> None:
    found = outcome(DAMAGED[kind])
    assert isinstance(found, str)
    assert found.startswith("cannot read image 'the picture' (")
    assert "_io." not in found
    assert found == by_pillow(lambda: outcome(DAMAGED[kind]))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    cut=st.none() | st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
)
def test_whatever_happened_to_a_file_the_outcome_is_pillows(
    kind: str, cut: float | None, changes: list[tuple[float, bytes, int]]
) -> None:
    content = KINDS[kind]
    for where, put_in, taken_out in changes:
        place = int(where * len(content))
        content = content[:place] + put_in + content[place + taken_out :]
    if cut is not None:
        content = content[: int(cut * len(content))]
    assert outcome(content) == by_pillow(lambda: outcome(content))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_scaled_down_while_decoding_it_is_scaled_as_by_pillow(scale: int) -> None:
    content = jpeg_file(size=(333, 257))
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (333 // scale, 257 // scale))
        expected = np.asarray(image)
    found = jpeg.decode(content, -(-333 // scale), -(-257 // scale))
    assert found is not None
    assert np.array_equal(found, expected)


def test_the_decoder_scales_down_to_twice_the_size_at_the_least() -> None:
    boxes = {(0, 0, side, side + 50): side for side in (223, 447, 448, 895, 896, 1792, 9000)}
    scales = {side: decode._decoding_scale(box, 112) for box, side in boxes.items()}
    assert scales == {223: 1, 447: 1, 448: 2, 895: 2, 896: 4, 1792: 8, 9000: 8}


def test_pictures_are_the_same_from_a_file_from_bytes_and_from_any_thread(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(KINDS["4:2:0"])
    crops = uniforms(9, np.arange(40), CROP_DRAWS)
    alone = [decode_file(str(path), 32, crop).tobytes() for crop in crops]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda crop: decode_bytes(KINDS["4:2:0"], 32, "x", crop).tobytes(), crops)
    assert alone == list(together)
    assert len(set(alone)) == 40


def test_storage_that_fails_in_the_middle_of_a_jpeg_is_not_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size is None or size < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(decode, "open", lambda *_: Failing(KINDS["4:2:0"]), raising=False)
    with pytest.raises(OSError, match="Input/output error") as raised:
        decode_file(str(tmp_path / "picture.jpg"), 8)
    assert not isinstance(raised.value, DataError)


# ------------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize(
    "box", [(0, 0, 150, 101), (30, 7, 91, 88), (3, 4, 10, 9), (20.25, 10.5, 141.75, 90.125)], ids=str
)
@pytest.mark.parametrize("size", [16, 64, 224])
def test_resizing_is_pillows_bicubic_but_for_rounding(box: tuple[float, float, float, float], size: int) -> None:
    """Of columns first, then of rows; Pillow goes the other way about, which shows where either pass is clipped."""
    left, top = int(box[0]), int(box[1])
    part = Image.fromarray(picture()).crop((left, top, -int(-box[2] // 1), -int(-box[3] // 1)))
    columns = part.resize((part.width, size), BICUBIC, (0, box[1] - top, part.width, box[3] - top))
    expected = columns.resize((size, size), BICUBIC, (box[0] - left, 0, box[2] - left, size))
    difference = np.abs(resized(picture(), box, size).astype(int) - np.asarray(expected))
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scale=st.sampled_from([1, 2, 4, 8]),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    size=st.integers(1, 40),
)
def test_any_box_of_any_image_can_be_resized(
    shape: tuple[int, int], scale: int, corners: tuple[float, float, float, float], size: int
) -> None:
    """Boxes are whole pixels of an image up to eight times as large, whose sides were rounded up when it was scaled."""
    edges = []
    for side, one, other in ((shape[1], *corners[:2]), (shape[0], *corners[2:])):
        full = max(side * scale - 3 * (scale > 4), 1)
        low, high = sorted((int(one * full), int(other * full)))
        high = min(max(high, low + scale), full)
        edges.append((min(low, high - 1) * side / full, high * side / full))
    (left, right), (top, bottom) = edges
    found = resized(np.full((*shape, 3), 77, np.uint8), (left, top, right, bottom), size)
    assert found.shape == (size, size, 3)
    assert np.all(found == 77)


def test_what_is_outside_of_the_box_does_not_show() -> None:
    pixels = np.full((40, 40, 3), 255, np.uint8)
    pixels[10:30, 5:35] = 0
    assert resized(pixels, (5, 10, 35, 30), 12).max() == 0


def test_the_bits_do_not_depend_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = resized(picture(), (10, 5, 140, 99), 48)

    def without_simd() -> cykooz_resizer.Resizer:
        resizer = cykooz_resizer.Resizer()
        resizer.cpu_extensions = cykooz_resizer.CpuExtensions.none
        return resizer

    monkeypatch.setattr(resize, "Resizer", without_simd)
    assert np.array_equal(resized(picture(), (10, 5, 140, 99), 48), expected)


def test_the_digits_are_what_they_always_were() -> None:
    """Published figures depend on every bit of them."""
    found = hashlib.sha256()
    grey = (np.arange(64 * 96, dtype=np.uint64) * 7919 % 256).astype(np.uint8).reshape(64, 96)
    for size in (8, 16, 100):
        found.update(resize_array(grey, size).tobytes())
        found.update(resize_array(grey[:8, :8], size, CROP).tobytes())
    assert found.hexdigest() == "0492827b588f8bfb35c0d9828128fdc0a76c00b0553c981373e0905c0d7214ca"


# --------------------------------------------------------------------------------------------------------------- memory


def test_a_decoding_process_gets_the_memory_of_an_image_from_the_one_before() -> None:
    """Counted in pages that the system had to hand out anew."""
    program = (
        "import resource, sys\n"
        "from trainables.data.decode import decode_bytes\n"
        "from trainables.data.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "content = sys.stdin.buffer.read()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def decode(times): [decode_bytes(content, 224, 'x') for _ in range(times)]\n"
        "decode(40); before = faults(); decode(20); print((faults() - before) // 20)\n"
    )
    content = jpeg_file(size=(500, 375))
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", program, how], input=content, cwd=ROOT, capture_output=True).stdout
        )
        for how in ("keep", "hand back")
    }
    assert faults["keep"] <= 2
    assert faults["hand back"] >= 20
