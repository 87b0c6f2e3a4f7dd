# torch's own test inputs of the six convolutions and the six layers, for ours: values, gradients and errors.
"""The samples with which torch tests itself ship inside it: `op_db` for functions, `module_db` for layers.

A sample's weight is taken for the reduced one, which every tie fits; the answer is torch's function on the filters that
`oracle.expand` makes of it. A layer's sample is given the ties that its 5 output channels allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import compress
from types import ModuleType
from typing import Any

import pytest
import torch
from oracle import Case, expand
from torch import Tensor, nn

import symconv_fast as sf
from symconv_fast import Symmetry
from symconv_fast.ties import Ties

pytest.importorskip("expecttest", reason="torch's own test inputs need the package expecttest")

Convolution = Callable[..., Tensor]

DTYPES = (torch.float32, torch.float64)
CONVOLUTIONS = [f"{kind}{ndim}d" for kind in ("conv", "conv_transpose") for ndim in (1, 2, 3)]
LAYERS = [f"{kind}{ndim}d" for kind in ("Conv", "ConvTranspose") for ndim in (1, 2, 3)]
TIES = {1: ("h",), 2: ("h", "v", "hv"), 3: ("h", "v", "z", "hv", "hz", "vz", "hvz")}
OF_FIVE_CHANNELS = {
    1: ({"h": 4}, {"h": 2}),
    2: ({"h": 4}, {"v": 2}, {"hv": 4}, {"h": 2, "v": 2}),
    3: ({"h": 2}, {"v": 4}, {"hz": 4}, {"h": 2, "z": 2}),
}


@cache
def databases() -> tuple[ModuleType, ModuleType]:
    """`op_db` and `module_db` in their modules. Their import freezes the flags of torch.backends; this undoes that."""
    from torch.testing._internal import common_methods_invocations, common_modules

    # torch.backends may be a wrapper of the module that holds the flag, so the flag is found through its function.
    torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True
    assert not torch.backends.flags_frozen()
    return common_methods_invocations, common_modules


def op_info(name: str) -> Any:
    (info,) = (info for info in databases()[0].op_db if info.name == f"nn.functional.{name}")
    return info


def ndim_of(name: str) -> int:
    return int(name[-2])


# --- functions -----------------------------------------------------------------------------------------------------


def ties_of(ndim: int, rows: int, groups: int) -> Iterator[Any]:
    """None, each tie on all rows, and a mixture where there are rows enough for it."""
    yield None
    yield from TIES[ndim]
    if rows >= 2 * groups:
        yield {TIES[ndim][-1]: groups << ndim}  # the last rows are free


def case_of(ties: Ties, transposed: bool) -> Case:
    """What `oracle.expand` wants to know."""
    segments = tuple(zip(ties.flat[::2], ties.flat[1::2]))
    return Case(ndim=ties.ndim, ties=segments, groups=ties.groups, transposed=transposed)


def on_expanded(torchs: Convolution, case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's function of the ordinary filters; a bias that has one value for each row is expanded as they are."""
    if bias is not None and len(bias) != case.out_channels:
        bias = expand(bias.view(-1, *[1] * (case.ndim + 1)), replace(case, transposed=False)).flatten()
    return torchs(x, expand(weight, case), bias)


