"""SGD with Nesterov momentum and Adaptive Gradient Clipping, and an average of the weights.

The arithmetic is functions over lists of tensors, without a value read back and without a Python number that changes
from step to step (rates are 0-dim tensors), so that a tracing device sees the same program at every step. Sources:
Brock et al. 2021 (arXiv 2102.06171), section 4 and appendix; the gradient is clipped first, then decayed, then
averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from models.pointwise import PointwiseConv2d
from models.repeated import stacks_of
from trainables.config import OptimiserConfig


@dataclass(frozen=True, slots=True)
class Site:
    """Where a parameter stands: its full name, its owner, its name there, and whether the owner is the classifier.

    `ndim`: axes of one parameter, not counting the one along which those of repeated blocks are stacked.
    """

    name: str
    owner: nn.Module
    local_name: str
    parameter: Tensor
    ndim: int
    in_classifier: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """How the parameters that it matches are treated.

    `clip`: the norm AGC compares: one per output unit (over all axes but the first), one for the whole vector, or no
    clipping.
    """

    name: str
    matches: Callable[[Site], bool]
    clip: Literal["unit", "vector"] | None
    weight_decay: bool


def _is_kernel(site: Site) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, PointwiseConv2d)
    return isinstance(site.owner, kinds) and site.local_name == "weight"


def _is_vector(site: Site) -> bool:
    return site.ndim <= 1 or site.local_name == "gain"  # timm keeps a convolution's gains as [C, 1, 1, 1]


RULES: Final = (
    Rule("kernel", lambda site: _is_kernel(site) and not site.in_classifier, "unit", True),
    Rule("gain or bias", lambda site: _is_vector(site) and not site.in_classifier, "vector", False),
    Rule("classifier weight", lambda site: site.in_classifier and site.local_name == "weight", None, True),
    Rule("classifier bias", lambda site: site.in_classifier and site.local_name == "bias", None, False),
)


def assign_rules(model: nn.Module, rules: Sequence[Rule] = RULES) -> dict[str, Rule]:
    """The one rule of every trainable parameter of `model`, which must have timm's `get_classifier()`.

    Raises `ValueError` that names a parameter which no rule covers, or more than one (also under two names).
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    stacks = stacks_of(model)
    found: dict[Tensor, tuple[str, list[Rule]]] = {}
    for prefix, owner in model.named_modules():
        for local_name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full_name = f"{prefix}.{local_name}".lstrip(".")
            ndim = parameter.ndim - (full_name in stacks)
            site = Site(full_name, owner, local_name, parameter, ndim, owner is classifier)
            name, matching = found.setdefault(parameter, (site.name, []))
            matching += [rule for rule in rules if rule.matches(site) and rule not in matching]
    for parameter, (name, matching) in found.items():
        if len(matching) != 1:
            names = " and ".join(f"'{rule.name}'" for rule in matching) or "no rule"
            raise ValueError(
                f"parameter {name} {list(parameter.shape)} is covered by {names}: exactly one of "
                f"{', '.join(rule.name for rule in rules)} must match; mend the rules in trainables/optimiser.py"
            )
    return {name: matching[0] for name, matching in found.values()}


