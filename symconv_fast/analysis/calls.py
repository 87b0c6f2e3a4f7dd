"""Operations of torch with spatial extent, as the dispatcher sees them: read, and run again in another way.

At that level a module, a function and an exported graph look alike, and the arguments are complete. A `Call` can be
run with mirrored kernels, and on a circle, where what is padding comes from the other end of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..activation import activate
from ..ties import Ties, decode
from .geometry import Adaptive, Axis, Flattened, Padded, Resampled, Transposed, Windows

aten = torch.ops.aten
Pads = tuple[tuple[int, int], ...]
"""(left, right) for each spatial axis, the first axis first."""


@dataclass
class Call:
    """One operation on `input`, whose last `ndim` dims are spatial."""

    kind: str
    input: Tensor
    ndim: int
    settings: dict[str, Any]
    repeat: Callable[[Tensor, Sequence[int]], Tensor]
    """The operation on another input, with its kernels mirrored along the dims given."""
    source: Tensor
    """What was padded to give `input`, or `input` itself."""
    pads: Pads
    repad: Callable[[Tensor], Tensor]
    absorbs: tuple[object, ...] = ()
    """The tokens of the paddings that gave `input`."""
    token: object = field(default_factory=object)
    ties: Ties | None = None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    axes: tuple[Axis, ...] = field(default=())
    """What it does along each axis, the first first; known when the size of the output is."""

    def see(self, output: Tensor) -> None:
        """Fill in `axes`."""
        sizes = self.source.shape[-self.ndim :]
        gone = output.dim() < self.input.dim()
        outs = [1] * self.ndim if gone else output.shape[-self.ndim :]
        self.axes = tuple(self._axis(i, int(n), int(out)) for i, (n, out) in enumerate(zip(sizes, outs)))

    def _axis(self, i: int, n: int, out: int) -> Axis:
        s = {name: value[i] if isinstance(value, tuple) else value for name, value in self.settings.items()}
        left, right = self.pads[i]
        if self.kind == "windows":
            fields = {key: s[key] for key in ("kernel", "stride", "dilation", "ceil_mode")}
            pads = {"left": left + s["padding"], "right": right + s["padding"]}
            # Pooling passes over its own padding; what was padded before counts.
            return Windows("convolution" if left or right else s["what"], n, out, **pads, **fields)
        if self.kind == "slice":
            return Windows("slice", n, out, 1, s["stride"], -s["start"], 0)
        if self.kind == "transposed":
            return Transposed(
                n, out, s["kernel"], s["stride"], s["padding"], s["dilation"], s["output_padding"]
            )
        if self.kind == "resampled":
            return Resampled(n, out, s["mode"], s["align_corners"], s["scale"])
        if self.kind == "padded":
            return Padded(n, left, right)
        return Flattened(n) if self.kind == "flattened" else Adaptive(n, out)

    def mirrored(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """On a source `x`, with kernels mirrored along `dims`."""
        return self.repeat(self.repad(x), dims)

    def on_circle(self, x: Tensor) -> Tensor:
        """On a source `x` whose ends join; as it is where that means nothing."""
        if self.kind == "windows":
            return self._windows_on_circle(x)
        if self.kind == "transposed":
            return self._transposed_on_circle(x)
        if self.kind == "resampled":
            return self._resampled_on_circle(x)
        return self.repeat(self.repad(x), ())

    def _windows_on_circle(self, x: Tensor) -> Tensor:
        for i, axis in enumerate(self.axes):
            assert isinstance(axis, Windows)
            x = _around(x, i - self.ndim, -axis.left, (axis.out - 1) * axis.stride + axis.extent)
        return self.settings["bare"](x)

    def _transposed_on_circle(self, x: Tensor) -> Tensor:
        full = self.settings["bare"](x)
        for i, axis in enumerate(self.axes):
            assert isinstance(axis, Transposed)
            dim, round_ = i - self.ndim, axis.n * axis.stride
            places = torch.arange(full.shape[dim], device=x.device) % round_
            shape = list(full.shape)
            shape[dim] = max(round_, 1)
            full = full.new_zeros(shape).index_add(full.dim() + dim, places, full)
            full = _around(full, dim, axis.left, axis.out)
        return self.settings["finish"](full)

    def _resampled_on_circle(self, x: Tensor) -> Tensor:
        crops = []
        for i, axis in enumerate(self.axes):
            assert isinstance(axis, Resampled)
            wide, crop = _margins(axis)
            x = _around(x, i - self.ndim, -wide, axis.n + 2 * wide)
            crops.append(crop)
        sizes = [axis.out + 2 * crop for axis, crop in zip(self.axes, crops)]
        output = self.settings["resize"](x, sizes)
        for i, (axis, crop) in enumerate(zip(self.axes, crops)):
            output = output.narrow(i - self.ndim, crop, axis.out)
        return output


def _margins(axis: Resampled) -> tuple[int, int]:
    """Whole steps of both sizes, at least two positions of either: as far as any kernel reaches."""
    if axis.align_corners or axis.shift_fault() is not None:
        return 0, 0
    step = Fraction(axis.n, axis.out)
    return 2 * step.numerator, 2 * step.denominator


def _around(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Positions start, start + 1, ... of a dim whose ends join."""
    at = (torch.arange(length, device=x.device) + start) % x.shape[dim]
    return x.index_select(x.dim() + dim, at)


