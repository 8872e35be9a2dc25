"""Loss surfaces to try samplers on, at no cost: drawn about the paper's facts, or against what the samplers assume.

A surface is a made-up study: its budgets, what each of them buys, a learning-rate grid, and the held-out loss of every
point. The loss of a cell is a law in model size and images seen,

    L(N, D) = E + A N^-alpha + B D^-beta                                     (Hoffmann et al. 2022, equation 2)

and about the cell's best learning rate it rises as exp(k u^2), u the distance in factors of two and k steeper above
than below; beyond an edge above, training diverges. `paper_like` draws all of that about what arXiv 2310.16764 found;
`snapped` moves the epochs to its grid. Each family of `HOSTILE` breaks one assumption; `search.recorded` has real runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final, Literal

from search.space import CellSize, Space

Family = Callable[[int], "Surface"]
Observed = tuple[Literal["finished", "diverged"], float]

PAPER_SIZES: Final = (  # parameters and multiply-accumulates of an image at 224 px: models/nfnet.py, 1000 classes
    ("F0", 71_490_000, 9.49e9),
    ("F1", 132_630_000, 17.44e9),
    ("F3", 254_920_000, 33.34e9),
    ("F3+", 423_350_000, 51.50e9),
    ("F7", 499_500_000, 65.14e9),
    ("F7+", 829_480_000, 100.52e9),
)
IMAGES: Final = 4e9  # of an epoch: JFT-4B
CLASSES: Final = 30_000
EPOCHS: Final = (0.25, 8.0)
EPOCH_GRID: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Surface:
    """A study whose losses are known: what its trials would give, without training them.

    Attributes:
        name: the family and the number of the draw, such as "paper-like 7".
        family: which kind it is of.
        budgets: training FLOPs, rising; what one trial takes, but for `trial_flops`.
        cells: of each budget, the variants that it buys.
        learning_rates: the grid, rising.
        losses: of each budget, of each cell, the held-out loss at each learning rate without the noise of a run (nats
            per image); infinite where training diverges.
        noise: relative standard deviation of a run's loss about that.
        batch_size: images of a step.
        classes: outputs of the classifier; their logarithm is the loss of a uniform guess.
        runs: of each recorded seed, what its runs gave, in the order of `losses`; empty where runs are made up from
            `losses` and `noise`.
        trial_flops: of each budget, of each cell, training FLOPs of one trial; empty where that is the budget.
    """

    name: str
    family: str
    budgets: tuple[float, ...]
    cells: tuple[tuple[CellSize, ...], ...]
    learning_rates: tuple[float, ...]
    losses: tuple[tuple[tuple[float, ...], ...], ...]
    noise: float
    batch_size: int
    classes: int
    runs: tuple[tuple[tuple[tuple[Observed, ...], ...], ...], ...] = ()
    trial_flops: tuple[tuple[float, ...], ...] = ()

    @property
    def worst_loss(self) -> float:
        """The loss of a uniform guess, in nats per image."""
        return math.log(self.classes)

    def space(self, budget: int) -> Space:
        """What the budget of that index is searched over."""
        return Space(self.cells[budget], self.learning_rates)

    def points(self, budget: int) -> int:
        """How many points that is."""
        return len(self.cells[budget]) * len(self.learning_rates)

    def flops(self, budget: int, variant: str) -> float:
        """Training FLOPs of one trial of that variant."""
        cell, _ = self._place(budget, variant, self.learning_rates[0])
        return self.trial_flops[budget][cell] if self.trial_flops else self.budgets[budget]

    def mean_flops(self, budget: int) -> float:
        """Training FLOPs of one trial, mean over the budget's cells."""
        return statistics.fmean(self.trial_flops[budget]) if self.trial_flops else self.budgets[budget]

    def _place(self, budget: int, variant: str, learning_rate: float) -> tuple[int, int]:
        cell = next(k for k, cell in enumerate(self.cells[budget]) if cell.variant == variant)
        rate = next(k for k, rate in enumerate(self.learning_rates) if math.isclose(rate, learning_rate))
        return cell, rate

    def true_loss(self, budget: int, variant: str, learning_rate: float) -> float:
        """The loss of a point of the grid without the noise of a run; infinite where it diverges."""
        cell, rate = self._place(budget, variant, learning_rate)
        return self.losses[budget][cell][rate]

    def observed(self, budget: int, variant: str, learning_rate: float, seed: int) -> Observed:
        """How a run of a point ends, and its loss (infinite if it diverges): the same for the same seed, always."""
        cell, rate = self._place(budget, variant, learning_rate)
        if self.runs:
            return self.runs[seed % len(self.runs)][budget][cell][rate]
        loss = self.losses[budget][cell][rate]
        if math.isinf(loss):
            return "diverged", loss
        draw = Random(f"{self.name}/{budget}/{variant}/{rate}/{seed}").gauss(0, 1)
        return "finished", min(loss * math.exp(self.noise * draw), self.worst_loss)

    def optimum(self, budget: int) -> tuple[str, float, float]:
        """Variant, learning rate and true loss of the grid's best point."""
        best = min(
            (loss, cell, rate) for cell, losses in enumerate(self.losses[budget]) for rate, loss in enumerate(losses)
        )
        return self.cells[budget][best[1]].variant, self.learning_rates[best[2]], best[0]

    def best_rate(self, budget: int, variant: str) -> float:
        """The grid's best learning rate of one variant."""
        cell, _ = self._place(budget, variant, self.learning_rates[0])
        losses = self.losses[budget][cell]
        return self.learning_rates[losses.index(min(losses))]


