"""How long one proposal takes in a search that has 10,000 finished trials, against Optuna's TPE with as many."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Final, get_args

import optuna
from rich.table import Table

from benchmarks.report import Report
from search.samplers import SamplerName, propose
from search.space import CellSize, Explored, Point, Space
from search.state import TrialState as Trial

FINISHED: Final = 10_000
TARGET_MS: Final = 50.0
_VARIANTS: Final = 10
_RATES: Final = 50
_BATCH_SIZE: Final = 4096
_CLASSES: Final = 1000


def history(finished: int = FINISHED) -> tuple[Space, list[Trial], list[Explored]]:
    """A budget that is half done and the smaller ones, all done: so many finished trials together.

    Ten variants at fifty rates each, a budget twice the one before.
    """
    random = Random(0)
    rates = tuple(0.01 * 1.2**k for k in range(_RATES))
    full = _VARIANTS * _RATES
    budgets = math.ceil(finished / full + 0.5)
    found: list[tuple[Space, list[Trial]]] = []
    for budget in range(budgets):
        space = Space(
            tuple(
                CellSize(f"F{k}", 8 * 2.0 ** (budget - budgets) * 2 ** (9 - k), 6e10 * 2**k, 7 * 10**7 * 2**k)
                for k in range(_VARIANTS)
            ),
            rates,
        )
        points = space.points()
        random.shuffle(points)
        left = finished - sum(len(others) for _, others in found)
        some = points[: full // 2] if budget == budgets - 1 else points[: max(0, left - full // 2)]
        found.append((space, [_trial(space, budget, point, random) for point in some]))
    assert sum(len(trials) for _, trials in found) == finished
    return *found[-1], [Explored(space, trials) for space, trials in found[:-1]]


def _trial(space: Space, budget: int, point: Point, random: Random) -> Trial:
    cell = space.cells[space.variants.index(point.variant)]
    distance = math.log2(point.learning_rate / 1.6)
    depth = space.variants.index(point.variant) - budget / 2
    loss = 3 * 0.97**budget * math.exp(0.02 * distance**2 + 0.01 * depth**2 + random.gauss(0, 0.004))
    return Trial(
        trial_id=f"{budget}-{point.variant}-{point.learning_rate:g}", budget=str(budget), variant=point.variant,
        epochs=cell.epochs, steps=1000, learning_rate=point.learning_rate, seed=0, flops=1e18 * 2.0**budget,
        parameters=cell.parameters, params=point.params, suggested_at=0.0, outcome="finished",
        result={"heldout_loss": loss},
    )  # fmt: skip


def _timed(propose_once: Callable[[int], object], rounds: int) -> list[float]:
    """Milliseconds of each round."""
    found: list[float] = []
    for number in range(rounds):
        begun = time.perf_counter()
        propose_once(number)
        found.append(1000 * (time.perf_counter() - begun))
    return found


def _stock(finished: int) -> Callable[[int], object]:
    """An Optuna study of its own with so many finished trials, asked for one more."""
    random = Random(0)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "variant": optuna.distributions.CategoricalDistribution(tuple(f"F{k}" for k in range(_VARIANTS))),
        "lr": optuna.distributions.IntDistribution(0, _RATES - 1),
    }
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={"variant": f"F{random.randrange(_VARIANTS)}", "lr": random.randrange(_RATES)},
                distributions=distributions,
                value=random.gauss(3, 0.1),
            )
            for _ in range(finished)
        ]
    )

    def ask(number: int) -> object:
        asked = study.ask()
        variant = asked.suggest_categorical("variant", tuple(f"F{k}" for k in range(_VARIANTS)))
        return variant, asked.suggest_int("lr", 0, _RATES - 1)

    return ask


def tell_proposals(report: Report, *, quick: bool = False) -> None:
    """Measure and print."""
    rounds = 3 if quick else 20
    space, trials, smaller = history()
    shown = Table("sampler", "ms per proposal, median", "lowest to highest", title_justify="left")
    shown.title = f"One proposal with {FINISHED:,} finished trials ({len(trials)} of them in the budget itself)"

    def row(name: str, times: list[float]) -> None:
        shown.add_row(name, f"{statistics.median(times):.1f}", f"{min(times):.1f} to {max(times):.1f}")

    for name in get_args(SamplerName):
        if name == "gp":
            continue  # minutes

        def once(number: int, name: SamplerName = name) -> object:
            return propose(
                name,
                space,
                trials,
                seed=number,
                worst_loss=math.log(_CLASSES),
                smaller=smaller,
                batch_size=_BATCH_SIZE,
            )

        row(name, _timed(once, rounds))
    row("stock tpe, a study with all of them", _timed(_stock(FINISHED), rounds))
    report.show(shown)
    report.say(
        f"Bar for trend: {TARGET_MS:g} ms. tpe and random look at the budget's own trials only; trend at all. The "
        "stock study keeps its trials in memory; ours are given them from the ledger's state each time."
    )