def unit_norms(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of each output unit: of a kernel [out, ...] the norms [out, 1, ...] over all axes but the first."""
    return [torch.linalg.vector_norm(t, dim=tuple(range(1, t.ndim)), keepdim=True) for t in tensors]


def unit_norms_of_stacks(tensors: list[Tensor]) -> list[Tensor]:
    """The norm of each output unit of each entry: of stacked kernels [n, out, ...] the norms [n, out, 1, ...]."""
    return [torch.linalg.vector_norm(t, dim=tuple(range(2, t.ndim)), keepdim=True) for t in tensors]


def vector_norms_of_stacks(tensors: list[Tensor]) -> list[Tensor]:
    """One norm for each entry: of stacked vectors [n, ...] the norms [n, 1, ...]."""
    return [
        torch.linalg.vector_norm(t, dim=tuple(range(1, t.ndim)), keepdim=True) if t.ndim > 1 else t.abs()
        for t in tensors
    ]


def vector_norms(tensors: list[Tensor]) -> list[Tensor]:
    """One norm for each tensor, 0-dim."""
    return list(torch._foreach_norm(tensors))


def clip_gradients_(
    gradients: list[Tensor],
    parameters: list[Tensor],
    norms: Callable[[list[Tensor]], list[Tensor]],
    clip: float,
    eps: float,
) -> None:
    """Scale gradients down, in place, where their norm exceeds clip x max(parameter norm, eps).

    Source: arXiv 2102.06171, equation 3.
    """
    if not gradients:
        return
    limits = norms(parameters)
    torch._foreach_clamp_min_(limits, eps)
    torch._foreach_mul_(limits, limits[0].new_full((), clip))  # four times as fast as by a Python number on the CPU
    lengths = norms(gradients)
    torch._foreach_maximum_(lengths, limits)
    torch._foreach_div_(limits, lengths)  # exactly 1 where the gradient is within its limit
    torch._foreach_mul_(gradients, limits)


def sgd_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    learning_rate: Tensor,
    momentum: float,
) -> None:
    """One Nesterov step, in place, as `torch.optim.SGD` does it; uses the gradients up. `learning_rate` is 0-dim."""
    torch._foreach_mul_(momenta, momenta[0].new_full((), momentum))
    torch._foreach_add_(momenta, gradients)
    torch._foreach_add_(gradients, momenta, alpha=momentum)
    torch._foreach_mul_(gradients, learning_rate)
    torch._foreach_sub_(parameters, gradients)


class Optimiser:
    """Updates a model's parameters from their `.grad`; its momentum buffers exist from the start.

    Raises `ValueError` if a parameter is not covered by exactly one rule.
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig) -> None:
        self.config = config
        rules = assign_rules(model)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [p for _, p in named]
        self.momenta = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        indices = range(len(named))
        stacks = stacks_of(model)
        self._clipped = [
            ([i for i in indices if rules[self.names[i]].clip == clip and (self.names[i] in stacks) == stacked], norms)
            for clip, stacked, norms in (
                ("unit", False, unit_norms),
                ("unit", True, unit_norms_of_stacks),
                ("vector", False, vector_norms),
                ("vector", True, vector_norms_of_stacks),
            )
        ]
        self._decayed = [i for i in indices if rules[self.names[i]].weight_decay]
        self._keeps_gradients = False

    def keep_gradients(self) -> list[Tensor]:
        """Give every parameter a gradient, of zeros, that every step sets to zero again; returns them."""
        self._keeps_gradients = True
        gradients = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.parameters]
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        return gradients

    @torch.no_grad()
    def step(self, learning_rate: Tensor) -> None:
        """One update with a 0-dim `learning_rate` on the parameters' device; uses the gradients up."""
        config, parameters = self.config, self.parameters
        gradients = [p.grad for p in parameters]
        missing = [name for name, g in zip(self.names, gradients, strict=True) if g is None]
        assert not missing, f"no gradient reached {', '.join(missing)}"
        present: list[Tensor] = gradients  # type: ignore[assignment]
        if config.agc_clip is not None:
            for indices, norms in self._clipped:
                grads, weights = [present[i] for i in indices], [parameters[i] for i in indices]
                clip_gradients_(grads, weights, norms, config.agc_clip, config.agc_eps)
        if config.weight_decay:
            decayed = [parameters[i] for i in self._decayed]
            torch._foreach_add_([present[i] for i in self._decayed], decayed, alpha=config.weight_decay)
        sgd_(parameters, present, self.momenta, learning_rate, config.momentum)
        if self._keeps_gradients:
            torch._foreach_zero_(present)
            return
        for p in parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum buffer of every parameter, by the parameter's name."""
        return dict(zip(self.names, self.momenta, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the buffers of a `state_dict`. Raises `ValueError` if they are not this model's."""
        if set(state) != set(self.names):
            odd = sorted(set(state) ^ set(self.names))
            raise ValueError(f"momentum buffers are of another model: {odd[0]} is in one and not in the other")
        for name, momentum in zip(self.names, self.momenta, strict=True):
            momentum.copy_(state[name])


class WeightAverage:
    """An exponential moving average of a model's weights, kept in a copy of the model (`model`, in evaluation mode)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())

    def weight_at(self, step: int) -> float:
        """The share of the new weights after step `step` (from 0): 1 - min(decay, (1 + t) / (10 + t)), t = step + 1.

        The second term keeps a short run's average off the initial weights (as in TensorFlow's
        ExponentialMovingAverage).
        """
        t = step + 1
        return 1.0 - min(self.decay, (1 + t) / (10 + t))

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Move the average towards the model by the share `weight` (0-dim, on the model's device)."""
        difference = torch._foreach_sub(self._weights, self.averages)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(self.averages, difference)
