"""The law: what finished runs say about the loss, size, epochs and learning rate of the next budget.

`fit_law` fits a `RunTable` (a study's trials by `runs_of_state`, anyone's CSV by `read_csv`) and gives a `Law`.
"""

from search.law.fit import HeldOut, HeldOutRow, Law, fit_law
from search.law.forms import LossForecast, Straightness
from search.law.grouping import BudgetRuns, Cell, Noise
from search.law.learning_rates import RateOptimum, RateTrend
from search.law.numbers import Estimate, LawError, Refused
from search.law.optimum import Allocation, AllocationRow, IsoCompute, IsoCurve, IsoMinimum
from search.law.power import Curve, PowerLaw
from search.law.runs import Run, RunTable, read_csv, runs_of_state
from search.law.surface import Surface
from search.law.valley import Tuning

__all__ = [
    "Allocation",
    "AllocationRow",
    "BudgetRuns",
    "Cell",
    "Curve",
    "Estimate",
    "HeldOut",
    "HeldOutRow",
    "IsoCompute",
    "IsoCurve",
    "IsoMinimum",
    "Law",
    "LawError",
    "LossForecast",
    "Noise",
    "PowerLaw",
    "RateOptimum",
    "RateTrend",
    "Refused",
    "Run",
    "RunTable",
    "Straightness",
    "Surface",
    "Tuning",
    "fit_law",
    "read_csv",
    "runs_of_state",
]
