"""The peers of the input benchmark: the usual ways to feed images to PyTorch, as their own documentation has them.

torchvision: an `ImageFolder`, Pillow, its transforms, torch's `DataLoader`. WebDataset: tar shards, its
`decode("pilrgb")`, the same transforms, its `WebLoader`. In their favour they stop at uint8 tensors, as our batches do,
and neither convert to floats nor normalise; and they resize by torchvision's default, bilinear, which takes less time
than our bicubic would by Pillow.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import webdataset
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

Split = Literal["train", "val"]
_ENDLESS_IMAGES = 10**7
_SHUFFLED_SAMPLES = 500


def torchvision_batches(root: Path, split: Split, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """Endless batches of the training images, or one pass over those held out."""
    images = ImageFolder(str(root / split), _transform(split, image_size))
    sampler = RandomSampler(images, num_samples=_ENDLESS_IMAGES) if split == "train" else None
    return DataLoader(images, batch_size, sampler=sampler, num_workers=workers)


def webdataset_batches(
    shards: list[Path], split: Split, image_size: int, batch_size: int, workers: int
) -> Iterable[Any]:
    """Endless batches."""
    urls = [str(path) for path in shards]
    if split == "train":
        data = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(_SHUFFLED_SAMPLES)
    else:
        data = webdataset.WebDataset(urls, shardshuffle=False).repeat()
    data = data.decode("pilrgb").to_tuple("jpg", "cls").map_tuple(_transform(split, image_size)).batched(batch_size)
    loader: Iterable[Any] = webdataset.WebLoader(data, batch_size=None, num_workers=workers)
    return loader


def write_tars(root: Path, into: Path, count: int) -> list[Path]:
    """The training images as `count` tar files in WebDataset's format."""
    into.mkdir()
    files = sorted((root / "train").rglob("*.jpg"))
    classes = sorted({path.parent.name for path in files})
    shards = []
    for number in range(count):
        shards.append(into / f"photographs-{number:03}.tar")
        with webdataset.TarWriter(str(shards[-1])) as shard:
            for path in files[number::count]:
                label = classes.index(path.parent.name)
                shard.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label})
    return shards


def _transform(split: Split, image_size: int) -> Any:
    if split == "val":
        return transforms.Compose(
            [transforms.Resize(image_size), transforms.CenterCrop(image_size), transforms.PILToTensor()]
        )
    return transforms.Compose(
        [transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
