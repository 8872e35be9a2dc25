"""A study's data: opened, or, where they are not at hand, as the study declares them."""

from __future__ import annotations

from dataclasses import dataclass

from search.study import Study, StudyError
from trainables.data import DataError, Splits, open_splits, why_not_here


@dataclass(frozen=True, slots=True)
class Counts:
    """How much data there is: images to train on and held out, classes, and what is to be told, one line each."""

    train: int
    heldout: int
    classes: int
    warnings: tuple[str, ...] = ()


def open_data(study: Study) -> Splits:
    """The study's data.

    Raises `StudyError`, by the name of the study's file, if they cannot be used as given or reached, or are not as
    declared.
    """
    try:
        splits = open_splits(study.data_config())
    except DataError as error:
        raise StudyError(f"{study.source}: {error}") from error
    except OSError as error:
        where = error.filename or study.data_config().path
        raise StudyError(
            f"{study.source}: data.path: {where!r} cannot be read ({error.strerror or error}); mend that, or give "
            "another"
        ) from error
    declared = study.data.declared
    if declared is not None:
        found = {
            "train_images": len(splits.train),
            "heldout_images": len(splits.heldout),
            "classes": len(splits.classes),
        }
        wrong = [
            f"{name}: {said:,} given, and the data have {found[name]:,}"
            for name, said in declared.model_dump().items()
            if said != found[name]
        ]
        if wrong:
            raise StudyError(
                f"{study.source}: data.declared.{'; '.join(wrong)}; correct data.declared, or leave it out"
            )
    return splits


def counts_of(study: Study) -> Counts:
    """How much data the study has, for what needs no image: as opened, or as declared where there is nothing to open.

    Raises `StudyError` as `open_data` does.
    """
    declared, path = study.data.declared, study.data_config().path
    why_not = None if declared is None or path is None else why_not_here(path)
    if declared is None or why_not is None:
        splits = open_data(study)
        return Counts(len(splits.train), len(splits.heldout), len(splits.classes), tuple(splits.warnings()))
    missing = f"data.path: {study.data.path!r} {why_not}, so data.declared is taken for granted, and was not checked"
    return Counts(declared.train_images, declared.heldout_images, declared.classes, (missing,))
