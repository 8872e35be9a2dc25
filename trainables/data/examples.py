"""A labelled image, and what a source of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainables.data.augment import Draws, Images


@dataclass(frozen=True, slots=True)
class Example:
    """A decoded image, uint8 [H, W, 3], and its class."""

    image: Images
    label: int


class ImageSource(Protocol):
    """Labelled images by number, 0 to len - 1. Reading is safe from several threads, and the source can be pickled."""

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""

    def __len__(self) -> int:
        """How many examples."""

    def __getitem__(self, index: int) -> Example:
        """The example as it is evaluated, not augmented. Raises DataError where it cannot be read."""

    def read(self, index: int, crop: Draws | None = None) -> Images:
        """The image as uint8 [image_size, image_size, 3], of a random box where `crop` is given (`augment.crop_box`).

        Raises DataError, naming the image, where it cannot be read.
        """

    def label(self, index: int) -> int:
        """The class of an example, without decoding the image. Raises DataError where it cannot be read."""

    def name(self, index: int) -> str:
        """What a person knows the example by: a path, or "digits[17]"."""

    def fetched(self, indices: Sequence[int]) -> ImageSource:
        """A source of these examples, by the same numbers, that are about to be read in that order.

        Where one read costs much and many at the same time no more, they are under way when this returns; else it is
        the source itself.
        """
