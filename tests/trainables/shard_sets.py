"""Small sharded data sets, made by the code that makes large ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainables.data.building import begin, do, finish
from trainables.data.jobs import Count, Part, Plan
from trainables.data.storage import Storage, open_storage
from trainables.data.tars import TarWriter

Labelled = tuple[int, bytes]


@dataclass(frozen=True)
class ListJob:
    """Images in memory, as a shard."""

    split: str
    number: int
    images: Sequence[Labelled]

    @property
    def shard(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def part(self) -> str:
        return f"{self.split}-{self.number:06d}"

    @property
    def known_by(self) -> str:
        return "always the same"

    def make(self, shards: Storage, count: Count) -> Part:
        with shards.writing(self.shard) as file:
            tar = TarWriter(file)
            for place, (label, image) in enumerate(self.images):
                tar.add(f"{self.number:03d}{place:06d}", "png", image, label)
            return Part(self.shard, tar.size + 1024, tar.finish())


def encoded(number: int, kind: str = "PNG") -> bytes:
    """An image of 12 x 10 pixels whose colour tells its number."""
    image = Image.new("RGB", (12, 10), (number * 5, 100, 250 - number * 5))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def numbered(count: int, classes: int = 3) -> list[Labelled]:
    """That many images, which take turns in their classes."""
    return [(number % classes, encoded(number)) for number in range(count)]


def write_shards(
    address: str | Path,
    classes: Sequence[str] = ("a", "b", "c"),
    *,
    train: Iterable[Labelled],
    heldout: Iterable[Labelled],
    per_shard: int = 10,
) -> None:
    """A data set of these images, in this order."""
    storage = open_storage(str(address))
    jobs = [
        ListJob(split, number, images[first : first + per_shard])
        for split, images in (("train", [*train]), ("heldout", [*heldout]))
        for number, first in enumerate(range(0, len(images), per_shard))
    ]
    plan = Plan(storage, jobs, {"command": "a test"}, tuple(classes))
    assert begin(plan) is None
    for job in jobs:
        do(plan, job, lambda images, size: None)
    finish(plan)
