"""All of a study's figures, each with its file's name, a heading, what it shows in general, and what it says here."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.figures.fronts import draw_pareto_fronts, pareto_fronts_data, read_pareto_fronts
from search.figures.isocompute import draw_iso_compute, iso_compute_data, read_iso_compute
from search.figures.loss import draw_loss_vs_compute, loss_vs_compute_data, read_loss_vs_compute
from search.figures.marks import Target
from search.figures.optima import draw_rates_vs_epochs, rates_vs_epochs_data, read_rates_vs_epochs
from search.figures.progress import draw_search_progress, read_search_progress, search_progress_data
from search.figures.residuals import draw_law_residuals, law_residuals_data, read_law_residuals
from search.figures.valley import draw_learning_rate_valley, learning_rate_valley_data, read_learning_rate_valley
from search.law import Law
from search.state import StudyState


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a PNG of `width` x `height` pixels, named as its file; `shows` says what is drawn, `reading` what the
    data say by it, in a sentence, and `empty` that there are none yet.
    """

    name: str
    heading: str
    shows: str
    reading: str
    empty: bool
    png: bytes

    @property
    def width(self) -> int:
        return int.from_bytes(self.png[16:20], "big")  # of the PNG's first chunk

    @property
    def height(self) -> int:
        return int.from_bytes(self.png[20:24], "big")


def _png(draw: Callable[[Target], None]) -> bytes:
    file = io.BytesIO()
    draw(file)
    return file.getvalue()


def album(state: StudyState, law: Law | None, forecasts: Sequence[float] = ()) -> list[Picture]:
    """Every figure of a study, drawn. `forecasts` are budgets in FLOPs that the law's figure reaches out to; `law` is
    None where nothing has finished.
    """
    loss = loss_vs_compute_data(state, law, forecasts)
    rates = rates_vs_epochs_data(state, law)
    valley = learning_rate_valley_data(state)
    curves = iso_compute_data(state, law)
    residuals = law_residuals_data(state, law)
    progress = search_progress_data(state)
    fronts = pareto_fronts_data(state)
    of_fronts = Picture(
        "pareto_front",
        "Loss against cost",
        "A step line per budget: for every cost, the lowest loss of the variants that cost no more.",
        read_pareto_fronts(fronts),
        not fronts.fronts,
        _png(lambda target: draw_pareto_fronts(fronts, target)),
    )
    return [
        Picture(
            "loss_vs_compute",
            "Held-out loss against compute",
            "Dots are trials, solid markers the best learning rate of a variant at a budget (mean over seeds), rings "
            "the best of all. The law is averaged over the floors that the data allow.",
            read_loss_vs_compute(loss),
            not loss.finished,
            _png(lambda target: draw_loss_vs_compute(loss, target)),
        ),
        Picture(
            "optimal_learning_rate",
            "The best learning rate by epochs",
            "A line per variant: the optimum between the rates tried, an arrow where the best one is at an edge; a "
            "faint square where only one was tried.",
            read_rates_vs_epochs(rates),
            not rates.optima,
            _png(lambda target: draw_rates_vs_epochs(rates, target)),
        ),
        Picture(
            "iso_compute",
            "Loss by model size, per budget",
            "A curve per budget; dots are the best trials of each variant, diamonds the minima of the parabolas, which "
            "are fitted to losses moved to the budget's FLOPs and, where a rate is off, to the best learning rate.",
            read_iso_compute(curves),
            not curves.curves,
            _png(lambda target: draw_iso_compute(curves, target)),
        ),
        Picture(
            "learning_rate_valley",
            "Learning-rate valleys",
            "A panel per budget, a line per variant, all on one loss axis; the ring is the best trial of the budget.",
            read_learning_rate_valley(valley),
            not any(one.finished for one in valley.valleys),
            _png(lambda target: draw_learning_rate_valley(valley, target)),
        ),
        Picture(
            "law_residuals",
            "What the law leaves over",
            "How far losses lie above or below the law: the best of each budget, and below it the cells compared.",
            read_law_residuals(residuals),
            not (residuals.frontier or residuals.cells),
            _png(lambda target: draw_law_residuals(residuals, target)),
        ),
        Picture(
            "search_progress",
            "How the search went",
            "The lowest loss so far of each budget, against its trials and against the core-hours they took.",
            read_search_progress(progress),
            not any(one.found for one in progress.budgets),
            _png(lambda target: draw_search_progress(progress, target)),
        ),
        *([of_fronts] if fronts.objective else []),
    ]