def call_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer with other parameters."""
    return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)


def answer(function: Convolution, leaves: Sequence[Tensor | None], gy: Tensor) -> list[Tensor]:
    """Output and the gradients of all leaves."""
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [v for v in leaves if v is not None], gy)]


def assert_same(ours: Convolution, torchs: Convolution, leaves: Sequence[Tensor | None]) -> None:
    """Values and gradients, but for the rounding of sums: a few units of the sum of the magnitudes of what is added."""
    gy = torch.randn_like(ours(*leaves))
    exact = [None if v is None else v.detach().double().requires_grad_() for v in leaves]
    sizes = [None if v is None else v.detach().abs().requires_grad_() for v in exact]
    of = compress(("output", "input", "weight", "bias"), (True, *(v is not None for v in leaves)))
    wanted, magnitudes = answer(torchs, exact, gy.double()), answer(torchs, sizes, gy.double().abs())
    for name, result, right, size in zip(of, answer(ours, leaves, gy), wanted, magnitudes):
        assert result.dtype == gy.dtype
        small = 4 * torch.finfo(gy.dtype).eps * float(size.max())
        torch.testing.assert_close(
            result.double(), right, rtol=0, atol=small, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "not contiguous"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_functions_on_torchs_samples(name: str, dtype: torch.dtype, contiguous: bool) -> None:
    info, ndim, transposed = op_info(name), ndim_of(name), "transpose" in name
    ours = getattr(sf.functional, f"symmetric_{name}")
    met = set()
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        sample = sample if contiguous else sample.noncontiguous()
        x, (w, b), more = sample.input, sample.args, sample.kwargs
        groups = more.get("groups", 1)
        rows = w.shape[1] * groups if transposed else w.shape[0]
        for symmetry in ties_of(ndim, rows, groups):
            case = case_of(Symmetry(symmetry).resolve_rows(ndim, rows, groups), transposed)
            print(f"{symmetry=}, input {list(x.shape)}, weight {list(w.shape)}, {more}")
            torchs = partial(on_expanded, partial(info.op, **more), case)
            assert_same(partial(ours, **more, symmetry=symmetry), torchs, (x, w, b))
            met.add(str(symmetry))
    assert met >= {"None", *TIES[ndim]}


@pytest.mark.parametrize("symmetry", [None, "h"])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "transpose" not in name])
def test_functions_raise_what_torchs_raise(name: str, symmetry: Any) -> None:
    """The same type, or one derived from it; torch has such samples for three of the six."""
    info, ours = op_info(name), getattr(sf.functional, f"symmetric_{name}")
    found = list(info.error_inputs("cpu"))
    assert len(found) >= 9
    for error in found:
        x, args, more = error.sample_input.input, error.sample_input.args, error.sample_input.kwargs
        with pytest.raises(error.error_type, match=error.error_regex) as raised:
            info.op(x, *args, **more)
        with pytest.raises(type(raised.value)):
            ours(x, *args, **more, symmetry=symmetry)


# --- layers --------------------------------------------------------------------------------------------------------


def layer_samples(name: str, dtype: torch.dtype, training: bool) -> Iterator[tuple[Any, Any]]:
    """(arguments of the constructor, arguments of the call)."""
    kind = getattr(nn, name)
    (info,) = (info for info in databases()[1].module_db if info.module_cls is kind)
    made = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
    return ((sample.constructor_input, sample.forward_input) for sample in made)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_on_torchs_samples(name: str, dtype: torch.dtype, training: bool) -> None:
    ndim, transposed, met = ndim_of(name), "Transpose" in name, 0
    for made_of, called_with in layer_samples(name, dtype, training):
        torchs: nn.Module = getattr(nn, name)(*made_of.args, **made_of.kwargs, dtype=torch.float64)
        for symmetry in (None, *OF_FIVE_CHANNELS[ndim]):
            layer = getattr(sf, f"Symmetric{name}")(
                *made_of.args, **made_of.kwargs, symmetry=symmetry, dtype=dtype
            )
            layer.train(training)
            assert isinstance(layer, getattr(nn, name))
            case = case_of(layer.symmetry.resolve(ndim, 5), transposed)
            print(f"{layer}, input {list(called_with.args[0].shape)}")
            expanded = partial(on_expanded, partial(call_layer, torchs), case)
            assert_same(partial(call_layer, layer), expanded, (*called_with.args, layer.weight, layer.bias))
            met += 1
    assert met >= 2 * (1 + len(OF_FIVE_CHANNELS[ndim]))
