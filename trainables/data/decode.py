"""From an image file, its bytes, or an array, to uint8 RGB of the size a model takes."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from trainables.data import jpeg
from trainables.data.augment import Draws, Images, crop_box
from trainables.data.errors import DataError
from trainables.data.resize import resize

# How to turn an image upright, by its EXIF orientation; from 5 on, width and height are swapped.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged headers and chunks, besides OSError.
_DAMAGE = (SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)
# What the file itself can be blamed for; any other error number is the storage's, and worth a retry.
_OF_THE_FILE = frozenset({None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})
_GONE = (errno.ENOENT, errno.ENOTDIR)


def decode_file(path: str, size: int, crop: Draws | None = None) -> Images:
    """The image at `path` as uint8 [size, size, 3].

    Without `crop`, the shorter side is resized to `size` and the centre kept. With `crop` (uniform numbers,
    [CROP_DRAWS]), the random box of `augment.crop_box` is resized. EXIF orientation is obeyed; palette, grey, 16-bit
    and CMYK images become RGB; what is transparent becomes white.

    Raises:
        DataError: the file is missing, not readable, damaged, or no image; the message names it.
        OSError: the storage failed (for example EIO, ESTALE), or the file's whole folder is gone; reading again may
            work.
    """
    with _blaming(path):
        file = open(path, "rb")  # noqa: SIM115 - closed below: only opening it is the file's fault
    with file:
        return _decode(file, size, crop, path)


def decode_bytes(content: bytes, size: int, name: str, crop: Draws | None = None) -> Images:
    """The same for the bytes of an image file, which messages call `name`.

    Raises:
        DataError: the bytes are damaged, or no image.
    """
    return _decode(io.BytesIO(content), size, crop, name)


def resize_array(grey: Images, size: int, crop: Draws | None = None) -> Images:
    """The same for a grey image in memory, uint8 [H, W]."""
    image = Image.fromarray(grey).convert("RGB")
    # Pillow's own resizing: these pixels are part of what published figures depend on, to the last bit.
    resized = image.resize((size, size), Image.Resampling.BICUBIC, _box(*image.size, crop), reducing_gap=3.0)
    return np.asarray(resized, dtype=np.uint8)


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Around the reading of a file and nothing else: an error in here is the file's fault, or its storage's."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        folder = os.path.dirname(path)
        if error.errno in _GONE and not os.path.isdir(folder):
            raise OSError(error.errno, "the folder of this image has gone; bring it back", folder) from error
        raise _unreadable(path, error) from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> DataError:
    said = re.sub(r"<_io\.Buffered\w+ name=.*>|<_io\.BytesIO object at \w+>", "", str(error).replace(repr(path), ""))
    reason = " ".join(said.split()) or type(error).__name__
    return DataError(
        f"cannot read image {str(Path(path))!r} ({reason}); put a good one in its place, or set data.bad_images to "
        "'skip', and go on with --retry-failed"
    )


def _decode(file: BinaryIO, size: int, crop: Draws | None, path: str) -> Images:
    with _blaming(path):
        image = Image.open(file)
    with image:
        with _blaming(path):
            orientation = _orientation(image)
        width, height = reversed(image.size) if orientation >= 5 else image.size
        box = _box(width, height, crop)
        scale = _decoding_scale(box, size)
        pixels = None
        if orientation == 1 and jpeg.is_plain(image):
            with _blaming(path):
                file.seek(0)
                content = file.read()
            pixels = jpeg.decode(content, -(-width // scale), -(-height // scale))
        if pixels is None:
            pixels = _pixels(image, orientation, scale, path)
    scale_x, scale_y = pixels.shape[1] / width, pixels.shape[0] / height
    return resize(pixels, (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y), size)


def _box(width: int, height: int, crop: Draws | None) -> tuple[int, int, int, int]:
    """What of the image is taken: (left, top, right, bottom)."""
    if crop is not None:
        return crop_box(width, height, crop)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _decoding_scale(box: tuple[int, int, int, int], size: int) -> int:
    """By how much the JPEG decoder may scale down while it decodes, which is much faster.

    It does so by leaving out high frequencies, block by block, which is coarser than the resizing that follows; so
    that keeps at least a factor of two.
    """
    factor = min(box[2] - box[0], box[3] - box[1]) // (2 * size)
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(factor, 1))


def _pixels(image: Image.Image, orientation: int, scale: int, path: str) -> Images:
    """Any kind of image by Pillow, upright: uint8 [H, W, 3]; a JPEG scaled down by `scale`."""
    with _blaming(path):
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))  # rounded down, or Pillow scales less
        image.load()
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    with _blaming(path):
        return np.asarray(_to_rgb(image), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that can be read: a camera's bad note spoils no picture."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 instead of scaling
        return Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)).convert(
            "RGB"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
