# Bad and odd arguments, side by side: where torch's functions and layers raise, so do ours, with the same types.
"""A table of arguments for the six functions and the six layers. What torch computes has the same shape here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import OPS, check
from torch import Tensor, nn

import symconv_fast as sf
from symconv_fast import functional as SF
from symconv_fast import problem

FUNCTIONS = [(ndim, transposed) for ndim in (1, 2, 3) for transposed in (False, True)]


def values(*shape: int, **more: Any) -> Tensor:
    return torch.zeros(shape, **more)


def tensors(ndim: int, transposed: bool) -> dict[str, Tensor]:
    kernel = (3,) * ndim
    return {
        "input": values(2, 4, *(6,) * ndim),
        "weight": values(*((4, 8) if transposed else (8, 4)), *kernel),
        "bias": values(8),
    }


INTEGERS = {
    "0": 0, "-1": -1, "True": True, "bools": (True, True), "four": (1, 2, 3, 4), "none of them": (), "one": (1,),
    "1.5": 1.5, "float": 1.0, "floats": (1.0,) * 3, "None": None, "text": "1", "list": [1], "tensor": torch.tensor(1),
    "numpy": np.int64(1), "2**63": 2**63, "2**70": 2**70, "-2**70": -(2**70),
}  # fmt: skip
OTHERS = {"None": None, "numpy": np.zeros((2, 4, 6)), "list": [1.0], "float": 1.0, "text": "x"}


def bad_arguments(ndim: int, transposed: bool) -> dict[str, dict[str, Any]]:
    """What is put in the place of good arguments, by a title."""
    good, size = tensors(ndim, transposed), (6,) * ndim
    rows = {}
    names = ("stride", "padding", "dilation", *(("output_padding",) if transposed else ()))
    for name in names:
        rows |= {f"{name} {title}": {name: value} for title, value in INTEGERS.items()}
    rows |= {f"groups {title}": {"groups": v} for title, v in {**INTEGERS, "3": 3, "2**40": 2**40}.items()}
    rows |= {f"padding {text}": {"padding": text} for text in ("same", "valid", "full")}
    rows["padding same, stride 2"] = {"padding": "same", "stride": 2}
    rows["dilation 2**40"] = {"dilation": 2**40 if not transposed else 0}
    for name in ("input", "weight", "bias"):
        for title, value in OTHERS.items():
            if (name, title) != ("bias", "None"):
                rows[f"{name} {title}"] = {name: value}
        rows[f"{name} sparse"] = {name: good[name].to_sparse()}
        rows[f"{name} float64"] = {name: good[name].double()}
        rows[f"{name} complex"] = {name: good[name].to(torch.complex64)}
        rows[f"{name} int"] = {name: good[name].long()}
        rows[f"{name} of no dims"] = {name: values()}
        rows[f"{name} of 6 dims"] = {name: values(*(1,) * 6)}
    rows["other channels"] = {"input": values(2, 5, *size)}
    rows["bias too short"] = {"bias": values(7)}
    rows["unbatched"] = {"input": values(4, *size)}
    rows["unbatched, other channels"] = {"input": values(5, *size)}
    rows["empty batch"] = {"input": values(0, 4, *size)}
    rows["empty map"] = {"input": values(2, 4, 0, *size[1:])}
    rows["empty map, padded"] = {"input": values(2, 4, 0, *size[1:]), "padding": 2}
    rows["no kernel"] = {"weight": values(*good["weight"].shape[:2], *(0,) * ndim)}
    rows["kernel too large"] = {"weight": values(*good["weight"].shape[:2], *(9,) * ndim)}
    if transposed:
        rows["no channels"] = {"input": values(2, 0, *size), "weight": values(0, 8, *(3,) * ndim)}
        rows["output_padding 3"] = {"output_padding": 3}
        del rows["kernel too large"], rows["dilation 2**40"], rows["dilation 0"]  # by mkldnn's leave
    else:
        rows["no filters"] = {"weight": values(0, 4, *(3,) * ndim), "bias": values(0)}
        rows["empty batch and map"] = {"input": values(0, 4, 0, *size[1:]), "padding": 2}
    return rows


def outcome(call: Callable[[], Tensor]) -> Any:
    """The shape of the result, or the exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tuple(call().shape)
        except Exception as error:
            return error


