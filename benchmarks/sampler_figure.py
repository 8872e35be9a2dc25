"""The figure of `benchmarks.samplers`: what is missed after so many trials, and what it takes to miss nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.sampler_peers import TREND_ON, UNTIL_FOUND
from benchmarks.sampler_scores import REGRET_AFTER, Score, Summary, as_json
from search.plotting import GREY, RAMP, new_figure, style_axes

SHOWN: Final = {  # searcher: colour and mark
    "trend": (RAMP[4], "o"),
    TREND_ON: (RAMP[4], "*"),
    "tpe": (RAMP[2], "s"),
    "stock tpe": (RAMP[1], "D"),
    "gp": (RAMP[0], "^"),
    "random": (GREY, "x"),
    "hyperband, tpe": (RAMP[3], "v"),
}


@dataclass(frozen=True, slots=True)
class SamplerFigure:
    """What the figure shows: by family and searcher, a summary; searchers in the order of `SHOWN`."""

    summaries: Mapping[str, Mapping[str, Summary]]


def figure_data(scores: Sequence[Score]) -> SamplerFigure:
    """The summaries of those searchers that are drawn."""
    every = as_json(scores)
    return SamplerFigure(
        {family: {name: of[name] for name in SHOWN if name in of} for family, of in every.items()},
    )


def draw(scores: Sequence[Score]) -> Figure:
    """Regret against trials on the first family, and trials per cell until found by family."""
    data = figure_data(scores)
    figure = new_figure(11.0, 0.6 * len(data.summaries) + 1.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    family = next(iter(data.summaries))
    _draw_regret(left, family, data.summaries[family])
    _draw_trials(right, data.summaries)
    handles, labels = right.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known), frameon=False)
    return figure


def _draw_regret(axes: Axes, family: str, of: Mapping[str, Summary]) -> None:
    style_axes(axes)
    for name, one in of.items():
        if name in UNTIL_FOUND:  # it would seem to go no lower
            continue
        colour, mark = SHOWN[name]
        axes.plot(REGRET_AFTER, [100 * value for value in one.regret], color=colour, marker=mark, markersize=6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(REGRET_AFTER))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("trials of a budget")
    axes.set_ylabel("loss above the best, mean")
    axes.set_title(f"Regret on {family} surfaces", loc="left", fontsize=11)


def _draw_trials(axes: Axes, summaries: Mapping[str, Mapping[str, Summary]]) -> None:
    style_axes(axes)
    for row, of in enumerate(summaries.values()):
        for place, (name, one) in enumerate(of.items()):
            colour, mark = SHOWN[name]
            y = row + 0.12 * (place - (len(of) - 1) / 2)
            axes.plot([one.trials.low, one.trials.high], [y, y], color=colour, linewidth=1.6)
            axes.plot(one.trials.value, y, color=colour, marker=mark, markersize=6, linestyle="none", label=name)
    axes.set_yticks(range(len(summaries)), list(summaries))
    axes.set_ylim(len(summaries) - 0.5, -0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("trials per cell until the best is found, mean and 95 % interval")
    axes.set_title("By family", loc="left", fontsize=11)
