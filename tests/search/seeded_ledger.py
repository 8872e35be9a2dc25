"""A ledger in which one point of each budget was run with two seeds."""

from __future__ import annotations

from typing import Final

from search.ledger import Record
from tests.search.ledgers import synthetic_records

LOSSES: Final = {"000": 0.2, "001": 0.3, "002": 0.5, "003": 0.6}
"""Held-out losses by the ends of the trials' ids. 000 and 003 differ in the seed alone: 0.4 on average."""


def two_seeds(forecast: dict[str, float] | None = None, *, diverging: bool = False) -> list[Record]:
    """A study of three budgets of four trials each. Of single runs 000 has the lowest loss, on average 001.

    `forecast`: what was foretold of the first budget's loss (value, low, high). `diverging`: 003 diverged, so that 000,
    with the lowest loss, cannot be relied on.
    """
    records = synthetic_records(trials=4)
    points = {r["trial"]: r for r in records if r.event == "trial_suggested"}
    for record in records:
        if record.event == "trial_suggested" and record["trial"].endswith("003"):
            rate = points[record["trial"].replace("-003", "-000")]["learning_rate"]
            record.fields.update(learning_rate=rate, params=record["params"] | {"learning_rate": rate})
        if record.event == "trial_ended":
            record.fields["outcome"] = "finished"
            loss = LOSSES[record["trial"][-3:]]
            record.fields["result"] |= {"heldout_loss": loss, "heldout_accuracy": 0.9, "reason": None, "error": None}
            if diverging and record["trial"].endswith("003"):
                record.fields["outcome"] = "diverged"
                record.fields["result"] |= {
                    "heldout_loss": None,
                    "heldout_accuracy": None,
                    "reason": "loss is no number",
                }
        if record.event == "budget_closed":
            record.fields["best"] = next(name for name in points if name.endswith("001"))
    if forecast is not None:
        opened = next(place for place, record in enumerate(records) if record.event == "budget_opened")
        said = {"variant": "F1", "epochs": 12.5, "learning_rate": 0.2, "loss": forecast}
        label = records[opened]["budget"]
        records.insert(
            opened + 1, Record(0, records[opened].time, "forecast_made", {"budget": label, "forecast": said})
        )
    return [Record(seq, record.time, record.event, record.fields) for seq, record in enumerate(records)]