def assert_alike(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Exception):
        assert isinstance(ours, type(theirs)), f"torch: {theirs!r}; ours: {ours!r}"
        assert str(ours), "an error says what is wrong"
    else:
        assert ours == theirs


@pytest.mark.parametrize(("ndim", "transposed"), FUNCTIONS)
def test_functions(ndim, transposed):
    name = f"conv{'_transpose' if transposed else ''}{ndim}d"
    good, failed = tensors(ndim, transposed), []
    assert outcome(lambda: getattr(F, name)(**good)) == outcome(
        lambda: getattr(SF, f"symmetric_{name}")(**good, symmetry=None)
    )
    for title, bad in bad_arguments(ndim, transposed).items():
        arguments = good | bad
        theirs = outcome(lambda a=arguments: getattr(F, name)(**a))
        ours = outcome(lambda a=arguments: getattr(SF, f"symmetric_{name}")(**a, symmetry=None))
        try:
            assert_alike(ours, theirs)
        except AssertionError as error:
            failed.append(f"{title}: {error}")
    assert not failed, "\n".join(failed)


LAYER = {
    "in_channels": (0, -1, 1.0, None, "4"),
    "out_channels": (0, -1, 2.0, None),
    "kernel_size": (0, -1, 1.5, None, "3", (3, 3, 3, 3), ()),
    "stride": (0, -1, 1.5, None, "1", (1, 1, 1, 1), (), [1]),
    "padding": (-1, 1.5, None, "same", "valid", "full", (1, 1, 1, 1), 2**70),
    "dilation": (0, -1, 1.5, None, (1, 1, 1, 1)),
    "groups": (0, -1, 3, 1.0, None, "1"),
    "output_padding": (-1, 5, 1.5, None),
    "padding_mode": ("mirror", None, "reflect"),
}
INPUTS = [
    values(2, 4, 6),
    values(4, 6),
    values(2, 5, 6),
    values(2),
    None,
    np.zeros((2, 4, 6)),
    [1.0],
    values(0, 4, 6),
]


@pytest.mark.parametrize(("ndim", "transposed"), FUNCTIONS)
def test_layers(ndim, transposed):
    """Made, and called: an error at either place counts, since it is one line of a user's program or the next."""
    name = f"Conv{'Transpose' if transposed else ''}{ndim}d"
    plain, tied = getattr(nn, name), getattr(sf, f"Symmetric{name}")
    good, x = {"in_channels": 4, "out_channels": 8, "kernel_size": 3}, values(2, 4, *(6,) * ndim)
    failed = []
    for argument, bads in LAYER.items():
        if argument == "output_padding" and not transposed:
            continue
        for bad in bads:
            arguments = good | {argument: bad}
            if transposed and (argument, bad) in (("dilation", 0), ("out_channels", 0)):
                continue  # torch leaves these to mkldnn, and the error too
            theirs = outcome(lambda a=arguments: plain(**a)(x))
            ours = outcome(lambda a=arguments: tied(**a)(x))
            if isinstance(theirs, Exception) and not isinstance(ours, type(theirs)):
                failed.append(f"{argument}={bad!r}: torch: {theirs!r}; ours: {ours!r}")
            elif not isinstance(theirs, Exception) and ours != theirs:
                failed.append(f"{argument}={bad!r}: torch: {theirs}; ours: {ours!r}")
    for value in INPUTS:
        given = value
        if isinstance(value, Tensor) and value.dim() > 1:
            given = value[(..., *[None] * (ndim - 1))].expand(*value.shape, *[6] * (ndim - 1))
        theirs, ours = outcome(lambda v=given: plain(**good)(v)), outcome(lambda v=given: tied(**good)(v))
        try:
            assert_alike(ours, theirs)
        except AssertionError as error:
            failed.append(f"input {type(value).__name__} {getattr(value, 'shape', '')}: {error}")
    assert not failed, "\n".join(failed)


