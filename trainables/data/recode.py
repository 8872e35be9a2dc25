"""Images on their way into a shard: checked, and made smaller where that is asked for."""

from __future__ import annotations

import io
import struct
from typing import Final

from PIL import Image, ImageOps

from trainables.data.errors import DataError

JPEG_QUALITY: Final = 95
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error,
                  Image.DecompressionBombError)  # fmt: skip
_COLOURS: Final = frozenset({"1", "L", "RGB", "CMYK", "YCbCr", "P", "RGBA", "LA", "PA"})
_CLEAR: Final = frozenset({"RGBA", "LA", "PA"})


def check_image(content: bytes, name: str) -> None:
    """Decode an image file's bytes from end to end, as small as that goes.

    Raises:
        DataError: they are damaged, or no image; the message calls them `name`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except _DAMAGE as error:
        raise _unreadable(name, error) from error


def smaller(content: bytes, side: int, name: str) -> tuple[bytes, bool]:
    """An image file whose shorter side is `side` pixels, as a JPEG, upright; and whether it was made so.

    One that is no larger, or has more than 8 bits a colour, stays as it is. What is transparent becomes white.

    Raises:
        DataError: the bytes are damaged, or no image; the message calls them `name`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) <= side or image.mode not in _COLOURS:
                image.load()
                return content, False
            image.draft(None, (2 * side, 2 * side))
            rgb = _rgb(_upright(image))
        scale = side / min(rgb.size)
        size = max(side, round(rgb.width * scale)), max(side, round(rgb.height * scale))
        out = io.BytesIO()
        rgb.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue(), True
    except _DAMAGE as error:
        raise _unreadable(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # a camera's bad note; where it is the picture that is damaged, that is met again here
        return image.copy()


def _rgb(image: Image.Image) -> Image.Image:
    if "transparency" in image.info or image.mode in _CLEAR:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> DataError:
    said = "cannot identify image file" if "cannot identify image file" in str(error) else str(error)
    reason = " ".join(said.split()) or type(error).__name__
    return DataError(
        f"cannot read image {name!r} ({reason}); put a good one in its place, or leave such out with --bad-images skip"
    )