@dataclass(frozen=True, slots=True)
class Valley:
    """How the loss of one cell depends on its learning rate.

    `centre` is the binary logarithm of the best rate; `below` and `above` are k of exp(k u^2), u in factors of two;
    beyond `edge` factors of two above the centre training diverges. `second` is another valley: where (in factors of
    two from the first), and how much higher its floor is (relative).
    """

    centre: float
    below: float
    above: float
    edge: float
    second: tuple[float, float] | None = None

    def rise(self, learning_rate: float) -> float:
        """Logarithm of the loss over that of the best rate; infinite where training diverges."""
        u = math.log2(learning_rate) - self.centre
        if u > self.edge:
            return math.inf
        rise = self._k(u) * u * u
        if self.second is not None:
            v = u - self.second[0]
            rise = min(rise, self.second[1] + self._k(v) * v * v)
        return rise

    def _k(self, u: float) -> float:
        return self.below if u < 0 else self.above


@dataclass(frozen=True, slots=True)
class _Law:
    """L(N, D) of a surface, and how far each variant is off it (a factor)."""

    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float
    quality: Mapping[str, float]

    def loss(self, cell: CellSize) -> float:
        images = cell.epochs * IMAGES
        reducible = self.a * math.pow(cell.parameters, -self.alpha) + self.b * math.pow(images, -self.beta)
        return self.quality[cell.variant] * (self.irreducible + reducible)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a family draws differently. Ranges are of uniform draws; lengths are in factors of two of the rate.

    `fall` is how far the best rate falls from the cheapest cell of the family to the dearest, a share of it by model
    size and the rest by epochs; `size_only` puts all of it on the size. `edge` is where training diverges, above the
    best rate. `scatter` is the standard deviation of a cell's best rate about the trend, `jump` the half width of a
    uniform one. `shift` moves the best rates off NFNet's rule, either way; `grid` says how many rates there are, and
    `own_grid` how often the grid moves along, as that of somebody who knows better. `curvature` is k below the best
    rate. `second` is whether there is another valley. `snapped` is whether epochs are those of `EPOCH_GRID` alone.
    """

    fall: tuple[float, float] = (1.0, 3.0)
    size_only: bool = False
    offset: tuple[float, float] = (-1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    own_grid: float = 0.0
    edge: tuple[float, float] = (2.0, 3.0)
    scatter: float = 0.15
    jump: float = 0.0
    curvature: tuple[float, float] = (0.01, 0.05)
    noise: tuple[float, float] = (0.002, 0.006)
    grid: tuple[int, ...] = (5, 5, 5, 6, 7, 8)
    second: bool = False
    alike: float = 0.0  # how often the variants do not differ either
    diverging_half: bool = False
    snapped: bool = False


def _between(random: Random, span: tuple[float, float]) -> float:
    return random.uniform(*span)


def _log_between(random: Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def _draw(family: str, seed: int, kind: _Kind) -> Surface:
    random = Random(f"{family}/{seed}")
    while True:  # until there is something to find in every budget
        surface = _drawn(f"{family} {seed}", family, random, kind)
        if all(any(math.isfinite(loss) for cell in here for loss in cell) for here in surface.losses):
            return surface


def _drawn(name: str, family: str, random: Random, kind: _Kind) -> Surface:
    budgets, cells = _budgets(random, snapped=kind.snapped)
    law = _law(random, budgets, cells, alike=random.random() < kind.alike)
    batch_size = random.choice((1024, 2048, 4096, 8192))
    rule = 0.1 * batch_size / 256
    shift = _between(random, kind.shift) * random.choice((-1, 1))
    extra = random.choice(kind.grid) - 5
    lowest = -3 - random.randint(0, extra)  # the default grid, rule / 8 to 2 x rule, with the rest below and above
    moved = round(shift) if random.random() < kind.own_grid else 0
    rates = tuple(float(f"{rule * 2.0 ** (lowest + moved + k):.12g}") for k in range(5 + extra))
    valleys = _valleys(random, kind, cells, math.log2(rule) + shift, rates)
    losses = tuple(
        tuple(
            tuple(_loss(law.loss(cell) * scatter, valley, rate) for rate in rates)
            for cell, valley, scatter in zip(here, there, (random.lognormvariate(0, 0.002) for _ in here), strict=True)
        )
        for here, there in zip(cells, valleys, strict=True)
    )
    noise = _between(random, kind.noise)
    flops = tuple(tuple(c.epochs * c.flops_per_image * IMAGES for c in here) for here in cells) if kind.snapped else ()
    return Surface(name, family, budgets, cells, rates, losses, noise, batch_size, CLASSES, trial_flops=flops)


def _loss(floor: float, valley: Valley, rate: float) -> float:
    rise = valley.rise(rate)
    return rise if math.isinf(rise) else min(floor * math.exp(rise), math.log(CLASSES))


def _budgets(random: Random, *, snapped: bool) -> tuple[tuple[float, ...], tuple[tuple[CellSize, ...], ...]]:
    """4 to 6 budgets, each 2 to 4 times the one before, that buy at least two of 3 to 6 variants."""
    while True:
        sizes = sorted(random.sample(PAPER_SIZES, random.randint(3, 6)), key=lambda size: size[2])
        ratio = _between(random, (2.0, 4.0))
        first = 6 * sizes[0][2] * IMAGES * _log_between(random, 0.25, 2.0)
        budgets = tuple(float(f"{first * ratio**k:.4g}") for k in range(random.randint(4, 6)))
        cells = tuple(tuple(_cells(sizes, budget, snapped=snapped)) for budget in budgets)
        if all(len(here) >= 2 for here in cells):
            return budgets, cells


def _cells(sizes: Sequence[tuple[str, int, float]], budget: float, *, snapped: bool) -> list[CellSize]:
    low, high = (EPOCHS[0] / math.sqrt(2), EPOCHS[1] * math.sqrt(2)) if snapped else EPOCHS  # as search.budgets has it
    every = [(variant, budget / (6 * macs * IMAGES), 6 * macs, parameters) for variant, parameters, macs in sizes]
    return [
        CellSize(variant, _snap(exact) if snapped else exact, flops, parameters)
        for variant, exact, flops, parameters in every
        if low <= exact <= high
    ]


def _snap(exact: float) -> float:
    return min(EPOCH_GRID, key=lambda entry: abs(math.log(entry / exact)))


def _law(random: Random, budgets: Sequence[float], cells: Sequence[Sequence[CellSize]], *, alike: bool) -> _Law:
    """A law by what the paper shows: the level, the slope against compute, and a best size within the family."""
    level = _between(random, (2.0, 3.5))
    slope = _between(random, (0.03, 0.07))  # -d log loss / d log compute; the paper's line: log(3.0 / 2.4) / log 100
    alpha = 0.02 if alike else _between(random, (0.25, 0.6))
    beta = 0.06 if alike else alpha * _between(random, (0.7, 1.4))  # alike: best size and epochs grow at like rates
    reducible = level * min(0.9, slope * (alpha + beta) / (alpha * beta))
    sizes = {cell.variant: cell for here in cells for cell in here}
    parameters = [cell.parameters for cell in sizes.values()]
    middle = math.sqrt(budgets[0] * budgets[-1])
    size = _log_between(random, 1.2 * min(parameters), max(parameters) / 1.2)  # the best one of the middle budget
    images = middle / (sum(cell.flops_per_image / cell.parameters for cell in sizes.values()) / len(sizes) * size)
    by_size = reducible * beta / (alpha + beta)  # at the best size the two slopes are the same
    return _Law(
        irreducible=level - reducible,
        a=by_size * size**alpha,
        alpha=alpha,
        b=(reducible - by_size) * images**beta,
        beta=beta,
        quality={variant: 1.0 if alike else random.lognormvariate(0, 0.007) for variant in sizes},
    )


def _valleys(
    random: Random, kind: _Kind, cells: Sequence[Sequence[CellSize]], rule: float, rates: Sequence[float]
) -> list[list[Valley]]:
    fall = _between(random, kind.fall)
    by_size = 1.0 if kind.size_only else _between(random, (0.2, 0.8))
    top = rule + _between(random, kind.offset)  # the best rate of F0 at the fewest epochs
    smallest, largest = PAPER_SIZES[0][1], PAPER_SIZES[-1][1]
    k, steeper = _between(random, kind.curvature), _between(random, (1.0, 2.0))
    edge = _between(random, kind.edge)
    second = random.choice((-1, 1)) * _between(random, (2.5, 3.5))

    def trend(cell: CellSize) -> float:
        size = math.log(cell.parameters / smallest) / math.log(largest / smallest)
        epochs = math.log(cell.epochs / EPOCHS[0]) / math.log(EPOCHS[1] / EPOCHS[0])
        return top - fall * (by_size * size + (1 - by_size) * epochs)

    if kind.diverging_half:  # the middle cell's edge is the middle of the grid
        every = sorted(trend(cell) for here in cells for cell in here)
        top += math.log2(rates[0]) + (len(rates) - 1) / 2 - edge - every[len(every) // 2]

    def valley(cell: CellSize) -> Valley:
        centre = trend(cell) + random.gauss(0, kind.scatter) + random.uniform(-kind.jump, kind.jump)
        own = k * random.lognormvariate(0, 0.25)
        other = (second, _between(random, (-0.01, 0.04))) if kind.second else None
        reach = max(edge, edge + second) if kind.second else edge
        return Valley(centre, own, own * steeper, reach + random.gauss(0, 0.15), other)

    return [[valley(cell) for cell in here] for here in cells]


def paper_like(seed: int) -> Surface:
    """A study as the paper's might have come out (arXiv 2310.16764), drawn anew for each seed.

    3 to 6 of its six variants, with their parameters and FLOPs at 224 px; 4 to 6 budgets, 2 to 4 times apart, each of
    which buys two variants or more within 0.25 to 8 epochs of 4e9 images. Loss falls with compute about as its Figure 2
    does (-d log loss / d log compute of 0.03 to 0.07; its line has 0.048), the best size grows with compute, and each
    variant is off the law by 0.7 % (standard deviation). The best learning rate of the smallest cell is NFNet's rule
    (1.6 at batch 4096) within a factor of 2, and falls by 1 to 3 factors of two from F0 at 0.25 epochs to F7+ at 8,
    with a scatter of 0.15 of one. A factor of two off costs 1 to 5 %, above the best up to twice that, and 2 to 3 above
    it training diverges. Runs differ by 0.2 to 0.6 %. Half of the grids are the default one, the rest wider.
    """
    return _draw("paper-like", seed, _Kind())


def snapped(seed: int) -> Surface:
    """As `paper_like`, with epochs moved to the paper's grid, as in studies/jft-paper.yaml: what a trial takes is up to
    1.4 times more or less than its budget, so up to twice what another cell's takes.
    """
    return _draw("paper-like, snapped", seed, _Kind(snapped=True))


def rising(seed: int) -> Surface:
    """The best learning rate rises with model size, where the paper's falls."""
    return _draw("rising", seed, _Kind(fall=(-3.0, -1.0), size_only=True, offset=(-3.0, -1.0)))


