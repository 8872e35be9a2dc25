"""The sections of a study file: what each field means, what is allowed, and the paper's value where the paper has one.

"The paper" is "ConvNets Match Vision Transformers at Scale" (arXiv 2310.16764); what it does not say is taken from the
NFNet paper it builds on (arXiv 2102.06171), and where that is so the description says "NFNet".
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from search.space import DOUBT

MAX_LEARNING_RATES: Final = 100
MAX_BATCH_SIZE: Final = 2**20

Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=1e-8, le=1e4)]
EpochCount = Annotated[float, Field(ge=1e-6, le=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SecondObjective = Literal["core_hours", "inference_flops", "memory", "parameters"]


class Section(BaseModel):
    """A part of a study file: frozen, unknown keys refused, no NaN or infinity, `true` never taken for 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("allowed: a value, not true or false; write the value itself")
        return value


class Model(Section):
    """Which family is searched, and its size at full depth."""

    family: str = Field(default="nfnet", description="The family of models.")
    variants: tuple[str, ...] = Field(
        default=("F0", "F1", "F3", "F3+", "F7", "F7+"),
        min_length=1,
        description="The variants (depths) to search; default: the paper's six. "
        "May change while a study goes on: trials of one that is taken out stay in its results.",
    )
    width: float = Field(
        default=1.0,
        gt=0,
        le=16,
        description="Multiplies every stage's channels; 1 is the paper's, small images need less.",
    )
    group_size: int = Field(
        default=128, ge=1, le=2**16, description="Channels per group of the grouped convolutions; paper: 128."
    )
    stem: Literal["paper", "small"] = Field(
        default="paper",
        description="paper: four 3x3 convolutions, stride 4 in all; small: one of stride 1, for images up to about 64.",
    )
    drop_rate: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the classifier.")
    drop_path_rate: float = Field(default=0.0, ge=0, lt=1, description="Stochastic depth at the last block.")


class Epochs(Section):
    """How many passes over the data a trial may make: any number in a range, or the entries of a grid."""

    min: EpochCount = Field(
        default=0.25, description="Fewest epochs of a range; a cell that buys fewer is left out. Paper: 0.25."
    )
    max: EpochCount = Field(
        default=8.0, description="Most epochs of a range; a cell that buys more is left out. Paper: 8."
    )
    grid: tuple[EpochCount, ...] | None = Field(
        default=None,
        min_length=1,
        description="Instead of a range: what a budget buys is moved to the nearest entry (of the logarithm), "
        "so budgets are met less exactly. Paper: [0.25, 0.5, 1, 2, 4, 8].",
    )

    @property
    def span(self) -> tuple[float, float]:
        """Fewest and most epochs, of the range or of the grid."""
        return (self.min, self.max) if self.grid is None else (self.grid[0], self.grid[-1])

    @model_validator(mode="after")
    def _a_range_or_a_grid(self) -> Self:
        if self.grid is None:
            if self.max < self.min:
                raise ValueError(
                    f"max: {self.max:g} given; allowed: min ({self.min:g}) or more; raise max or lower min"
                )
            return self
        if self.model_fields_set & {"min", "max"}:
            raise ValueError("grid: given together with min or max; allowed: a range or a grid; remove one of them")
        if any(low >= high for low, high in zip(self.grid, self.grid[1:], strict=False)):
            raise ValueError(f"grid: {list(self.grid)} given; allowed: rising numbers, none twice; sort them")
        return self


class LearningRate(Section):
    """The grid of peak learning rates: base x factor^k for every whole k that stays between min and max."""

    base: Rate | None = Field(
        default=None,
        description="A peak learning rate of the grid. null: NFNet's rule, 0.1 x batch size / 256 (1.6 at 4096).",
    )
    factor: float = Field(default=2.0, gt=1, le=1e4, description="Ratio of neighbouring rates. Paper: 2.")
    min: Rate | None = Field(
        default=None,
        description="Lowest rate. null: base / 8; the paper's best rates are base / 4, base / 2 and base, "
        "and a best rate can only be told with worse ones on both sides.",
    )
    max: Rate | None = Field(default=None, description="Highest rate. null: 2 x base, by the same reasoning.")

    def base_rate(self, batch_size: int) -> float:
        """The rate the grid is laid through: `base`, or NFNet's rule."""
        return self.base if self.base is not None else 0.1 * batch_size / 256

    def rates(self, batch_size: int) -> tuple[float, ...]:
        """The grid, rising.

        Raises:
            ValueError: an empty grid, or one of more than `MAX_LEARNING_RATES` rates, in one line.
        """
        base = self.base_rate(batch_size)
        low, high = self.min if self.min is not None else base / 8, self.max if self.max is not None else base * 2
        slack = 1e-9
        first = math.ceil(math.log(low / base, self.factor) - slack)
        last = math.floor(math.log(high / base, self.factor) + slack)
        if last < first:
            raise ValueError(
                f"min {low:g} and max {high:g} given; allowed: bounds around some {base:g} x {self.factor:g}^k; "
                "move the bounds or the base"
            )
        if last - first >= MAX_LEARNING_RATES:
            raise ValueError(
                f"factor {self.factor:g} from {low:g} to {high:g} gives {last - first + 1} rates; "
                f"allowed: {MAX_LEARNING_RATES} or fewer; raise factor (paper: 2)"
            )
        return tuple(float(f"{base * self.factor**k:.12g}") for k in range(first, last + 1))


