"""The NFNet family: its variants as data, and how one is built from timm.

Architecture: "High-Performance Large-Scale Image Recognition Without Normalization" (arXiv 2102.06171); the F+ widths
and the use of depth as the scaled axis: "ConvNets Match Vision Transformers at Scale" (arXiv 2310.16764).
The blocks are those of timm's `dm_nfnet_*`: SkipInit gains, "same" padding, GELU with its gamma in the activation,
squeeze-and-excitation with ratio 0.5, bottleneck ratio 0.5, alpha 0.2. But for GELU, which is the approximation by
tanh, as in the authors' code (`jax.nn.gelu`); timm's is the exact one. A TPU has a unit for tanh and none for erf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from models.names import known_name

if TYPE_CHECKING:
    import torch
    from torch import nn

Stem = Literal["paper", "small"]

STRIDES: Mapping[str, int] = MappingProxyType({"paper": 32, "small": 8})
"""Input pixels per pixel of the last stage: the stages divide by 1, 2, 2, 2 after a stem that divides by 4 or by 1."""

_STAGE_BLOCKS = (1, 2, 6, 3)
_F_CHANNELS = (256, 512, 1536, 1536)
_F_PLUS_CHANNELS = (384, 768, 2048, 2048)
_STEM_CHANNELS = 128
_BOTTLENECK = 0.5


@dataclass(frozen=True, slots=True)
class NFNetVariant:
    """One member of the family at full width.

    Attributes:
        name: as the papers write it, "F0" ... "F7+".
        depths: residual blocks in each of the four stages, (1, 2, 6, 3) x (N + 1) for FN.
        channels: output channels of each of the four stages.
    """

    name: str
    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]


def _variant(name: str) -> NFNetVariant:
    one, two, three, four = (blocks * (int(name[1]) + 1) for blocks in _STAGE_BLOCKS)
    return NFNetVariant(name, (one, two, three, four), _F_PLUS_CHANNELS if name.endswith("+") else _F_CHANNELS)


VARIANTS: Mapping[str, NFNetVariant] = MappingProxyType(
    {name: _variant(name) for name in ("F0", "F1", "F2", "F3", "F3+", "F4", "F5", "F6", "F7", "F7+")}
)
"""Every variant by name, in order of cost."""


def scaled_channels(variant: str, *, width: float = 1.0, group_size: int = 128) -> tuple[int, int, int, int]:
    """Output channels of the four stages at `width` times the variant's own, to the nearest multiple of `group_size`.

    A block's grouped convolutions work on half of its stage's channels, rounded down to whole groups (as at full width,
    where the first stage of F3+ has 384 channels and one group of 128). So `width` and `group_size` lowered by the same
    factor give the same network, each of its layers narrower by that factor.

    Raises:
        ValueError: unknown variant; `width` or `group_size` not positive; a stage with less than 2 x `group_size`
            channels, half of which would not make one group.
    """
    channels = VARIANTS[known_name("NFNet variant", variant, VARIANTS)].channels
    if not 0 < width < math.inf:
        raise ValueError(f"width {width!r} is not allowed: it multiplies the channels, so give a number above 0")
    if group_size < 1:
        raise ValueError(f"group_size {group_size!r} is not allowed: give the channels per group, 1 or more")
    narrowest = min(channels) * width
    if narrowest < 2 * group_size:
        fitting = 2 ** math.floor(math.log2(narrowest / 2)) if narrowest >= 2 else None
        raise ValueError(
            f"group_size {group_size} does not fit {variant} at width {width:g}: its narrowest stage has {narrowest:g} "
            f"channels, and 2 x group_size is the least allowed; use a larger width"
            + (f" or group_size {fitting}" if fitting else "")
        )
    one, two, three, four = (round(c * width / group_size) * group_size for c in channels)
    return one, two, three, four


def check_nfnet(variant: str, *, classes: int, image_size: int, width: float, group_size: int, stem: str) -> None:
    """Refuse what cannot be built, without importing torch. Arguments as in `build_nfnet`.

    Raises:
        ValueError: in one line, what was given and what is allowed.
    """
    scaled_channels(variant, width=width, group_size=group_size)
    known_name("stem", stem, get_args(Stem))
    if classes < 1:
        raise ValueError(f"classes {classes!r} is not allowed: a classifier needs 1 or more")
    if image_size < STRIDES[stem]:
        other = f", or stem 'small' for {STRIDES['small']} or more" if stem == "paper" else ""
        raise ValueError(
            f"image_size {image_size} is too small for stem {stem!r}, which divides it by {STRIDES[stem]}: "
            f"use {STRIDES[stem]} pixels or more{other}"
        )


def build_nfnet(
    variant: str,
    *,
    classes: int,
    image_size: int,
    width: float = 1.0,
    group_size: int = 128,
    stem: Stem = "paper",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Module:
    """An NFNet with fresh weights, drawn from torch's default generator.

    Takes images [batch, 3, height, width], gives logits [batch, classes]. The weights do not depend on the image size;
    it is here so that a size the network would reduce to nothing is refused.

    Args:
        variant: a key of `VARIANTS`.
        classes: outputs of the classifier.
        image_size: height and width of the images, in pixels.
        width: multiplies every stage's channels, see `scaled_channels`.
        group_size: channels per group of the grouped convolutions; the papers' is 128, small widths need less.
        stem: "paper" is four 3x3 convolutions, stride 4; "small" is one 3x3 convolution, stride 1, for images of up to
            about 64 pixels.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        device: where the weights live; "meta" allocates none.

    Raises:
        ValueError: see `check_nfnet`.
    """
    check_nfnet(variant, classes=classes, image_size=image_size, width=width, group_size=group_size, stem=stem)
    # Imported here: timm takes seconds to load, and those who only read the variant table should not wait for it.
    from timm.layers import get_act_fn
    from timm.models.nfnet import GammaAct, NfCfg, NormFreeNet

    channels = scaled_channels(variant, width=width, group_size=group_size)
    config = NfCfg(
        depths=VARIANTS[variant].depths,
        channels=channels,
        stem_type="deep_quad",
        stem_chs=_stem_channels(width),
        group_size=group_size,
        bottle_ratio=_BOTTLENECK,
        extra_conv=True,
        gamma_in_act=True,
        same_padding=True,
        skipinit=True,
        num_features=2 * channels[-1],
        act_layer="gelu",
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5},
        ch_div=1,  # the channels are rounded already; timm's multiples of 8 would distort bottlenecks of small widths
    )
    model = NormFreeNet(config, num_classes=classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate, device=device)
    for module in model.modules():
        if isinstance(module, GammaAct):
            module.act_fn = get_act_fn("gelu_tanh")
    if stem == "small":
        _put_small_stem(model, channels=config.stem_chs, device=device)
    network: nn.Module = model
    return network


def _stem_channels(width: float) -> int:
    """The stem's output channels: a multiple of 8, because its first convolution has an eighth of them."""
    return max(8, round(_STEM_CHANNELS * width / 8) * 8)


def _put_small_stem(model: Any, *, channels: int, device: torch.device | str | None) -> None:
    """Replace the stem by one 3x3 convolution of stride 1, initialised as timm does the rest of the network.

    timm's own "3x3" stem has stride 2 and makes the first stage stride 2 as well: 32 in all, too much for small images.
    """
    from timm.layers import ScaledStdConv2dSame
    from torch import nn

    conv = ScaledStdConv2dSame(3, channels, kernel_size=3, stride=1, eps=1e-5, device=device)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="linear")
    nn.init.zeros_(conv.bias)
    model.stem = nn.Sequential()
    model.stem.add_module("conv", conv)
    model.stem_feat_idx = 0
    model.feature_info = [
        {**info, "reduction": max(1, info["reduction"] * STRIDES["small"] // STRIDES["paper"])}
        for info in model.feature_info
    ]
    model.feature_info[0].update(num_chs=channels, module="stem.conv")
