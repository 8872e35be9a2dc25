"""The images of a trial: where they come from (`sources`), and how they become batches (`pipeline`)."""

from trainables.data.errors import DataError
from trainables.data.examples import Example, ImageSource
from trainables.data.shard_check import why_not_here
from trainables.data.sources import Splits, open_splits

__all__ = ["DataError", "Example", "ImageSource", "Splits", "open_splits", "why_not_here"]
