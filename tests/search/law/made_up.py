"""Runs that follow a known law, as tables and as a study's ledger; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.budgets import Budget, open_budgets
from search.law import Run, RunTable
from search.ledger import Ledger
from search.study import Study, read_study
from tests.search.ledgers import TRAIN_EXAMPLES, meter

STUDY = """
name: digits
data: {source: digits, image_size: 8}
model: {variants: [F0, F1, F3], width: 0.0625, group_size: 8, stem: small}
budgets: [1e10 FLOPs, 2e10 FLOPs, 4e10 FLOPs, 8e10 FLOPs, 1.6e11 FLOPs]
epochs: {min: 0.25, max: 64}
learning_rate: {base: 0.8, factor: 2, min: 0.1, max: 3.2}
training: {batch_size: 64, precision: float32}
compute: {device: cpu, slices: 2, cores_per_slice: 1}
tracking: {enabled: false}
"""


@dataclass(frozen=True)
class TrueLaw:
    """L(N, D) = floor + size_part N^-alpha + examples_part D^-beta about the references, times a valley in the rate."""

    floor: float = 0.1
    size_part: float = 0.3
    alpha: float = 0.5
    examples_part: float = 0.5
    beta: float = 0.4
    parameters: float = 1e5
    examples: float = 1e4
    rate: float = 0.6
    rate_by_size: float = 0.2
    rate_by_duration: float = 0.15
    bend: float = 0.05
    noise: float = 0.005

    def loss(self, parameters: float, examples: float) -> float:
        return (
            self.floor
            + self.size_part * (parameters / self.parameters) ** -self.alpha
            + self.examples_part * (examples / self.examples) ** -self.beta
        )

    def best_rate(self, parameters: float, examples: float) -> float:
        by_size = (parameters / self.parameters) ** -self.rate_by_size
        return self.rate * by_size * (examples / self.examples) ** -self.rate_by_duration

    @property
    def size_exponent(self) -> float:
        """a of N_opt ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    def best_parameters(self, pairs: float) -> float:
        """The best size where size times examples is `pairs`."""
        ratio = self.alpha * self.size_part / (self.beta * self.examples_part)
        around = pairs / self.parameters / self.examples
        return self.parameters * (ratio * around**self.beta) ** (1 / (self.alpha + self.beta))


TRUE = TrueLaw()


def table(
    budgets: Sequence[float],
    sizes: Sequence[float],
    *,
    rates: Sequence[float] = (0.15, 0.3, 0.6, 1.2, 2.4),
    seeds: int = 1,
    law: TrueLaw = TRUE,
    flops_per_pair: float = 150.0,
    seed: int = 0,
) -> RunTable:
    """Every size at every rate and seed in every budget."""
    rng = np.random.default_rng(seed)
    runs = []
    for flops in budgets:
        for parameters in sizes:
            examples = flops / flops_per_pair / parameters
            for rate in rates:
                off = math.log2(rate / law.best_rate(parameters, examples))
                for number in range(seeds):
                    noise = math.exp(law.bend * off**2 + law.noise * rng.standard_normal())
                    loss = law.loss(parameters, examples) * noise
                    runs.append(Run(flops, loss, parameters, examples, rate, f"{parameters:.3g}", seed=number))
    return RunTable("made up", tuple(runs))


def study(text: str = STUDY, *, storage: str = "runs") -> Study:
    return read_study(f"{text}storage: {storage}\n", source="digits.yaml")


def budgets_of(made: Study) -> list[Budget]:
    return open_budgets(made, TRAIN_EXAMPLES, 10)[0]


def searched(made: Study, folder: str, *, budgets: int = 4, law: TrueLaw = TRUE, seed: int = 0) -> None:
    """Write the ledger of a search of the first few budgets: every variant at every rate."""
    rng = np.random.default_rng(seed)
    with Ledger(folder) as ledger:
        ledger.append("study_opened", study=made.name, run="run-1", study_file="", study_path="digits.yaml",
                      code_version="0.1.0", identity=made.identity(), classes=10, train_examples=TRAIN_EXAMPLES,
                      heldout_examples=360, device="cpu")  # fmt: skip
        ledger.append("session_started", host="host", pid=1, slices=2, cores_per_slice=1, device="cpu")
        for budget in budgets_of(made)[:budgets]:
            cells = [
                {name: getattr(cell, name) for name in ("variant", "epochs", "steps", "flops_per_image", "parameters")}
                for cell in budget.cells
            ]
            ledger.append("budget_opened", budget=budget.label, index=budget.index, flops=budget.flops,
                          trials=len(cells) * len(made.learning_rates), cells=cells)  # fmt: skip
            for cell in budget.cells:
                examples = cell.epochs * TRAIN_EXAMPLES
                for rate in made.learning_rates:
                    name = f"{budget.slug}-{cell.variant}-{rate:g}"
                    ledger.append("trial_suggested", trial=name, budget=budget.label, variant=cell.variant,
                                  epochs=cell.epochs, steps=cell.steps, learning_rate=rate, seed=0, flops=cell.flops,
                                  parameters=cell.parameters, params={}, batch_size=64)  # fmt: skip
                    off = math.log2(rate / law.best_rate(cell.parameters, examples))
                    noise = math.exp(law.bend * off**2 + law.noise * rng.standard_normal())
                    loss = law.loss(cell.parameters, examples) * noise
                    spent = meter(cell.flops, cell.steps * 64, cell.flops / 4.5e9)
                    result = {"heldout_loss": loss, "heldout_accuracy": 0.5, "step": cell.steps, "meter": spent}
                    ledger.append("trial_ended", trial=name, outcome="finished", result=result)
            ledger.append("budget_closed", budget=budget.label, best=None)
