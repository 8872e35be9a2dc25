"""How far our decoded pixels are from the exact way: all of the file decoded by Pillow, then its own bicubic filter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data.augment import CROP_DRAWS, Draws, Images, crop_box, uniforms
from trainables.data.decode import decode_bytes


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Differences of the channels of pixels, 0 to 255: their mean and largest, and what the mean square makes in dB."""

    mean: float
    psnr_db: float
    largest: int


def fidelity(files: list[Path], image_size: int) -> dict[str, Fidelity]:
    """Of random crops, of centres, and of centres so small that the JPEG decoder scales down."""
    crops = uniforms(0, np.arange(len(files)), CROP_DRAWS)
    small = image_size // 4
    return {
        f"random crops, {image_size} px": _compared(files, image_size, list(crops)),
        f"centre, {image_size} px": _compared(files, image_size, [None] * len(files)),
        f"centre, {small} px (decoded at half the size)": _compared(files, small, [None] * len(files)),
    }


def exact(image: Image.Image, image_size: int, crop: Draws | None) -> Images:
    """What `decode_bytes` stands for, all by Pillow."""
    if crop is not None:
        box = crop_box(image.width, image.height, crop)
    else:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    resized = image.convert("RGB").crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


def _compared(files: list[Path], image_size: int, crops: list[Draws] | list[None]) -> Fidelity:
    differences: list[npt.NDArray[np.int64]] = []
    for path, crop in zip(files, crops, strict=True):
        with Image.open(path) as image:
            expected = exact(image, image_size, crop).astype(np.int64)
        differences.append(decode_bytes(path.read_bytes(), image_size, str(path), crop) - expected)
    everything = np.stack(differences)
    mean_square = float((everything**2).mean())
    return Fidelity(
        float(np.abs(everything).mean()),
        10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
        int(np.abs(everything).max()),
    )