def bind(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by the names of the operator's schema."""
    found = {}
    for i, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = args[i] if i < len(args) else kwargs.get(argument.name, default)
    return found


def read(func: Any, args: Sequence[Any], kwargs: dict[str, Any], ndim: int, batch: int) -> Call | None:
    """The call of an operation with `ndim` spatial dims, or None for whatever leaves positions where they are."""
    name = func._schema.name.partition("::")[2]
    reader = _READERS.get(name)
    if reader is None and name.startswith(("upsample_", "_upsample_")) and "backward" not in name:
        reader = _resampling
    if reader is None:
        return None
    bound = bind(func, args, kwargs)
    x = bound.get("input", bound.get("self"))
    if not isinstance(x, Tensor) or x.dim() < ndim + 1:
        return None
    if reader is _view and x.shape[0] != batch:
        return None  # not a batch of maps: tokens, say, whose heads are joined
    return reader(func, name, x, bound, ndim)


def _call(kind: str, x: Tensor, ndim: int, settings: dict[str, Any], repeat: Any, **more: Any) -> Call:
    padded = (x, ((0, 0),) * ndim, _same, ())
    if kind in ("windows", "padded"):
        padded = getattr(x, "_symconv_padded", padded)
    return Call(kind, x, ndim, settings, repeat, *padded, **more)


def _same(x: Tensor) -> Tensor:
    return x


def _last(values: Sequence[Any], ndim: int) -> tuple[Any, ...]:
    """Of the spatial axes; one value stands for all."""
    return tuple(values)[-ndim:] if len(values) > 1 else tuple(values) * ndim


def _convolution(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    weight, transposed = b["weight"], b["transposed"]
    if weight.dim() != ndim + 2:
        return None
    ties = b.get("ties")
    if ties is not None:
        ties = decode(ndim, b["groups"], ties)
        weight = ties.expand(weight, 1 if transposed else 0)
    activation = b.get("activation")
    stride, padding, dilation, extra = (
        _last(b[key], ndim) for key in ("stride", "padding", "dilation", "output_padding")
    )
    none = (0,) * ndim

    def run(y: Tensor, w: Tensor, pads: Sequence[int], more: Sequence[int]) -> Tensor:
        return aten.convolution(y, w, None, stride, pads, dilation, transposed, more, b["groups"])

    def finish(y: Tensor) -> Tensor:
        y = y if b["bias"] is None else y + b["bias"].reshape(-1, *[1] * ndim)
        return activate(y, activation) if activation else y

    def repeat(y: Tensor, dims: Sequence[int]) -> Tensor:
        return finish(run(y, weight.flip(tuple(dims)) if dims else weight, padding, extra))

    kernel = tuple(weight.shape[2:])
    settings: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        settings |= {"output_padding": extra, "bare": lambda y: run(y, weight, none, none), "finish": finish}
    else:
        settings |= {"what": "convolution", "ceil_mode": False}
        settings |= {"bare": lambda y: finish(run(y, weight, none, none))}
    kind = "transposed" if transposed else "windows"
    return _call(kind, x, ndim, settings, repeat, ties=ties, kernel=kernel, stride=stride)


def _pooling(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    """torch pools 1-D inputs as 2-D ones of one row."""
    dims = 3 if "3d" in name else 2
    if dims < ndim or any(size != 1 for size in x.shape[x.dim() - dims : x.dim() - ndim]):
        return None
    kernel = _last(b["kernel_size"], dims)
    stride = _last(b["stride"] or kernel, dims)
    padding, dilation = _last(b["padding"], dims), _last(b.get("dilation") or [1], dims)
    average = "avg" in name
    rest = (b["count_include_pad"], b["divisor_override"]) if average else ()
    # With a divisor of its own an average depends on what its window reads, as a maximum does.
    divided = average and b["count_include_pad"] and not b["divisor_override"]

    def run(y: Tensor, pads: Sequence[int], ceil_mode: bool) -> Tensor:
        spread = () if average else (dilation,)
        return _first(func(y, kernel, stride, pads, *spread, ceil_mode, *rest))

    settings = {
        "what": "average" if divided else "pooling",
        "kernel": kernel[-ndim:],
        "stride": stride[-ndim:],
        "padding": padding[-ndim:],
        "dilation": dilation[-ndim:],
        "ceil_mode": b["ceil_mode"],
        "bare": lambda y: run(y, (0,) * dims, False),
    }
    return _call(
        "windows",
        x,
        ndim,
        settings,
        lambda y, _: run(y, padding, b["ceil_mode"]),
        kernel=kernel[-ndim:],
        stride=stride[-ndim:],
    )


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _adaptive(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    dims = 3 if "3d" in name else 2
    if dims < ndim or any(size != 1 for size in x.shape[x.dim() - dims : x.dim() - ndim]):
        return None
    return _call("adaptive", x, ndim, {}, lambda y, _: _first(func(y, b["output_size"])))


def _reduction(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    """A mean or a maximum over all positions."""
    dims = {dim % x.dim() for dim in b["dim"] or ()}
    spatial = set(range(x.dim() - ndim, x.dim()))
    # torch pools 1-D inputs as 2-D ones of one row.
    if (
        x.dim() < ndim + 2
        or not dims >= spatial
        or any(dim < 2 or x.shape[dim] > 1 for dim in dims - spatial)
    ):
        return None
    return _call("adaptive", x, ndim, {}, lambda y, _: func(y, b["dim"], b["keepdim"]))


def _resampling(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    if x.dim() != ndim + 2 or "output_size" not in b:
        return None
    names = [key for key in ("scales_d", "scales_h", "scales_w", "scales") if key in b]
    factors = tuple(b[key] for key in names)[-ndim:]
    if "nearest" in name:
        mode = "nearest-exact" if "exact" in name else "nearest"
    else:
        mode = "antialias" if name.endswith("_aa") else "cubic" if "cubic" in name else "linear"
    corners = bool(b.get("align_corners"))
    middle = (corners,) if "align_corners" in b else ()

    def resize(y: Tensor, sizes: Sequence[int]) -> Tensor:
        return func(y, sizes, *middle, *factors)

    settings = {
        "mode": mode,
        "align_corners": corners,
        "scale": tuple(None if not factor else 1 / factor for factor in factors),
        "resize": resize,
    }
    return _call("resampled", x, ndim, settings, lambda y, _: resize(y, b["output_size"]))


def _padding(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    if name == "constant_pad_nd":
        return padding_call(x, b["pad"], ndim, lambda y: func(y, b["pad"], b["value"]))
    return padding_call(x, b["padding"], ndim, lambda y: func(y, b["padding"]))


def padding_call(x: Tensor, pad: Sequence[int], ndim: int, repeat: Callable[[Tensor], Tensor]) -> Call | None:
    """Padding of `pad`, in torch's order: the last axis first; None where it leaves the spatial axes alone."""
    flat = [*pad, *[0] * (2 * ndim)]
    own = tuple((flat[2 * i], flat[2 * i + 1]) for i in reversed(range(ndim)))
    if not any(map(any, own)):
        return None
    call = _call("padded", x, ndim, {}, lambda y, _: repeat(y))
    call.pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(call.pads, own))
    return call


def remember_padding(output: Tensor, call: Call) -> None:
    """Let what reads `output` know what was padded."""
    earlier = call.repad
    again = lambda y: call.repeat(earlier(y), ())  # noqa: E731
    output._symconv_padded = (call.source, call.pads, again, (*call.absorbs, call.token))  # type: ignore[attr-defined]


def _slice(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    """A slice with a step; what slices without one do shows in what is measured."""
    axis = b["dim"] % x.dim() - (x.dim() - ndim)
    if b["step"] == 1 or axis < 0 or x.dim() != ndim + 2:
        return None
    n = x.shape[b["dim"]]
    start = slice(b["start"], b["end"]).indices(n)[0]
    stride = tuple(b["step"] if i == axis else 1 for i in range(ndim))
    begin = tuple(start if i == axis else 0 for i in range(ndim))
    return _call(
        "slice",
        x,
        ndim,
        {"stride": stride, "start": begin},
        lambda y, _: func(y, b["dim"], b["start"], b["end"], b["step"]),
        kernel=(1,) * ndim,
        stride=stride,
    )


def _view(func: Any, name: str, x: Tensor, b: dict[str, Any], ndim: int) -> Call | None:
    """(N, C, *S) to (N, C * S): what a linear layer reads next."""
    size = list(b["size"])
    sites = x[0, 0].numel() if x.dim() == ndim + 2 and 0 not in x.shape[:2] else 1
    if sites == 1 or len(size) != 2 or size[0] not in (x.shape[0], -1) or size[1] not in (-1, x[0].numel()):
        return None

    def repeat(y: Tensor, dims: Sequence[int]) -> Tensor:
        # A linear layer with mirrored weights sees as much as one with its own that is given the map mirrored back.
        return func((y.flip(tuple(dims)) if dims else y).contiguous(), size)

    return _call("flattened", x, ndim, {}, repeat)


_READERS: dict[str, Callable[[Any, str, Tensor, dict[str, Any], int], Call | None]] = {
    "convolution": _convolution,
    "fprop": _convolution,
    "fprop_activated": _convolution,
    "slice": _slice,
    "view": _view,
    "_unsafe_view": _view,
    "constant_pad_nd": _padding,
    "mean": _reduction,
    "amax": _reduction,
}
_READERS |= {f"{kind}_pad{n}d": _padding for kind in ("reflection", "replication") for n in (1, 2, 3)}
_READERS |= {f"max_pool{n}d_with_indices": _pooling for n in (2, 3)} | {
    f"avg_pool{n}d": _pooling for n in (2, 3)
}
_READERS |= {f"{kind}{n}d": _adaptive for kind in ("_adaptive_avg_pool", "adaptive_max_pool") for n in (2, 3)}
