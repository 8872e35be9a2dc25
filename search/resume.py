"""Whether a run can be gone on with: its study and its data are what they were where results depend on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.budgets import Budget, amounts_in_flops
from search.director import space_of
from search.ledger import Record
from search.runs import SessionError
from search.state import StudyState
from search.study import Study
from search.units import KNOWN_FLOPS_PER_CORE_SECOND, same_amount
from trainables.data import Splits


def described(splits: Splits) -> dict[str, Any]:
    """What the ledger keeps of a study's data, to know it again: how much there is, and a digest of what it is."""
    return {
        "classes": len(splits.classes),
        "train_examples": len(splits.train),
        "heldout_examples": len(splits.heldout),
        "data_digest": splits.digest,
    }


def as_begun(study: Study, records: Sequence[Record]) -> tuple[Study, list[str]]:
    """The study with the sampler that its run goes on with, and a line where that is not what is taken today.

    What was begun when tpe was the default goes on with it, unless the study names its sampler: what is done already
    would not be done by another one.
    """
    first = next((record for record in records if record.event == "budget_opened"), None)
    if first is None or "doubt" in first.fields or "sampler" in study.search.model_fields_set:
        return study, []
    line = (
        f"{records[0]['run']} began when sampler tpe was the default, and goes on with it; "
        "set search.sampler: trend to change that"
    )
    return study.model_copy(update={"search": study.search.model_copy(update={"sampler": "tpe"})}), [line]


def refuse_changed_study(
    study: Study,
    state: StudyState,
    splits: Splits,
    core_hours: Mapping[str, float] = KNOWN_FLOPS_PER_CORE_SECOND,
) -> None:
    """Raise `SessionError` if what a result depends on (the study's fields, its data) differs from what the run was
    opened with, and `StudyError` for budgets that cannot be told in FLOPs. `core_hours`: see `open_budgets`.
    """
    before, now = state.opened["identity"], study.identity()
    changed = [
        f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(now)  # a run of an earlier version may have kept more
        if before.get(key) != now.get(key)
    ]
    changed += [
        f"{key}: was {str(earlier)[:12]}, now {str(value)[:12]}"
        for key, value in described(splits).items()
        if (earlier := state.opened.get(key)) is not None and earlier != value
    ]
    for quantity, flops in zip(study.budgets, amounts_in_flops(study, core_hours), strict=True):
        known = state.budgets.get(quantity.label)
        if known is not None and not same_amount(known.flops, flops):
            changed.append(f"budget {quantity.label}: was {known.flops:.4g} FLOPs, now {flops:.4g}")
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise SessionError(
            f"{study.source}: changed since {state.opened['run']} of this study began ({shown}), so trials cannot be "
            "compared; restore the study and its data to go on, or start anew beside it with --fresh"
        )


def opened_again(state: StudyState, budgets: Iterable[Budget]) -> list[str]:
    """A line for each closed budget that a search opens again: what for."""
    return [
        f"budget {budget.label} is opened again: {', '.join(more)}"
        for budget in budgets
        if (known := state.budgets.get(budget.label)) is not None and known.closed and (more := known.lacks(budget))
    ]


def without_trials(study: Study, state: StudyState, budgets: Iterable[Budget]) -> list[str]:
    """A line for each budget that has had all its trials before these variants or learning rates came: none is left."""
    lines = []
    for budget in budgets:
        known = state.budgets.get(budget.label)
        trials = [] if known is None else known.trials
        space = space_of(study, budget)
        points = {(trial.variant, space.place(trial.learning_rate)) for trial in trials if space.holds(trial)}
        tried = [variant for variant, _ in points]
        new = [variant for variant in space.variants if variant not in tried]
        if known is not None and known.learning_rates:
            rates = set(budget.learning_rates) - set(known.learning_rates)
            new += [f"learning rate {rate:g}" for rate in sorted(rates)]
        if new and len(tried) >= budget.trials:
            lines.append(
                f"budget {budget.label}: all of its {budget.trials} trials have been run, none with {', '.join(new)}; "
                "raise search.trials to have it tried"
            )
    return lines
