# The independent oracle: hand-written expansion, float64 answers, memory layouts, and the check of one operator.
"""Everything that decides whether a backend is right, without using the package's own idea of symmetry.

`expand` is written from the published order of the output channels, the answers come from torch.nn.functional in
float64 and from autograd. Only `Problem` (to ask `can_run`) and the operators themselves are taken from the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import symconv_fast
from symconv_fast import dispatch
from symconv_fast.problem import Problem, suggests_channels_last

OPS = ("fprop", "dgrad", "wgrad")
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded", "scalar")

# Mirrored copies of a tie in the published order: W, H, D are the last, second last and third last dimension.
COPIES = {
    1: ("W",),
    2: ("H",),
    4: ("D",),
    3: ("W", "H", "HW"),
    5: ("W", "D", "DW"),
    6: ("H", "D", "DH"),
    7: ("W", "H", "D", "DH", "DW", "HW", "DHW"),
    0: (),
}
DIM = {"W": -1, "H": -2, "D": -3}


@dataclass(frozen=True)
class Case:
    """One problem with the layouts of its tensors. `repr` of it is a line of Python that makes it again."""

    ndim: int = 2
    ties: tuple[tuple[int, int], ...] = ((1, 4),)
    channels: int = 3
    spatial: tuple[int, ...] = (5, 7)
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    output_padding: tuple[int, ...] = (0, 0)
    transposed: bool = False
    groups: int = 1
    batch: int = 2
    bias: bool = True
    layouts: tuple[str, str, str] = ("contiguous", "contiguous", "contiguous")  # of x, w and gy
    result_last: bool = False
    threads: int = 1
    seed: int = 0

    @property
    def unique(self) -> int:
        """Rows of the reduced weight."""
        return sum(rows for _, rows in self.ties)

    @property
    def out_channels(self) -> int:
        return sum(rows * (1 + len(COPIES[mask])) for mask, rows in self.ties)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        if self.transposed:
            return (self.channels, self.unique // self.groups, *self.kernel)
        return (self.unique, self.channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        sizes = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation, self.output_padding)
        if self.transposed:
            out = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes]
        else:
            out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in sizes]
        return (self.batch, self.out_channels, *out)

    @property
    def static(self) -> tuple[object, ...]:
        """Arguments of the operators from `ties` on."""
        flat = [value for segment in self.ties for value in segment]
        geometry = (self.stride, self.padding, self.dilation, self.output_padding)
        return (flat, *map(list, geometry), self.transposed, self.groups, self.result_last)


class Tensors(NamedTuple):
    """Arguments of the three operators."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    gy: Tensor


# --- expansion ---------------------------------------------------------------------------------------------------


def expand(weight: Tensor, case: Case) -> Tensor:
    """Ordinary filters: (U, C/groups, *K) -> (out, C/groups, *K), along dim 1 for transposed layers."""
    if case.transposed:
        return _expand_group(weight.transpose(0, 1), case).transpose(0, 1)
    return torch.cat([_expand_group(rows, case) for rows in weight.chunk(case.groups)])


