"""Law: how long it takes to fit everything, intervals included, to 10,000 runs.

(a) `search.law.fit_law` on a grid of sizes, budgets and learning rates, and on a cloud in which no two runs share their
    FLOPs: all forms of the law together, each with 1,000 resamples.
(b) Its peer, as scaling laws are published: the log-sum-exp form of L(N, D) under a Huber loss, minimised by L-BFGS
    (scipy.optimize.minimize, with exact gradients) on each bootstrap sample of the same cells (Hoffmann et al. 2022,
    arXiv 2203.15556, section 3.3; Besiroglu et al. 2024, arXiv 2404.10102). It fits L(N, D) and nothing else, from a
    single place to start at, the true law, where the paper starts at 4,500.

    python -m benchmarks.law [--quick] [--report FILE]
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import softmax

from benchmarks.report import Report, arguments
from search.law import Law, Refused, Run, RunTable, Surface, fit_law

TARGET_S: Final = 60.0
RESAMPLES: Final = 1000
FLOOR, SIZE_PART, ALPHA, EXAMPLES_PART, BETA = 1.2, 300.0, 0.35, 400.0, 0.30
RATES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
_HUBER: Final = 1e-3

FloatArray = NDArray[np.float64]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    report = Report("Law: fitting 10,000 runs with intervals")
    count, resamples, samples = (1000, 200, 2) if options.quick else (10_000, RESAMPLES, 5)
    table = Table(
        "runs", "cells", "ours, all forms (s)", "peer, L(N, D) alone (s)", "ours is faster by", title="Law and peer"
    )
    ours_s = []
    for name, runs in (("grid", grid(count)), ("cloud", cloud(count))):
        started = time.perf_counter()
        law = fit_law(runs, bootstraps=resamples, leave_out=1)
        ours = time.perf_counter() - started
        ours_s.append(ours)
        each = peer_seconds(law, samples)
        peer = statistics.median(each) * resamples
        cells = len(law.cells)
        table.add_row(f"{name} of {count:,}", f"{cells:,}", f"{ours:.1f}", f"~{peer:,.0f}", f"~{peer / ours:.0f} x")
        report.say(
            f"{name}: {_recovered(law)}; the peer's samples took {', '.join(f'{one:.2f}' for one in each)} s each"
        )
    report.show(table)
    met = "met" if max(ours_s) < TARGET_S else "missed"
    report.say(
        f"Measured: ours, once each, {resamples:,} resamples, from the runs in memory to the law (target under "
        f"{TARGET_S:.0f} s for 10,000 runs on two cores: {met}). Of the peer {samples} bootstrap samples were "
        f"measured; its total is their median times {resamples:,}, an estimate."
    )
    report.finish(options.report)


def loss(parameters: float, examples: float) -> float:
    """The law that the runs follow."""
    return FLOOR + SIZE_PART * math.pow(parameters, -ALPHA) + EXAMPLES_PART * math.pow(examples, -BETA)


def grid(count: int) -> RunTable:
    """Twenty budgets of twenty sizes at five learning rates, and as many seeds of each as there is room for."""
    rng = np.random.default_rng(0)
    budgets, sizes = np.geomspace(1e17, 1e21, 20), np.geomspace(1e7, 1e10, 20)
    runs = [
        _run(float(budgets[k % 20]), float(sizes[k // 20 % 20]), RATES[k // 400 % 5], k // 2000, rng)
        for k in range(count)
    ]
    return RunTable("grid", tuple(runs))


def cloud(count: int) -> RunTable:
    """Runs of any size and FLOPs, all at their best learning rate."""
    rng = np.random.default_rng(1)
    runs = [_run(10 ** rng.uniform(17, 21), 10 ** rng.uniform(7, 10), 0.4, 0, rng) for _ in range(count)]
    return RunTable("cloud", tuple(runs))


def _run(flops: float, parameters: float, rate: float, seed: int, rng: np.random.Generator) -> Run:
    examples = flops / 6 / parameters
    noise = math.exp(0.02 * math.log2(rate / 0.4) ** 2 + 0.01 * rng.standard_normal())
    return Run(flops, loss(parameters, examples) * noise, parameters, examples, rate, seed=seed)


def peer_seconds(law: Law, samples: int) -> list[float]:
    """Seconds that the peer takes for each of a few bootstrap samples of the law's cells."""
    size = np.log([float(cell.parameters or 0) for cell in law.cells])
    length = np.log([float(cell.examples or 0) for cell in law.cells])
    target = np.log([cell.loss for cell in law.cells])
    rng = np.random.default_rng(2)
    seconds = []
    for _ in range(samples):
        chosen = rng.integers(0, len(target), len(target))
        started = time.perf_counter()
        peer_fit(size[chosen], length[chosen], target[chosen])
        seconds.append(time.perf_counter() - started)
    return seconds


def peer_fit(size: FloatArray, length: FloatArray, target: FloatArray) -> FloatArray:
    """(ln A, ln B, ln E, alpha, beta) that minimise Huber(ln L - LSE(ln A - alpha ln N, ln B - beta ln D, ln E))."""

    def objective(place: FloatArray) -> tuple[float, FloatArray]:
        parts = np.stack([place[0] - place[3] * size, place[1] - place[4] * length, np.full_like(size, place[2])])
        most = parts.max(axis=0)
        residuals = most + np.log(np.exp(parts - most).sum(axis=0)) - target
        inner = np.abs(residuals) <= _HUBER
        value = np.where(inner, residuals**2 / 2, _HUBER * (np.abs(residuals) - _HUBER / 2)).sum()
        slope = np.clip(residuals, -_HUBER, _HUBER) * softmax(parts, axis=0)
        summed = slope.sum(axis=1)
        gradient = np.array([summed[0], summed[1], summed[2], -slope[0] @ size, -slope[1] @ length])
        return float(value), gradient

    start = np.array([math.log(SIZE_PART), math.log(EXAMPLES_PART), math.log(FLOOR), ALPHA, BETA])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 20_000})
    return np.asarray(found.x)


def _recovered(law: Law) -> str:
    surface = law.surface
    if isinstance(surface, Refused):
        return surface.reason
    assert isinstance(surface, Surface)
    alpha, beta = surface.size_exponent, surface.examples_exponent
    return (
        f"alpha {alpha.value:.4f} ({alpha.low:.4f} to {alpha.high:.4f}, true {ALPHA}), "
        f"beta {beta.value:.4f} ({beta.low:.4f} to {beta.high:.4f}, true {BETA})"
    )


if __name__ == "__main__":
    main()
