"""NFNets are timm's `dm_` blocks, at any width, and what cannot be built is refused in one clear line."""

import re

import pytest
import timm
import torch
from timm.models.nfnet import GammaAct

from models.nfnet import STRIDES, VARIANTS, build_nfnet, scaled_channels


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter moved off its initial value, so that no branch is multiplied by a zero gain."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_variants_are_the_papers() -> None:
    assert list(VARIANTS) == ["F0", "F1", "F2", "F3", "F3+", "F4", "F5", "F6", "F7", "F7+"]
    assert VARIANTS["F0"].depths == (1, 2, 6, 3)
    assert VARIANTS["F3+"].depths == VARIANTS["F3"].depths == (4, 8, 24, 12)
    assert VARIANTS["F7+"].depths == (8, 16, 48, 24)
    assert VARIANTS["F7"].channels == (256, 512, 1536, 1536)
    assert VARIANTS["F7+"].channels == (384, 768, 2048, 2048)


def test_f0_is_timms_f0_but_for_the_approximate_gelu() -> None:
    ours = randomised(build_nfnet("F0", classes=10, image_size=64))
    theirs = timm.create_model("dm_nfnet_f0", num_classes=10).eval()
    activations = [module for module in theirs.modules() if isinstance(module, GammaAct)]
    assert len(activations) == 3 + 1 + 4 * 12
    for activation in activations:
        activation.act_fn = lambda x, inplace: torch.nn.functional.gelu(x, approximate="tanh")
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize("depth", range(1, 7))
def test_every_f_variant_of_timm_has_our_parameters(depth: int) -> None:
    ours = build_nfnet(f"F{depth}", classes=10, image_size=224, device="meta")
    theirs = timm.create_model(f"dm_nfnet_f{depth}", num_classes=10, device="meta")
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}


@pytest.mark.parametrize("variant", ["F0", "F3+"])
def test_width_and_group_size_lowered_together_divide_every_layer(variant: str) -> None:
    full = build_nfnet(variant, classes=10, image_size=224, device="meta")
    narrow = build_nfnet(variant, classes=10, image_size=224, width=1 / 16, group_size=8, device="meta")
    for name, parameter in full.named_parameters():
        if "conv2" in name and name.startswith("stages") and name.endswith("weight"):
            out_channels, channels_per_group = parameter.shape[:2]
            assert narrow.get_parameter(name).shape[:2] == (out_channels // 16, channels_per_group // 16), name


@pytest.mark.parametrize(("stem", "sizes"), [("paper", (32, 64, 75)), ("small", (8, 13, 16, 32))])
def test_last_stage_has_the_image_size_over_the_stride(stem: str, sizes: tuple[int, ...]) -> None:
    model = build_nfnet("F0", classes=10, image_size=sizes[0], width=1 / 16, group_size=8, stem=stem)
    for size in sizes:
        features = model.forward_features(torch.zeros(1, 3, size, size))
        assert features.shape[-1] == -(-size // STRIDES[stem])


@pytest.mark.parametrize("stem", ["paper", "small"])
def test_feature_information_tells_the_truth(stem: str) -> None:
    model = build_nfnet("F0", classes=10, image_size=64, width=1 / 16, group_size=8, stem=stem)
    _, features = model.forward_intermediates(torch.zeros(1, 3, 64, 64))
    told = [(info["num_chs"], 64 // info["reduction"]) for info in model.feature_info[:-1]]
    assert [(f.shape[1], f.shape[2]) for f in features[:-1]] == told


@pytest.mark.parametrize("stem", ["paper", "small"])
def test_every_parameter_gets_a_gradient(stem: str) -> None:
    model = randomised(build_nfnet("F1", classes=3, image_size=32, width=1 / 16, group_size=8, stem=stem)).train()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("stem", ["paper", "small"])
def test_same_seed_same_weights_and_unit_scale_signal(stem: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_nfnet("F3", classes=10, image_size=32, width=1 / 16, group_size=8, stem=stem))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem_output = models[0].stem(images)
    assert 0.3 < stem_output.std() < 2


def test_dropout_and_stochastic_depth_reach_the_network() -> None:
    model = build_nfnet("F0", classes=10, image_size=224, drop_rate=0.3, drop_path_rate=0.25, device="meta")
    assert model.head.drop.p == 0.3
    assert model.stages[-1][-1].drop_path.drop_prob == pytest.approx(0.25)


def test_channels_are_rounded_to_whole_groups() -> None:
    assert scaled_channels("F0", width=1 / 16, group_size=8) == (16, 32, 96, 96)
    assert scaled_channels("F3+", width=1 / 16, group_size=8) == (24, 48, 128, 128)
    assert scaled_channels("F0", width=0.3, group_size=8) == (80, 152, 464, 464)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"variant": "f3"},
            "unknown NFNet variant 'f3'; did you mean 'F3'? (allowed: F0, F1, F2, F3, F3+, F4, F5, F6, F7, F7+)",
        ),
        (
            {"width": 1 / 16},
            "group_size 128 does not fit F0 at width 0.0625: its narrowest stage has 16 channels, and "
            "2 x group_size is the least allowed; use a larger width or group_size 8",
        ),
        (
            {"width": 1 / 256},
            "group_size 128 does not fit F0 at width 0.00390625: its narrowest stage has 1 channels, "
            "and 2 x group_size is the least allowed; use a larger width",
        ),
        ({"width": 0.0}, "width 0.0 is not allowed: it multiplies the channels, so give a number above 0"),
        ({"group_size": 0}, "group_size 0 is not allowed: give the channels per group, 1 or more"),
        ({"classes": 0}, "classes 0 is not allowed: a classifier needs 1 or more"),
        ({"stem": "smal"}, "unknown stem 'smal'; did you mean 'small'? (allowed: paper, small)"),
        (
            {"image_size": 16},
            "image_size 16 is too small for stem 'paper', which divides it by 32: use 32 pixels or "
            "more, or stem 'small' for 8 or more",
        ),
        (
            {"image_size": 7},
            "image_size 7 is too small for stem 'paper', which divides it by 32: use 32 pixels or "
            "more, or stem 'small' for 8 or more",
        ),
        (
            {"image_size": 7, "stem": "small"},
            "image_size 7 is too small for stem 'small', which divides it by 8: use 8 pixels or more",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(changes: dict[str, object], line: str) -> None:
    arguments = {"variant": "F0", "classes": 10, "image_size": 224, **changes}
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        build_nfnet(arguments.pop("variant"), device="meta", **arguments)
