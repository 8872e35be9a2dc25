"""Photographs to decode: distinct JPEG files as large as ImageNet's, made of the two that scikit-learn ships."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

CLASSES = 8
_SIZES = ((500, 375), (500, 375), (500, 375), (500, 333), (375, 500))
_QUALITIES = (96, 97, 98)  # with which files come to about 110 kB, as ImageNet's do
_FULL_COLOUR = 0.15  # of the files; the others have colour at half the resolution (4:2:0), as cameras write them


def write_photographs(root: Path, count: int, *, heldout_copies: int, seed: int = 0) -> None:
    """Writes `count` files below root/train/CLASS, each another part of a photograph, and links each
    `heldout_copies` times below root/val/CLASS.
    """
    random = np.random.default_rng(seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        size = _SIZES[random.integers(len(_SIZES))]
        most = min(photograph.width / size[0], photograph.height / size[1])
        width, height = (round(side * most * random.uniform(0.85, 1)) for side in size)
        left, top = (int(random.integers(room + 1)) for room in (photograph.width - width, photograph.height - height))
        image = photograph.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        path = root / "train" / f"class-{number % CLASSES}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sampling = 0 if random.random() < _FULL_COLOUR else 2
        image.save(path, quality=int(random.choice(_QUALITIES)), subsampling=sampling)
        for copy in range(heldout_copies):
            link = root / "val" / path.parent.name / f"{number:04}-{copy}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)
