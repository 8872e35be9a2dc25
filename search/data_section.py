"""The `data` section of a study file: where the images come from, and what becomes of them before a model sees them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from search.sections import Section, Seed
from trainables.data.storage import is_address


class Declared(Section):
    """What a data set of shards holds, for a plan where it is not at hand."""

    train_images: int = Field(ge=1, le=2**32 - 1, description="Images to train on.")
    heldout_images: int = Field(ge=1, le=2**32 - 1, description="Images held out.")
    classes: int = Field(ge=2, le=10**7, description="Classes.")


class Data(Section):
    """Where the images come from."""

    source: Literal["digits", "folder", "shards"] = Field(
        description="digits: the 1,797 handwritten digits of scikit-learn; folder: images in a folder for each class; "
        "shards: images in tar shards, for what is too large for a folder of files or lies in an object store; "
        "convscale data makes them.",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        description="source folder: the folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg; "
        "source shards: the folder, or any fsspec address (gs://bucket/images), that holds dataset.json. "
        "A relative path is relative to the working directory of the command.",
    )
    declared: Declared | None = Field(
        default=None,
        description="source shards: what the data set holds, such as {train_images: 4_000_000_000, heldout_images: "
        "130_000, classes: 30_000}: plan and aot go by it where the data are not. A search needs the data, and refuses "
        "other numbers.",
    )
    image_size: int = Field(
        default=224,
        ge=8,
        le=4096,
        description="Height and width the model sees, in pixels. The paper trains at 224 and evaluates at 256; "
        "here both are one size.",
    )
    held_out_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the examples held out to measure the loss on, where source folder has no val folder.",
    )
    split_seed: Seed = Field(default=0, description="Draws which examples are held out.")
    augment: Literal["none", "shift", "crop"] = Field(
        default="none",
        description="Of training images. shift: moved by up to an eighth; crop: a random part, resized to the whole.",
    )
    flip: bool = Field(default=False, description="Mirror half of the training images; not for digits or letters.")
    bad_images: Literal["error", "skip"] = Field(
        default="error",
        description="An image that cannot be read is an error that names it, or is left out and counted (skip). "
        "May change while a study goes on.",
    )
    decode_workers: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Processes that decode images for each worker; 0 decodes in the worker itself.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _not_a_former_name(cls, source: Any) -> Any:
        if source == "records":
            raise ValueError(
                "allowed: digits, folder, shards; ArrayRecord files are no longer read: convert the images anew with "
                "convscale data convert, and set source: shards"
            )
        return source

    @model_validator(mode="after")
    def _fields_go_with_source(self) -> Self:
        if self.source != "digits" and self.path is None:
            what = (
                "the folder of images, such as path: my-images"
                if self.source == "folder"
                else "the folder or address of dataset.json and its shards, such as path: gs://bucket/images"
            )
            raise ValueError(f"path: missing; source {self.source} needs {what}")
        if self.source == "folder" and is_address(self.path or ""):
            raise ValueError(
                f"path: {self.path!r} given; allowed for source folder: a folder of this machine's disk, or one "
                "that it has mounted; make it shards there (convscale data convert), and set source: shards"
            )
        if self.declared is not None and self.source != "shards":
            raise ValueError(f"declared: given with source {self.source}; allowed: with source shards; remove it")
        if self.source == "digits" and self.path is not None:
            raise ValueError(f"path: {self.path!r} given; source digits takes none; remove it, or set source: folder")
        return self