class Search(Section):
    """How trials are proposed within a budget."""

    sampler: Literal["trend", "tpe", "gp", "random", "grid"] = Field(
        default="trend",
        description="trend (follows the best learning rate from budget to budget, and ends a budget that is decided), "
        "tpe, gp (Gaussian process), random, or grid (every variant at every learning rate).",
    )
    trials: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Trials of each budget; of sampler trend at most. null: all for grid, at most three for each "
        "variant the budget buys for trend (about 1.3 are needed), else two, which the paper finds enough to tune the "
        "learning rate. No combination of variant and rate is run twice.",
    )
    doubt: float = Field(
        default=DOUBT,
        ge=0,
        le=0.5,
        description="Sampler trend ends a budget when the chance that a better trial is left (by 1 % of loss), or that "
        "the best rate lies more than a grid step off, is no more than this; 0: after its trials.",
    )
    seeds: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Runs, each with a seed of its own (from training.seed on), of each budget's best points: of every "
        "variant within 2 % of the best loss. Of n variants at most n + 1 times the further seeds are run: the first "
        "best may have been lucky. The law takes the noise of its points from them.",
    )
    second_objective: SecondObjective | None = Field(
        default=None,
        description="Something to keep low beside the loss: core_hours (of training, as metered), inference_flops (of "
        "one image), memory (of a worker in training, as plan estimates it) or parameters. Each budget is searched "
        "for the Pareto front of the two.",
    )
    seed: Seed = Field(default=0, description="Seed of the sampler.")


class Warmup(Section):
    """How long the learning rate rises from zero, as exactly one of three measures."""

    epochs: float | None = Field(
        default=None, ge=0, le=1e6, description="Passes over the data. NFNet on ImageNet: 5 (of 360)."
    )
    steps: int | None = Field(default=None, ge=0, le=10**12, description="Optimiser steps.")
    fraction: float | None = Field(default=None, ge=0, lt=1, description="Share of the trial's steps.")

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        given = [name for name in ("epochs", "steps", "fraction") if getattr(self, name) is not None]
        if len(given) != 1:
            shown = " and ".join(given) if given else "nothing"
            raise ValueError(
                f"{shown} given; allowed: exactly one of epochs, steps, fraction; such as {{fraction: 0.05}}"
            )
        return self

    def in_steps(self, *, steps: int, batch_size: int, train_examples: int) -> int:
        """Warm-up steps of a trial of `steps` steps; may exceed `steps` where epochs or steps were asked for."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return round(self.epochs * train_examples / batch_size)
        return round((self.fraction or 0.0) * steps)


class Divergence(Section):
    """When a trial is ended because it will not recover; a loss that is not finite always ends it."""

    factor: float = Field(
        default=2.0, gt=1, le=1e6, description="How many times the loss of a uniform guess counts as hopeless."
    )
    patience: int = Field(default=50, ge=1, le=10**9, description="For how many steps on end.")


class Checkpoint(Section):
    """How often a trial's state is saved, and how many states are kept; the end of a trial is always saved."""

    every_s: Positive | None = Field(default=60.0, description="Seconds between checkpoints; null: not by time.")
    every_steps: int | None = Field(default=None, ge=1, le=10**12, description="Steps between checkpoints; or null.")
    keep: int = Field(default=2, ge=1, le=1000, description="Checkpoints kept of each trial.")


class Training(Section):
    """How every trial trains: SGD with Nesterov momentum and adaptive gradient clipping, cosine decay to zero."""

    batch_size: int = Field(
        default=4096,
        ge=1,
        le=MAX_BATCH_SIZE,
        description="Examples of one optimiser step, over all workers. Paper: 4096.",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BATCH_SIZE,
        description="Examples that a worker passes through the model at once; a larger batch is taken in parts, "
        "with the same gradient, to save memory; null: all at once.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum. Paper: 0.9.")
    weight_decay: float = Field(
        default=2e-5, ge=0, le=1, description="On weights, not on gains and biases. Paper: 2e-5."
    )
    agc_clip: float | None = Field(
        default=0.01,
        ge=1e-6,
        le=1e3,
        description="Adaptive gradient clipping: largest gradient as a share of its weights; null: off. Paper: 0.01.",
    )
    agc_eps: float = Field(
        default=1e-3, ge=1e-12, le=1, description="Smallest norm of weights that clipping reckons with. Paper: 1e-3."
    )
    warmup: Warmup = Field(
        default_factory=lambda: Warmup(fraction=0.05),
        description="Linear warm-up before the cosine decay: {epochs: n}, {steps: n} or {fraction: x}. The paper does "
        "not give it, and NFNet's 5 epochs are more than its shortest trials have: default 5 % of the steps.",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="NFNet: 0.1. The held-out loss has none.")
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Moving average of the weights, measured beside them; null: none. NFNet: 0.99999.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="Activations; weights stay float32. Paper: bfloat16. Not every CPU has it.",
    )
    seed: Seed = Field(default=0, description="Seed of initial weights, order of examples and augmentation.")
    eval_batch_size: int = Field(default=256, ge=1, le=MAX_BATCH_SIZE, description="Held-out batch over all workers.")
    divergence: Divergence = Field(default_factory=Divergence, description="When a trial counts as diverged.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="How often trials are saved.")
    log_points: int = Field(default=40, ge=1, le=10_000, description="Points of each trial's training curve.")


class Published(Section):
    """What others report of the same training, for plan to compare with."""

    variant: str = Field(description="A variant of the family.")
    epochs: EpochCount = Field(description="Passes over the data.")
    core_hours: float = Field(gt=0, le=1e60, description="TPU-v4 core-hours of that training, as published.")
    source: str = Field(min_length=1, description="Where that is published, and how it was come by.")


class Tracking(Section):
    """The MLflow view of the study."""

    enabled: bool = Field(default=True, description="Whether MLflow is fed at all.")
    uri: str | None = Field(
        default=None,
        min_length=1,
        description="MLflow's tracking address; null: an SQLite database, mlflow.db in the storage.",
    )
