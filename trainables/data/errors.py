"""The one error of the data part."""

from __future__ import annotations

from trainables.config import TrialRefused


class DataError(TrialRefused):
    """The images cannot be used as given: a bad folder, or an image that cannot be read.

    The message is one line: what was given, what is allowed, how to mend it. It is the user's to mend, so a trial is
    never retried for it. A fault of the storage (a network file system that went away) while an image is read is not a
    `DataError` but an `OSError`.
    """