# --- on purpose otherwise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("bias", [None, torch.arange(8.0)])
def test_no_channels_make_sums_of_nothing(ndim, bias):
    """The shape that torch documents, (N, out_channels, ...); torch 2.13 itself makes an output of no channels."""
    x, w = values(2, 0, *(6,) * ndim, requires_grad=True), values(8, 0, *(3,) * ndim, requires_grad=True)
    b, call = None if bias is None else bias.clone().requires_grad_(), getattr(SF, f"symmetric_conv{ndim}d")
    y = call(x, w, b, symmetry=None)
    meta = call(x.to("meta"), w.to("meta"), None if b is None else b.to("meta"), symmetry=None)
    assert y.shape == meta.shape == (2, 8, *(4,) * ndim)
    expected = torch.zeros(8) if bias is None else bias
    assert torch.equal(y, expected.view(-1, *[1] * ndim).expand_as(y))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape
    if b is not None:
        assert torch.equal(b.grad, torch.full((8,), 2.0 * 4**ndim))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_channels_trains():
    layer = sf.SymmetricConv2d(0, 8, 3, symmetry="hv")
    y = layer(torch.zeros(2, 0, 6, 6))
    y.sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((8,), 32.0))
    assert layer.weight.grad.shape == (2, 0, 3, 3)


@pytest.mark.parametrize(
    ("stride", "padding"),
    [
        (2**20, 0),
        (2**40, 0),
        (2**20, 2**20),
        (2**40, 2**40),
        (2**20, 2**20 - 2),
        (8000, 0),
        (8000, 8000),
        (120, 120),
    ],
)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_steps_beyond_the_map(ndim, stride, padding):
    """torch's backward crashes or never ends. One window alone lies on the map, from stride - padding on."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *(6,) * ndim, dtype=torch.float64, requires_grad=True)
    layer = getattr(sf, f"SymmetricConv{ndim}d")(3, 8, 3, stride, padding, symmetry="h", dtype=torch.float64)
    y = layer(x)
    outputs, at = (1, 0) if padding == 0 else (3 if stride == padding else 2, 1)
    assert y.shape == (2, 8, *(outputs,) * ndim)
    first = at * stride - padding
    window = x.detach()[(..., *[slice(first, first + 3)] * ndim)].clone().requires_grad_()
    plain = getattr(F, f"conv{ndim}d")(window, layer.expanded_weight(), layer.bias)
    expected = layer.bias.detach().view(-1, *[1] * ndim).expand_as(y).clone()
    expected[(..., *[at] * ndim)] = plain.detach()[(..., *[0] * ndim)]
    torch.testing.assert_close(y, expected)
    gy = torch.randn_like(y)
    gx, gw = torch.autograd.grad(y, [x, layer.weight], gy)
    own = gy[(..., *[slice(at, at + 1)] * ndim)]
    their_x, their_w = torch.autograd.grad(plain, [window, layer.weight], own)
    torch.testing.assert_close(gw, their_w)
    inside = torch.zeros_like(x)
    inside[(..., *[slice(first, first + 3)] * ndim)] = their_x
    torch.testing.assert_close(gx, inside)


@pytest.mark.parametrize("name", ["padding", "dilation"])
def test_what_no_memory_can_hold(name):
    """An error of torch's allocator at once, not a search for hours."""
    for transposed in (False, True):
        good, value = tensors(2, transposed), 2**40
        if (name == "padding") == transposed:
            continue  # an output that is too small, not too large
        call = getattr(SF, f"symmetric_conv{'_transpose' if transposed else ''}2d")
        with pytest.raises(RuntimeError):
            call(**good, symmetry=None, **{name: value})
    with pytest.raises(RuntimeError):
        SF.symmetric_conv_transpose2d(**tensors(2, True), symmetry=None, stride=2**20)
    with pytest.raises(RuntimeError, match="which no memory can hold"):
        SF.symmetric_conv2d(**tensors(2, False), symmetry=None, padding=2**62)


def test_far_steps_against_the_oracle(monkeypatch):
    """The way of far steps taken by problems of all kinds."""
    monkeypatch.setattr(problem, "FAR", 0)
    for case in cases.sample(40):
        for op in OPS:
            check(case, torch.float64, op, "reference", "expand")
