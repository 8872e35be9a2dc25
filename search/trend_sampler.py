"""`trend` as a sampler for anybody's Optuna study.

    cells = [CellSize("F0", epochs=4, flops_per_image=5.7e10, parameters=71_500_000), ...]
    sampler = TrendSampler(Space(cells, learning_rates=(0.2, 0.4, 0.8, 1.6)), batch_size=4096)
    study = optuna.create_study(sampler=sampler)

    def objective(trial):
        variant = trial.suggest_categorical("variant", ["F0", ...])
        learning_rate = trial.suggest_float("learning_rate", 0.2, 1.6, log=True)
        return train(variant, learning_rate)  # held-out loss; raise optuna.TrialPruned where training diverges

    study.optimize(objective, callbacks=[sampler.stop_when_decided])

and the next, larger budget's sampler is given `smaller=[explored(study, space)]`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.space import DOUBT, Explored, Space
from search.trend_choice import Choice, choose

_PROPOSED: Final = "trend:proposed"
_ONE_AT_A_TIME: Final = threading.Lock()  # threads of one study; not of the sampler, which may be pickled
_LOOKS: Final = 1000  # about a second, for another process to give way; it may have been killed before it could


@dataclass(frozen=True, slots=True)
class _Tried:
    variant: str
    learning_rate: float
    outcome: str | None
    heldout_loss: float
    number: int
    asked: bool  # whether a parameter of it is stored: it keeps its point


def explored(study: Study, space: Space, *, variant: str = "variant", learning_rate: str = "learning_rate") -> Explored:
    """What a study has found in a budget, for the sampler of a larger one.

    Complete trials finished, with their value as the held-out loss, which must be above zero; one whose value is
    infinite, and pruned ones, diverged. Raises `ValueError` for a study of several objectives or one that maximises.
    """
    return Explored(space, _trials(study, variant, learning_rate))


class TrendSampler(BaseSampler):
    """Proposes variant and learning rate of one budget's trials by the trend of the best learning rates.

    A study's parameters are `variant`, categorical over the space's variants in their order, and `learning_rate`, a
    float on a log scale whose range holds the grid; others are drawn at random. The study minimises a loss above zero.
    See `explored` for what counts as diverged. Proposals lie on the grid, and none comes twice until all have been, to
    whichever process; failed trials are not tried again.

    Args:
        space: the budget's cells and grid.
        smaller: smaller budgets to learn from, cheapest first.
        batch_size: examples of an optimiser step; the prior learning rate (1.6 at 4096) is in proportion to it.
        doubt: the chance of being wrong, by 1 % of loss or by more than a grid step, at which the budget is decided.
        seed: makes proposals reproducible.
        variant, learning_rate: the names of the parameters.
        worst_loss: that of a uniform guess, the logarithm of the classes; a trial that ends far above it has diverged.
    """

    def __init__(
        self,
        space: Space,
        *,
        smaller: Sequence[Explored] = (),
        batch_size: int = 4096,
        doubt: float = DOUBT,
        seed: int = 0,
        variant: str = "variant",
        learning_rate: str = "learning_rate",
        worst_loss: float = math.inf,
    ) -> None:
        for name, value, allowed, good in (
            ("space", space, "one with cells, and learning rates that rise", _is_searchable(space)),
            ("batch_size", batch_size, "1 or more", batch_size >= 1),
            ("doubt", doubt, "0 to 0.5", 0 <= doubt <= 0.5),
            ("seed", seed, "0 or more", seed is not None and seed >= 0),  # None is the default of Optuna's own
            ("worst_loss", worst_loss, "above 0", worst_loss > 0),
        ):
            if not good:
                raise ValueError(f"{name}: {value!r} given; allowed: {allowed}")
        self.space, self.smaller, self.batch_size, self.doubt, self.seed = space, smaller, batch_size, doubt, seed
        self._names, self.worst_loss = (variant, learning_rate), worst_loss
        self._others = RandomSampler(seed=seed)

    def choice(self, study: Study) -> Choice:
        """What it would try next, and how sure it is, as the study stands."""
        return self._choice(_trials(study, *self._names))

    def _choice(self, trials: Sequence[_Tried]) -> Choice:
        return choose(
            self.space, trials, self.smaller, batch_size=self.batch_size, seed=self.seed, worst_loss=self.worst_loss
        )

    def decided(self, study: Study) -> bool:
        """Whether the budget needs no further trial, and none is running that could change that."""
        choice = self.choice(study)
        return choice.decides(self.doubt) and not choice.waits

    def stop_when_decided(self, study: Study, trial: FrozenTrial) -> None:
        """A callback for `study.optimize`, which starts no further trial then."""
        if self.choice(study).decides(self.doubt):
            study.stop()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Both parameters, over the space."""
        variant, learning_rate = self._names
        rates = self.space.learning_rates
        return {
            variant: CategoricalDistribution(self.space.variants),
            learning_rate: FloatDistribution(rates[0], rates[-1], log=True),
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point; nothing once every point has been tried, so that Optuna draws at random."""
        params: dict[str, Any] = {}
        looks = 0
        with _ONE_AT_A_TIME:
            while True:
                others = _trials(study, *self._names, besides=trial.number)
                # Who looks after storing its point, and keeps none that another has, shares none, whatever others do.
                same = [other for other in others if [other.variant, other.learning_rate] == [*params.values()]]
                if params and not same:
                    return params
                looks += 1
                if same and looks < _LOOKS and all(other.number > trial.number and not other.asked for other in same):
                    continue  # the younger gives way once it looks
                point = self._choice(others).point
                if point is None:
                    return params
                params = dict(zip(self._names, (point.variant, point.learning_rate), strict=True))
                # A trial's parameters are stored one by one, as it asks for them: until then others are told by this.
                study._storage.set_trial_system_attr(trial._trial_id, _PROPOSED, params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Any other parameter, at random. Raises `ValueError` for one of the two whose range does not hold the grid."""
        if param_name in self._names and _PROPOSED in trial.system_attrs:
            wanted = self.infer_relative_search_space(study, trial)[param_name]
            raise ValueError(
                f"{param_name} was asked for as {param_distribution}; allowed: {wanted}, or more of a range"
            )
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Of the other parameters; proposals depend on the seed and on the trials alone."""
        self._others.reseed_rng()


def _is_searchable(space: Space) -> bool:
    rates = space.learning_rates
    return bool(space.cells and rates) and all(low < high for low, high in pairwise((0.0, *rates)))


def _trials(study: Study, variant: str, learning_rate: str, besides: int | None = None) -> list[_Tried]:
    """The study's trials with both parameters, or with a proposal of both, but for the one of that number."""
    if study.directions != [StudyDirection.MINIMIZE]:
        raise ValueError(
            f"the study has the directions {[direction.name for direction in study.directions]}; allowed: MINIMIZE, of "
            "one loss"
        )
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.number == besides:
            continue
        proposed = trial.system_attrs.get(_PROPOSED, {})
        params = {**proposed, **trial.params} if trial.state == TrialState.RUNNING else trial.params
        if variant in params and learning_rate in params:
            found.append(_tried(trial, params[variant], params[learning_rate]))
        elif trial.state == TrialState.COMPLETE and proposed:
            raise ValueError(
                f"trial {trial.number} has the parameters {', '.join(params) or 'none'}; allowed: {variant} and "
                f"{learning_rate}; ask for them by these names, or give theirs to TrendSampler"
            )
    return found


def _tried(trial: FrozenTrial, variant: str, learning_rate: float) -> _Tried:
    loss = trial.values[0] if trial.values else math.nan
    outcome: str | None
    match trial.state:
        case TrialState.COMPLETE:
            outcome = "diverged" if loss == math.inf else "finished"
        case TrialState.PRUNED:
            outcome = "diverged"
        case TrialState.FAIL:
            outcome = "failed"
        case _:
            outcome = None
    if outcome == "finished" and loss <= 0:
        raise ValueError(f"trial {trial.number} has the loss {loss:g}; allowed: above 0, for its logarithm is modelled")
    return _Tried(variant, learning_rate, outcome, loss, trial.number, bool(trial.params))
