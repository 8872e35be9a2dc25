"""The command line of data sets: `convscale data convert FOLDER ADDRESS` and `convscale data index ADDRESS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make sharded data sets, for what is too large for a folder of files, or lies in an object store.",
    add_completion=False,
)
Address = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="A folder, or an fsspec address such as gs://bucket/images.")
]
Workers = Annotated[int | None, typer.Option(help="Processes; default: one for each core.")]


@app.command()
def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images in a folder for each class, as data.source: folder has.")
    ],
    address: Address,
    shard_size: Annotated[str, typer.Option(help="Bytes of a shard, at most.")] = "256MiB",
    seed: Annotated[int, typer.Option(help="Draws the order of the images.")] = 0,
    held_out_fraction: Annotated[
        float, typer.Option(help="Share held out, where the folder has no val; as data.held_out_fraction.")
    ] = 0.2,
    split_seed: Annotated[int, typer.Option(help="Draws which are held out; as data.split_seed.")] = 0,
    image_size: Annotated[
        int | None,
        typer.Option(help="Make the shorter side of larger images so many pixels; default: leave the files as are."),
    ] = None,
    bad_images: Annotated[
        str, typer.Option(help="An image that cannot be read is an error, or is left out and told (skip).")
    ] = "error",
    workers: Workers = None,
) -> None:
    """Copy a folder of images into tar shards; the same command again goes on where it was interrupted."""
    from search.data_commands import convert_folder

    convert_folder(
        str(folder),
        address,
        shard_size=shard_size,
        seed=seed,
        held_out_fraction=held_out_fraction,
        split_seed=split_seed,
        image_size=image_size,
        bad_images=bad_images,
        workers=workers,
    )


@app.command()
def index(
    address: Address,
    train: Annotated[
        list[str],
        typer.Option(help="Shards to train on: names below ADDRESS, or addresses, with * or {0000..0099}; repeatable."),
    ],
    heldout: Annotated[list[str], typer.Option(help="Shards held out, likewise.")],
    label: Annotated[
        str, typer.Option(help="Where an example's class stands: an ending, or json.KEY for a key of its JSON.")
    ] = "cls",
    image: Annotated[
        str | None, typer.Option(help="The ending of images; default: jpg, jpeg, png, webp or bmp, whichever is there.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="A file of the classes' names, a line each, in the order of their numbers.")
    ] = None,
    bad_images: Annotated[
        str, typer.Option(help="An example without an image or a class is an error, or is left out and told (skip).")
    ] = "error",
    workers: Workers = None,
) -> None:
    """Make WebDataset shards that are there already a data set, as they are; reads each once, and goes on likewise."""
    from search.data_commands import index_shards

    index_shards(
        address,
        train=train,
        heldout=heldout,
        label=label,
        image=image,
        classes=classes,
        bad_images=bad_images,
        workers=workers,
    )
