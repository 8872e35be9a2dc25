"""The update against its peers: torch's SGD, timm's AGC, DeepMind's formula; and the rules over parameters."""

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from models.families import ModelSize, build_model
from trainables.config import OptimiserConfig
from trainables.optimiser import (
    Optimiser,
    WeightAverage,
    assign_rules,
    clip_gradients_,
    unit_norms,
    vector_norms,
)


def tiny_nfnet() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSize("F0", 8, classes=5, width=1 / 32, group_size=4, stem="small"))


class Tied(nn.Module):
    """A model that says what its classifier is, as timm's do."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(self.hidden(x))


def with_gradients(model: nn.Module, scale: float, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator)
    return model


def test_each_parameter_of_an_nfnet_has_the_rule_that_the_paper_gives_it():
    rules = {name: rule.name for name, rule in assign_rules(tiny_nfnet()).items()}
    assert rules["head.fc.weight"] == "classifier weight"
    assert rules["head.fc.bias"] == "classifier bias"
    for name, rule in rules.items():
        if name.startswith("head.fc"):
            continue
        last = name.rsplit(".", 1)[-1]
        assert rule == ("kernel" if last == "weight" else "gain or bias"), name
    assert any(name.endswith("skipinit_gain") for name in rules)
    assert any(name.endswith(".gain") for name in rules)


def test_decay_and_clipping_follow_the_rules():
    model = tiny_nfnet()
    rules = assign_rules(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimiserConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.5, agc_clip=0.01, agc_eps=1e-3)
    gradients = {name: p.grad.clone() for name, p in with_gradients(model, 10.0).named_parameters()}
    Optimiser(model, config).step(torch.tensor(1.0))
    for name, p in model.named_parameters():
        weight, gradient, rule = before[name], gradients[name], rules[name]
        if rule.clip is not None:
            # DeepMind's unitwise_norm: one norm for vectors, else one per output unit.
            axes = tuple(range(1, weight.ndim)) if rule.clip == "unit" else tuple(range(weight.ndim))
            limit = 0.01 * weight.pow(2).sum(axes, keepdim=True).sqrt().clamp(min=1e-3)
            norm = gradient.pow(2).sum(axes, keepdim=True).sqrt()
            gradient = torch.where(norm > limit, gradient * limit / norm.clamp(min=1e-6), gradient)
        if rule.weight_decay:
            gradient = gradient + 0.5 * weight
        torch.testing.assert_close(p.detach(), weight - gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_parameter_that_no_rule_covers_is_named():
    model = Tied()
    model.positions = nn.Parameter(torch.zeros(1, 7, 4))
    with pytest.raises(ValueError, match=r"positions \[1, 7, 4\] is covered by no rule"):
        Optimiser(model, OptimiserConfig(learning_rate=0.1))


def test_a_parameter_that_two_rules_cover_is_named():
    model = Tied()
    model.hidden = nn.Linear(4, 3)
    model.hidden.weight = model.fc.weight
    with pytest.raises(ValueError, match=r"hidden.weight .* covered by 'kernel' and 'classifier weight'"):
        Optimiser(model, OptimiserConfig(learning_rate=0.1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_clipping_it_is_torchs_nesterov_sgd(momentum):
    ours = tiny_nfnet()
    peer = copy.deepcopy(ours)
    rules = assign_rules(peer)
    groups = [
        {"params": [p for n, p in peer.named_parameters() if rules[n].weight_decay == decayed], "weight_decay": wd}
        for decayed, wd in ((True, 0.01), (False, 0.0))
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=momentum > 0)
    config = OptimiserConfig(learning_rate=0.1, momentum=momentum, weight_decay=0.01, agc_clip=None)
    optimiser = Optimiser(ours, config)
    for step, rate in enumerate((0.1, 0.4, 0.2, 0.05)):
        for model in (ours, peer):
            with_gradients(model, 1.0, seed=step)
        for group in sgd.param_groups:
            group["lr"] = rate
        optimiser.step(torch.tensor(rate))
        sgd.step()
        for a, b in zip(ours.parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 10.0])
def test_kernels_are_clipped_as_timm_clips_them(scale):
    torch.manual_seed(0)
    kernels = [torch.randn(s) for s in ((8, 3, 3, 3), (16, 8, 1, 1), (12, 16))] + [torch.zeros(4, 2, 3, 3)]
    gradients = [scale * torch.randn_like(k) for k in kernels]
    peers = [nn.Parameter(k.clone()) for k in kernels]
    for peer, gradient in zip(peers, gradients, strict=True):
        peer.grad = gradient.clone()
    adaptive_clip_grad(peers, clip_factor=0.02, eps=1e-3)
    clip_gradients_(gradients, kernels, unit_norms, clip=0.02, eps=1e-3)
    for gradient, peer in zip(gradients, peers, strict=True):
        torch.testing.assert_close(gradient, peer.grad, rtol=1e-6, atol=1e-9)


def test_a_vector_is_clipped_by_one_norm():
    gain = torch.full((4, 1, 1, 1), 2.0)
    gradient = torch.tensor([3.0, 0.0, 0.0, 4.0]).reshape(4, 1, 1, 1)
    clip_gradients_([gradient], [gain], vector_norms, clip=0.1, eps=1e-3)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([3.0, 0.0, 0.0, 4.0]) * (0.1 * 4.0 / 5.0))


def test_a_skipinit_scalar_at_zero_moves_by_eps():
    scalar, gradient = torch.tensor(0.0), torch.tensor(-7.0)
    clip_gradients_([gradient], [scalar], vector_norms, clip=0.01, eps=1e-3)
    assert gradient.item() == pytest.approx(-1e-5)


def test_its_state_travels_by_name():
    first, second = tiny_nfnet(), tiny_nfnet()
    config = OptimiserConfig(learning_rate=0.1)
    one, two = Optimiser(first, config), Optimiser(second, config)
    assert all(torch.count_nonzero(m) == 0 for m in one.momenta)
    with_gradients(first, 1.0)
    one.step(torch.tensor(0.1))
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.momenta, two.momenta, strict=True))
    with pytest.raises(ValueError, match=r"another model: fc\.bias"):
        two.load_state_dict({name: torch.zeros(1) for name, _ in Tied().named_parameters()})


def test_the_average_follows_the_weights():
    model = Tied()
    average = WeightAverage(model, decay=0.75)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    average.update(torch.tensor(0.25))
    for name, p in average.model.named_parameters():
        torch.testing.assert_close(p, start[name] + 0.25)
        assert not p.requires_grad
    assert average.weight_at(0) == pytest.approx(9 / 11)
    assert average.weight_at(10_000) == 0.25
