"""The study's pictures. Each is three functions: `<name>_data` takes the data out of a `StudyState` (and the fitted
law), `draw_<name>` draws it, `read_<name>` says in a sentence what it shows.

Import this package late: matplotlib is slow to load.
"""

from search.figures.fronts import ParetoFronts, draw_pareto_fronts, pareto_fronts_data, read_pareto_fronts
from search.figures.isocompute import IsoComputeCurves, draw_iso_compute, iso_compute_data, read_iso_compute
from search.figures.loss import LossVsCompute, draw_loss_vs_compute, loss_vs_compute_data, read_loss_vs_compute
from search.figures.optima import RatesVsEpochs, draw_rates_vs_epochs, rates_vs_epochs_data, read_rates_vs_epochs
from search.figures.progress import (
    SearchProgress,
    draw_search_progress,
    read_search_progress,
    search_progress_data,
)
from search.figures.residuals import LawResiduals, draw_law_residuals, law_residuals_data, read_law_residuals
from search.figures.trials import Point
from search.figures.valley import (
    LearningRateValleys,
    Valley,
    draw_learning_rate_valley,
    learning_rate_valley_data,
    read_learning_rate_valley,
)

__all__ = [
    "IsoComputeCurves",
    "LawResiduals",
    "LearningRateValleys",
    "LossVsCompute",
    "ParetoFronts",
    "Point",
    "RatesVsEpochs",
    "SearchProgress",
    "Valley",
    "draw_iso_compute",
    "draw_law_residuals",
    "draw_learning_rate_valley",
    "draw_loss_vs_compute",
    "draw_pareto_fronts",
    "draw_rates_vs_epochs",
    "draw_search_progress",
    "iso_compute_data",
    "law_residuals_data",
    "learning_rate_valley_data",
    "loss_vs_compute_data",
    "pareto_fronts_data",
    "rates_vs_epochs_data",
    "read_iso_compute",
    "read_law_residuals",
    "read_learning_rate_valley",
    "read_loss_vs_compute",
    "read_pareto_fronts",
    "read_rates_vs_epochs",
    "read_search_progress",
    "search_progress_data",
]
