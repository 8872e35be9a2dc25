"""The images of a trial: where they come from (`sources`), and how they become batches (`pipeline`)."""

from trainables.data.errors import DataError
from trainables.data.sources import Example, ImageSource, Splits, open_splits

__all__ = ["DataError", "Example", "ImageSource", "Splits", "open_splits"]