def two_valleys(seed: int) -> Surface:
    """Every cell has two valleys 2.5 to 3.5 factors of two apart; which is the deeper one differs from cell to cell."""
    return _draw("two valleys", seed, _Kind(second=True, fall=(0.5, 1.5), offset=(-2.0, 0.0), grid=(7, 8)))


def flat(seed: int) -> Surface:
    """The learning rate hardly matters; in half of the surfaces the variant does not either."""
    return _draw("flat", seed, _Kind(curvature=(0.0002, 0.002), alike=0.5))


def noisy(seed: int) -> Surface:
    """Runs of one point differ by 2 to 4 %: as much as neighbouring points do."""
    return _draw("noisy", seed, _Kind(noise=(0.02, 0.04)))


def off_prior(seed: int) -> Surface:
    """The best rates lie 3 to 4 factors of two off NFNet's rule; half of the grids are laid about them all the same."""
    return _draw("off prior", seed, _Kind(shift=(3.0, 4.0), own_grid=0.5, grid=(6, 7, 8)))


def divergent_low(seed: int) -> Surface:
    """Training diverges from just above the best rate, so on about half of the grid."""
    return _draw("divergent low", seed, _Kind(edge=(0.3, 1.0), diverging_half=True, fall=(0.5, 1.5), grid=(6, 7, 8)))


def jumpy(seed: int) -> Surface:
    """Each cell has a best rate of its own, within 1.5 factors of two either way: there is no trend to follow."""
    return _draw("jumpy", seed, _Kind(fall=(0.0, 0.0), jump=1.5, offset=(-2.0, 0.0)))


PAPER: Final[Mapping[str, Family]] = MappingProxyType({"paper-like": paper_like, "paper-like, snapped": snapped})
"""The families like the paper's study, by name."""

HOSTILE: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "rising": rising,
        "two valleys": two_valleys,
        "flat": flat,
        "noisy": noisy,
        "off prior": off_prior,
        "divergent low": divergent_low,
        "jumpy": jumpy,
    }
)
"""The families that break what a sampler may have assumed, by name."""