def _expand_group(rows: Tensor, case: Case) -> Tensor:
    filters, start = [rows], 0
    for mask, count in case.ties:
        segment = rows[start : start + count // case.groups]
        filters += [segment.flip([DIM[axis] for axis in copy]) for copy in COPIES[mask]]
        start += count // case.groups
    return torch.cat(filters)


# --- data and answers --------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def make_tensors(case: Case, dtype: torch.dtype) -> Tensors:
    """Random values in float64 that `dtype` holds exactly; stride-0 layouts repeat values.

    16-bit types get small integers: every sum of a correct kernel is then exact in float32, and one rounding is all
    that may separate it from the oracle. Repeated values get them too, since rounding errors of equal terms add up.
    """
    generator = torch.Generator().manual_seed(case.seed)
    integers = torch.tensor([-3, -2, -1, 1, 2, 3])
    exact = dtype.itemsize == 2 or not {"scalar", "expanded"}.isdisjoint(case.layouts)

    def values(shape: tuple[int, ...], layout: str = "contiguous") -> Tensor:
        base = shape
        if layout == "scalar":
            base = (1,) * len(shape)
        elif layout == "expanded":
            base = (1, shape[1], *(1,) * len(shape[2:]))
        if exact:
            drawn = integers[torch.randint(6, base, generator=generator)]
        else:
            drawn = torch.randn(base, generator=generator, dtype=torch.float64).to(dtype)
        return drawn.double().expand(shape)

    x, w, gy = (
        values(shape, layout)
        for shape, layout in zip((case.input_shape, case.weight_shape, case.output_shape), case.layouts)
    )
    return Tensors(x, w, values((case.out_channels,)) if case.bias else None, gy)


def convolve(case: Case, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own convolution with ordinary filters, in the dtype of the tensors."""
    if case.transposed:
        function = getattr(F, f"conv_transpose{case.ndim}d")
        args = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    else:
        function = getattr(F, f"conv{case.ndim}d")
        args = (case.stride, case.padding, case.dilation, case.groups)
    return function(x, filters, bias, *args)


@lru_cache(maxsize=256)
def expected(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Answers of the three operators in float64, for the values that `make_tensors` gives."""
    t = make_tensors(case, dtype)
    x, w = t.x.clone().requires_grad_(), t.w.clone().requires_grad_()
    y = convolve(case, x, expand(w, case), t.b)
    assert y.shape == case.output_shape
    gx, gw = torch.autograd.grad(y, [x, w], t.gy)
    return {"fprop": y.detach(), "dgrad": gx, "wgrad": gw}


# --- layouts -----------------------------------------------------------------------------------------------------


def arrange(values: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """`values` in `dtype` with the strides of a layout; what lies around a slice is NaN."""
    ndim = values.dim() - 2
    if layout == "scalar":
        return values[(slice(0, 1),) * (ndim + 2)].to(dtype).expand(values.shape)
    if layout == "expanded":
        return values[(slice(0, 1), slice(None), *[slice(0, 1)] * ndim)].to(dtype).expand(values.shape)
    if layout == "channels_last":
        # Copied, since `contiguous` would leave a tensor of one channel with a stride of its own for channels.
        inner = values.movedim(1, -1)
        return torch.empty(inner.shape, dtype=dtype, device=values.device).copy_(inner).movedim(-1, 1)
    if layout == "transposed":
        return values.to(dtype).movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "sliced":
        size = [n + 2 for n in values.shape]
        around = torch.full(size, float("nan"), dtype=dtype, device=values.device)
        if values.shape[1] % 2:
            around = around.movedim(1, -1).contiguous().movedim(-1, 1)
        inside = around[(slice(1, -1),) * len(size)]
        inside.copy_(values)
        return inside
    return values.to(dtype).contiguous()


def arranged(case: Case, dtype: torch.dtype, device: str = "cpu") -> Tensors:
    """The arguments in the layouts of the case."""
    t = make_tensors(case, dtype)
    x, w, gy = (arrange(v.to(device), layout, dtype) for v, layout in zip((t.x, t.w, t.gy), case.layouts))
    return Tensors(x, w, None if t.b is None else t.b.to(device, dtype), gy)


# --- running and checking ----------------------------------------------------------------------------------------


def problem_of(case: Case, dtype: torch.dtype, op: str, device: str = "cpu") -> Problem:
    """What dispatch is asked for: layout of the first argument and of the result."""
    layout = case.layouts[0 if op == "fprop" else 2]
    shape = case.input_shape if op == "fprop" else case.output_shape
    last = suggests_channels_last(arrange(torch.zeros(shape), layout, dtype))
    sizes = (case.input_shape, case.weight_shape)
    return Problem.create(sizes, case.static, last, dtype, device)


@lru_cache(maxsize=1)
def algorithms() -> tuple[tuple[str, str], ...]:
    """(backend, algorithm) of this installation; minimal filtering counts twice: "winograd f2" and "winograd f4"."""
    return tuple(
        (name, f"{algorithm}{level}")
        for name, module in dispatch.available().items()
        for algorithm in module.ALGORITHMS
        for level in ((" f2", " f4") if algorithm.endswith("winograd") else ("",))
    )


@contextmanager
def pinned(backend: str, algorithm: str) -> Iterator[str]:
    """Pin one of `algorithms()`, and give the name that the backend has for it."""
    name, _, level = algorithm.partition(" ")
    before = symconv_fast.allow_winograd if level else None
    if level:
        symconv_fast.allow_winograd = level
    try:
        with symconv_fast.backend(backend, name):
            yield name
    finally:
        if level:
            symconv_fast.allow_winograd = before


def candidates(
    case: Case, dtype: torch.dtype, op: str, device: str = "cpu"
) -> list[tuple[str, str, str | None]]:
    """(backend, algorithm, None or the reason why it cannot run) for all that this installation has."""
    problem, modules, found = problem_of(case, dtype, op, device), dispatch.available(), []
    for backend, algorithm in algorithms():
        with pinned(backend, algorithm) as name:
            found.append((backend, algorithm, modules[backend].can_run(problem, op, name)))
    return found


def call(case: Case, op: str, t: Tensors) -> Tensor:
    """One operator."""
    ops = torch.ops.symconv_fast
    if op == "fprop":
        return ops.fprop(t.x, t.w, t.b, *case.static)
    if op == "dgrad":
        return ops.dgrad(t.gy, t.w, list(case.input_shape), *case.static)
    return ops.wgrad(t.gy, t.x, list(case.weight_shape), *case.static)


KEYS = {1: "h", 2: "v", 4: "z", 3: "hv", 5: "hz", 6: "vz", 7: "hvz"}


def make_layer(case: Case, dtype: torch.dtype, weight: Tensor) -> Any:
    """The layer of a case, with this weight, and the bias of the case."""
    counts = {KEYS[mask]: rows << mask.bit_count() for mask, rows in case.ties if mask}
    kind = f"SymmetricConv{'Transpose' if case.transposed else ''}{case.ndim}d"
    more = {"output_padding": case.output_padding} if case.transposed else {}
    layer = getattr(symconv_fast, kind)(
        case.channels, case.out_channels, case.kernel, case.stride, case.padding, dilation=case.dilation,
        groups=case.groups, bias=case.bias, symmetry=counts, dtype=dtype, **more,
    )  # fmt: skip
    layer.weight = torch.nn.Parameter(weight)
    bias = make_tensors(case, dtype).b
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def run(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str, device: str = "cpu") -> Tensor:
    """The operator with the backend and algorithm pinned; checks that it leaves its arguments alone."""
    t, args = make_tensors(case, dtype), arranged(case, dtype, device)
    with pinned(backend, algorithm):
        result = call(case, op, args)
    for name in ("x", "w", "gy"):
        tensor, values = getattr(args, name), getattr(t, name)
        assert torch.equal(tensor.double().cpu(), values), f"{op} changed its argument {name}"
    return result


def tolerance(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str) -> float | Tensor:
    """Largest error allowed: far below the size of a single product, above what the order of sums can do."""
    t, answer = make_tensors(case, dtype), expected(case, dtype)[op]
    outer = case.out_channels // case.groups
    terms = {
        "fprop": case.channels // case.groups * math.prod(case.kernel),
        "dgrad": outer * math.prod(case.kernel),
        "wgrad": case.batch * math.prod(case.output_shape[2:]) * 8,
    }[op]
    a, b = {"fprop": (t.x, t.w), "dgrad": (t.gy, t.w), "wgrad": (t.gy, t.x)}[op]
    product = float(a.abs().max() * b.abs().max())
    eps = torch.finfo(dtype).eps
    if dtype.itemsize == 2:
        # Native kernels round once. torch's own, on expanded filters or one for each tap, may round at every step.
        steps = algorithm == "expand"
        return eps * answer.abs() + (4 * eps * product * math.sqrt(terms) if steps else 0)
    bias = float(t.b.abs().max()) if t.b is not None and op == "fprop" else 0.0
    # F(4,3) may be four times as far off; where all products are equal (stride 0) it was 2.4 times.
    filtering = 4 if algorithm.endswith("winograd f4") else 1
    return 4 * eps * (filtering * product * terms + bias)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch.set_num_threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str, device: str = "cpu") -> None:
    """Fail, with a line that repeats it, unless the result is right in shape, dtype, strides and every value."""
    # Ordinary convolutions with one thread only: torch 2.13's can wait for ever when a shape comes again with another
    # number of threads.
    with threads(1 if algorithm == "expand" else case.threads):
        result = run(case, dtype, op, backend, algorithm, device)
    values = f"{str(dtype)[6:]} {op} {backend} '{algorithm}'"
    again = f'PYTHONPATH=. python tests/replay.py "{case!r}" {values}'
    answer = expected(case, dtype)[op]
    assert result.shape == answer.shape, f"shape {tuple(result.shape)}, not {tuple(answer.shape)}: {again}"
    assert result.dtype == dtype, f"dtype {result.dtype}: {again}"
    strides = _result_strides(result, case)
    assert result.stride() == strides, f"strides {result.stride()}, not {strides}: {again}"
    result = result.cpu()
    wrong = ~((result.double() - answer).abs() <= tolerance(case, dtype, op, backend, algorithm))
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} values are wrong, the first at {at}: "
            f"{result[at].item()!r}, not {answer[at].item()!r}. Repeat with: {again}"
        )


def _result_strides(result: Tensor, case: Case) -> tuple[int, ...]:
    last = case.result_last and case.ndim > 1
    shape = result.shape
    if not last:
        return torch.empty(shape, device="meta").stride()
    fmt = torch.channels_last if case.ndim == 2 else torch.channels_last_3d
    return torch.empty(shape, device="meta", memory_format=fmt).stride()
