"""Training augmentations as a pure function of (key, stream position): the same on any number of workers and after
any restart.

A random generator per image (NumPy's Philox, reset for every position) costs more than the augmentation of a small
image. Here a counter-based hash gives the random numbers of a whole batch in a few array operations; no generator, no
state.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]

CROP_ATTEMPTS = 10
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2
CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hashes(key: int, positions: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint64]:
    """64 random bits for each position and column: uint64 [len(positions), count]."""
    streams = _mix(np.asarray([key], np.uint64) ^ _mix((positions.astype(np.uint64) + np.uint64(1)) * _GAMMA))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return _mix(streams[:, None] + counters[None, :])


def uniforms(key: int, positions: npt.NDArray[np.int64], count: int) -> Draws:
    """Uniform numbers in [0, 1), `count` for each stream position: float64 [len(positions), count].

    A number depends on the key, its position and its column only, so asking for more columns does not change the
    first ones.
    """
    return (hashes(key, positions, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shift(images: Images, draws: Draws) -> Images:
    """Moves each image by up to an eighth of its size along each axis; what comes in from outside is black.

    images: uint8 [b, H, W, 3]; draws: [b, 2] in [0, 1). The same as padding with zeros and cropping at random.
    """
    batch, height, width, _ = images.shape
    rows, rows_inside = _shifted(draws[:, 0], height)
    columns, columns_inside = _shifted(draws[:, 1], width)
    moved = images[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside = rows_inside[:, :, None] & columns_inside[:, None, :]
    moved *= inside[..., None]
    return moved


def _shifted(draws: Draws, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For every coordinate where it comes from, clipped to the image, and if that was inside it: [b, size] each."""
    most = size // 8
    offsets = np.floor(draws * (2 * most + 1)).astype(np.int64) - most
    wanted = np.arange(size)[None, :] + offsets[:, None]
    clipped = np.clip(wanted, 0, size - 1)
    return clipped, clipped == wanted


def flip(images: Images, draws: Draws) -> Images:
    """Mirrors left and right, each image with probability one half. images: uint8 [b, H, W, 3]; draws: [b]."""
    flipped = np.empty_like(images)
    for image, mirrored, mirror in zip(images, flipped, draws < 0.5, strict=True):
        if mirror:
            for channel in range(image.shape[2]):  # by planes: NumPy is slow at reversing pixels of three bytes
                mirrored[:, :, channel] = image[:, ::-1, channel]
        else:
            mirrored[:] = image
    return flipped


def crop_box(width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) of 8 % to 100 % of the area and aspect ratio 3/4 to 4/3, log-uniform.

    The "Inception" crop (Szegedy et al. 2015, arXiv 1409.4842, section 6). draws: [CROP_DRAWS] in [0, 1). After
    `CROP_ATTEMPTS` boxes that do not fit, the largest centred box of an allowed ratio.
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * draws[2 + 2 * attempt])
        ratio = math.exp(low + (high - low) * draws[3 + 2 * attempt])
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(draws[0] * (width - box_width + 1))
            top = int(draws[1] * (height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = max(1, min(width, round(height * CROP_RATIO[1])))
    box_height = max(1, min(height, round(width / CROP_RATIO[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
