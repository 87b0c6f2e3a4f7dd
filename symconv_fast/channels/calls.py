"""Which layers and functions of torch `channels` follows, by what they do with channels."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..modules import _Symmetric
from .trace import is_plain

_ACTIVATIONS = """
    ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Hardsigmoid Hardswish Hardtanh Softplus
    Softsign Tanh Tanhshrink Hardshrink Softshrink Threshold RReLU
    Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""
_POOLS = "MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool LPPool"
_PADS = "ZeroPad ConstantPad ReflectionPad ReplicationPad CircularPad"

_UNARY = """
    relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid logsigmoid hardsigmoid hardswish hardtanh softplus
    softsign tanh tanhshrink hardshrink softshrink threshold rrelu
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
    abs neg exp expm1 log log1p sqrt rsqrt square sin cos erf reciprocal sign floor ceil round
    clamp clamp_min clamp_max clip nan_to_num clone detach
"""
_UNARY_METHODS = "contiguous to float double half bfloat16 type cuda cpu requires_grad_ logical_not"
_JOINING = """
    add sub mul div true_divide floor_divide multiply subtract divide maximum minimum pow fmod remainder
    where lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_xor
"""
_OPERATORS = """
    add sub mul truediv floordiv mod pow iadd isub imul itruediv ipow neg abs eq ne lt le gt ge and_ or_ xor invert
"""
_REDUCTIONS = "mean sum amax amin"
_READING = (
    "size dim ndimension numel stride is_floating_point is_contiguous new_zeros new_ones new_empty new_full"
)
"""Methods that do not look at the values."""


def _named(names: str, *places: Any) -> Iterable[tuple[str, Any]]:
    """What modules of torch have under these names, with `_` appended too."""
    for name in names.split():
        for place in places:
            for variant in (name, f"{name}_"):
                found = getattr(place, variant, None)
                if callable(found):
                    yield name, found


FUNCTIONS: dict[Callable[..., Any], str] = {
    **{f: "unary" for _, f in _named(_UNARY, torch, F)},
    **{f: "joining" for _, f in _named(_JOINING, torch)},
    **{f: "joining" for _, f in _named(_OPERATORS, operator)},
    **{f: "reduction" for _, f in _named(_REDUCTIONS, torch)},
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    torch.flatten: "flatten",
    torch.unsqueeze: "unsqueeze",
    torch.reshape: "view",
    operator.getitem: "getitem",
    getattr: "getattr",
    F.interpolate: "resize",
    F.upsample: "resize",
    F.pad: "pad",
    torch._assert: "assert",
}
METHODS: dict[str, str] = {
    **{n: "unary" for name in _UNARY.split() for n in (name, f"{name}_")},
    **dict.fromkeys(_UNARY_METHODS.split(), "unary"),
    **{n: "joining" for name in _JOINING.split() for n in (name, f"{name}_")},
    **dict.fromkeys(_REDUCTIONS.split(), "reduction"),
    **dict.fromkeys(_READING.split(), "reading"),
    "flatten": "flatten",
    "unsqueeze": "unsqueeze",
    "unsqueeze_": "unsqueeze",
    "view": "view",
    "reshape": "view",
}
READ_ATTRIBUTES = frozenset({"ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_sparse"})

POOLING: dict[Callable[..., Any], int] = {
    f: ndim
    for ndim in (1, 2, 3)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for _, f in _named(f"{kind}{ndim}d", torch, F)
}
"""Functions of pooling, with the number of spatial dims."""

MODULES: dict[type[nn.Module], tuple[str, int]] = {
    **{getattr(nn, name): ("unary", 0) for name in _ACTIVATIONS.split()},
    **{
        getattr(nn, f"{name}{ndim}d"): ("pool", ndim)
        for name in (_POOLS + " " + _PADS).split()
        for ndim in (1, 2, 3)
    },
    **{
        getattr(nn, f"{name}{ndim}d"): (kind, ndim)
        for name, kind in (
            ("Conv", "conv"),
            ("ConvTranspose", "conv"),
            ("BatchNorm", "batch_norm"),
            ("InstanceNorm", "instance_norm"),
        )
        for ndim in (1, 2, 3)
    },
    nn.SyncBatchNorm: ("batch_norm", 0),
    nn.Linear: ("linear", 0),
    nn.PReLU: ("prelu", 0),
    nn.Upsample: ("resize", 0),
    nn.UpsamplingNearest2d: ("resize", 0),
    nn.UpsamplingBilinear2d: ("resize", 0),
    nn.Flatten: ("flatten", 0),
}
"""Layers of torch: what is done with them, and the number of spatial dims that they act on."""

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "running_mean", "running_var", "weight", "bias")
OWN_FUNCTIONS: dict[Any, tuple[str, type[nn.Module], tuple[str, ...]]] = {
    **{getattr(F, f"conv{n}d"): ("conv", getattr(nn, f"Conv{n}d"), _CONV) for n in (1, 2, 3)},
    **{
        getattr(F, f"conv_transpose{n}d"): ("conv", getattr(nn, f"ConvTranspose{n}d"), _TRANSPOSED)
        for n in (1, 2, 3)
    },
    F.linear: ("linear", nn.Linear, ("input", "weight", "bias")),
    F.batch_norm: ("batch_norm", nn.modules.batchnorm._BatchNorm, _NORM),
}
"""What subclasses of layers call with their own parameters: the layer's kind, its class, and arguments in order."""

FOREIGN_FUNCTIONS = frozenset({("torchvision.ops.stochastic_depth", "stochastic_depth")})
"""Functions of other libraries that scale whole samples or nothing."""


def kind_of(module: nn.Module) -> tuple[str, int] | None:
    """What `channels` does with a layer; None if it does not know what it computes."""
    for cls in type(module).__mro__:
        if cls in MODULES:
            return MODULES[cls] if is_plain(module, cls) else None
    return None


def is_layer(module: nn.Module) -> bool:
    """Does `channels` know it by itself, so that a trace need not look inside?"""
    return kind_of(module) is not None


def is_filtering(module: nn.Module) -> bool:
    """Has it filters or columns: a convolution or a linear layer, whoever subclasses it?"""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def is_tied(module: nn.Module) -> bool:
    """Is its order of output channels that of its ties?"""
    return isinstance(module, _Symmetric)


def name_of(target: Any) -> str:
    """A function or method in words."""
    return str(getattr(target, "__name__", target))


def is_arithmetic(target: Any) -> bool:
    """Does it make numbers from numbers?"""
    return getattr(target, "__module__", "") in ("_operator", "operator", "math", "builtins") or target in (
        torch._assert,
        math.prod,
    )
