"""What MLflow's page of a study shows and how, as tags of its experiment: its kind, a description that says how to
look, and views that are ready to open.

A view is what the page's own "Save & share view" writes: which runs, in which order, with which columns and charts. The
formats are MLflow 3's (`savedViewEnvelope.ts`, `ExperimentPageUIState.tsx` and `runs-charts.types.ts` of its source);
servers that know nothing of them keep the tags and show nothing. What a person has changed or deleted stays so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

VIEW_PREFIX: Final = "mlflow.sharedViewState."
ALL_TRIALS: Final = "convscale-trials"
WRITTEN: Final = "mlflow.convscale.written"  # digests of the tags as last written; the page hides what is mlflow.*
_NOTE: Final = "mlflow.note.content"
_NOTE_TEXT: Final = """\
A study of convscale: which model size, how many epochs and which learning rate, given so much compute.

Choose *Model training* (top left). Then open **Views** (top right): *All trials*, or those of a budget, best first,
with the columns that matter. The chart button beside the search field shows them in parallel coordinates, and held-out
loss against learning rate, compute and size. To compare some side by side, tick them, press *Compare*, and choose
heldout_loss under *Metrics*.

Without a view there is a run per budget, with a run per trial below it (open it by its +).

To filter, paste into the search field:

- `tags.kind = 'trial' and tags.budget = '2e15 FLOPs'`: the trials of a budget
- `tags.kind = 'trial' and tags.variant = 'F1' and tags.outcome = 'finished'`: the tags are budget, variant, study, run,
outcome (finished, diverged, failed), device and code_version
- `tags.kind = 'trial' and metrics.heldout_loss < 2`: sort by any column; sorted by *Created*, trials are nested

Parameters: variant, epochs, learning_rate; log10_learning_rate and log10_flops are for charts, whose axes are linear.

Metrics: heldout_loss (what trials are ranked by), heldout_accuracy, core_hours, goodput; seconds_* say where time went.

The same as a table: `convscale compare STUDY`. All of this is a view of the study's ledger, and `convscale sync STUDY`
brings it up to date."""
_PARAMS: Final = ("variant", "epochs", "learning_rate")
_METRICS: Final = ("heldout_loss", "heldout_accuracy", "core_hours", "goodput", "mean_images_per_second")
_CREATED_MS: Final = 1_700_000_000_000  # the page lists the newest view first: this orders them
_SECTIONS: Final = (  # of the charts: name, title, charts in a row, height
    ("all", "Trials in parallel coordinates", 1, 380),
    ("loss", "Held-out loss", 2, 340),
    ("curves", "Training", 2, 340),
)
_WIDTHS: Final = {"tags.`budget`": 110, "params.`variant`": 80, "params.`epochs`": 90, "params.`learning_rate`": 110,
           "metrics.`heldout_loss`": 120, "metrics.`heldout_accuracy`": 140}  # fmt: skip


def page_changes(there: Mapping[str, str], budgets: Mapping[str, float]) -> dict[str, str]:
    """The tags to set on an experiment that has the tags `there`, for budgets by their labels, in FLOPs.

    A tag that was never there is set, and one that is as it was last written is brought up to date.
    """
    written: dict[str, str] = json.loads(there.get(WRITTEN, "{}"))
    changes: dict[str, str] = {}
    known = dict(written)
    for name, value in page_tags(budgets).items():
        before, wanted = _digest(there[name]) if name in there else None, _digest(value)
        if before == written.get(name) and before != wanted:
            changes[name] = value
        if name in changes or before == wanted:
            known[name] = wanted
    return changes if known == written else changes | {WRITTEN: json.dumps(known)}


def page_tags(budgets: Mapping[str, float]) -> dict[str, str]:
    """The tags of the page of an experiment with these budgets."""
    tags = {
        "mlflow.experimentKind": "custom_model_development",  # not the kind that is about traces of language models
        _NOTE: _note(),
        VIEW_PREFIX + ALL_TRIALS: _view("All trials, best first", 1_000_000, None),
    }
    for label, flops in budgets.items():
        rank = round(1000 * math.log10(flops))
        tags[VIEW_PREFIX + view_id(label)] = _view(f"{label}, best first", rank, label)
    return tags


def view_id(label: str) -> str:
    """What the view of a budget's trials is called in an address."""
    return f"convscale-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def view_path(experiment_id: str, view: str | None) -> str:
    """Where an experiment's runs are, behind the address of a server, in a view or (None) as the page has them."""
    opened = "" if view is None else f"&viewStateShareKey={view}"
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning{opened}"


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _note() -> str:
    """The page breaks lines where the text does, so paragraphs are one line each."""
    return re.sub(r"(?<!\n)\n(?![\n-])", " ", _NOTE_TEXT)


def _view(name: str, rank: int, budget: str | None) -> str:
    """A saved view: its name, its place in the list (higher comes first), and what it shows."""
    chosen = "tags.kind = 'trial'" if budget is None else f"tags.kind = 'trial' and tags.budget = '{budget}'"
    columns = [*(["tags.`budget`"] if budget is None else []), *(f"params.`{param}`" for param in _PARAMS)]
    columns += [*(f"metrics.`{metric}`" for metric in _METRICS), "tags.`outcome`"]
    state = {
        "searchFilter": chosen,
        "orderByKey": "metrics.`heldout_loss`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": _WIDTHS,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(budget),
        "compareRunSections": [
            {
                "uuid": name,
                "name": title,
                "columns": columns,
                "cardHeight": height_px,
                "display": True,
                "isReordered": True,
            }
            for name, title, columns, height_px in _SECTIONS
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    times = {"createdAt": _CREATED_MS + rank, "updatedAt": _CREATED_MS + rank}
    return json.dumps({"name": name, **times, "state": f"deflate;{packed}"})


def _charts(budget: str | None) -> list[dict[str, Any]]:
    """Parallel coordinates over everything, held-out loss against one thing at a time, and the curves of training."""
    params, metrics, against = ["variant", "epochs", "log10_learning_rate"], ["heldout_loss"], ["log10_learning_rate"]
    if budget is None:  # in a budget, all trials take as many FLOPs
        params, metrics, against = ["log10_flops", *params], ["core_hours", *metrics], ["log10_flops", *against]
    charts: list[dict[str, Any]] = [
        {"type": "PARALLEL", "metricSectionId": "all", "selectedParams": params, "selectedMetrics": metrics}
    ]
    for param in (*against, "parameters"):
        x, y = {"key": param, "type": "PARAM"}, {"key": "heldout_loss", "type": "METRIC"}
        charts.append({"type": "SCATTER", "metricSectionId": "loss", "xaxis": x, "yaxis": y})
    for metric, scale in (("train_loss", "log"), ("learning_rate", "linear")):
        line = {"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "scaleType": scale}
        charts.append({"type": "LINE", "metricSectionId": "curves", **line})
    common = {"deleted": False, "isGenerated": False}
    return [chart | common | {"uuid": f"convscale-{place}"} for place, chart in enumerate(charts)]
