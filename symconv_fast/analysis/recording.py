"""Running a model while every operation with spatial extent is seen, and while it may run in another way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import Call, padding_call, read, remember_padding

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

Jump = tuple[Union[Fraction, float], ...]
"""Positions of the model's input from one position of a feature map to the next, on each axis; inf of a global pool."""


class RefusedError(ValueError):
    """A model that runs, but cannot be measured."""


class Names:
    """Which module of a model runs, by forward hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Keep `running` up to date."""
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(lambda m, _: self.running.append(m)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            self.running.clear()
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self.running.pop()

    def here(self, operation: str) -> tuple[str, str]:
        """The name of the innermost module, and its class where it has no children; else the operation."""
        module = self.running[-1] if self.running else self.model
        leaf = next(module.children(), None) is None and module is not self.model
        shown = operation.removeprefix("_").removesuffix("_with_indices")
        return self.names.get(module) or "(model)", type(module).__name__ if leaf else shown


class Recorder(TorchDispatchMode):
    """Has `watch` see each spatial call of a model with its output, in the order of execution.

    Args:
        ndim: spatial dims of the model's input.
        watch: called with the call, its output and the operator's name.
        mirror: dims, from the end, along which convolution kernels are mirrored.
        circle: padding comes from the other end of the input.
        shapes_only: what leaves shapes alone is not computed. On the meta device that takes most of the time.
    """

    def __init__(
        self,
        ndim: int,
        watch: Callable[[Call, Tensor, str], None],
        *,
        mirror: Sequence[int] = (),
        circle: bool = False,
        shapes_only: bool = False,
    ) -> None:
        super().__init__()
        self.ndim, self.watch, self.mirror, self.circle = ndim, watch, mirror, circle
        self.shapes_only = shapes_only
        self.random: set[str] = set()
        self.read_otherwise: set[object] = set()
        """Tokens of paddings that something other than a convolution, pooling or padding reads."""
        self._paused, self._batch = False, 1

    def run(self, model: nn.Module, inputs: Sequence[Any]) -> Any:
        """The model's output."""
        for x in inputs:
            if isinstance(x, Tensor) and x.dim() == self.ndim + 2:
                self._batch = x.shape[0]
                x._symconv_jump = (Fraction(1),) * self.ndim  # type: ignore[attr-defined]
        with torch.no_grad(), _eagerly(), _CircularPads(self), self:
            return model(*inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:  # which autograd takes apart, but it is left out here
                return func.decompose(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in name:
            self.random.add(name)  # attention has the tag for a dropout that is off in eval mode
        call = read(func, args, kwargs, self.ndim, self._batch)
        if call is None:
            shape_kept = _shape_kept(func, args, kwargs) if self.shapes_only else None
            output = func(*args, **kwargs) if shape_kept is None else shape_kept
            if func is torch.ops.aten.unsqueeze.default:
                _carry_padding(args[0], output, args[1])
            else:
                self._note_reading((args, kwargs))
            if not self.shapes_only:
                self._spread(output, (args, kwargs))
            return output
        return self._see(call, name, lambda: func(*args, **kwargs))

    def pad_around(self, x: Tensor, pad: Sequence[int]) -> Tensor:
        """`F.pad(mode="circular")`, which the dispatcher would see as many slices."""

        def repeat(y: Tensor) -> Tensor:
            return F.pad(y, list(pad), mode="circular")

        # The mode is still on here, unlike in `__torch_dispatch__`.
        self._paused = True
        try:
            call = padding_call(x, pad, self.ndim, repeat) if x.dim() >= self.ndim + 1 else None
            return repeat(x) if call is None else self._see(call, "pad", lambda: repeat(x))
        finally:
            self._paused = False

    def _see(self, call: Call, name: str, compute: Callable[[], Any]) -> Any:
        if call.kind not in ("windows", "padded"):
            self._note_reading(call.input)
        filtered = call.settings.get("what") == "convolution" or call.kind in ("transposed", "flattened")
        if self.circle:
            # The sizes of the output come from the call as it is.
            plain = compute()
            call.see(_first(plain))
            output = call.on_circle(call.source)
            whole = output if isinstance(plain, Tensor) else (output, *plain[1:])
        elif self.mirror and filtered:
            whole = call.repeat(call.input, self.mirror)
        else:
            whole = compute()
        output = _first(whole)
        if 0 in output.shape[-self.ndim :]:
            raise RefusedError(f"{name} gives an output of shape {tuple(output.shape)}, without positions")
        call.see(output)
        jump = getattr(call.input, "_symconv_jump", (Fraction(1),) * self.ndim)
        steps = [axis.step for axis in call.axes]
        output._symconv_jump = tuple(math.inf if s is None else j * s for j, s in zip(jump, steps))  # type: ignore[attr-defined]
        if call.kind == "padded":
            remember_padding(output, call)
        self.watch(call, output, name)
        return whole

    def _note_reading(self, inputs: Any) -> None:
        for x in _tensors(inputs):
            if hasattr(x, "_symconv_padded"):
                self.read_otherwise.update(x._symconv_padded[3])

    def _spread(self, outputs: Any, inputs: Any) -> None:
        """The finest grid among the inputs is that of the output."""
        jumps = [x._symconv_jump for x in _tensors(inputs) if hasattr(x, "_symconv_jump")]
        if jumps:
            for output in _tensors(outputs):
                if not hasattr(output, "_symconv_jump"):
                    output._symconv_jump = tuple(map(min, zip(*jumps)))  # type: ignore[attr-defined]


class _CircularPads(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.pad and _mode(*args, **(kwargs or {})) == "circular":
            return self.recorder.pad_around(*_padded(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _mode(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> str:
    return mode


def _padded(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Tensor, Any]:
    return input, pad


def _tensors(values: Any) -> Iterator[Tensor]:
    """In arguments of an operator: tensors, and sequences and keywords of them."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


def _shape_kept(func: Any, args: Any, kwargs: Any) -> Any:
    """For an operation whose output has the shape of its inputs, such as x + y, a tensor of that shape; else None."""
    name = func._schema.name.partition("::")[2]
    if not args or not isinstance(args[0], Tensor):
        return None
    if name.endswith("_") and not name.startswith("resize") and len(func._schema.returns) == 1:
        return args[0]
    if "batch_norm" in name and "backward" not in name:
        rest = [args[0].new_empty(0) for _ in func._schema.returns[1:]]
        return (torch.empty_like(args[0]), *rest) if rest else torch.empty_like(args[0])
    if torch.Tag.pointwise in func.tags and len(func._schema.returns) == 1:
        shapes = [x.shape for x in _tensors((args, kwargs))]
        return args[0].new_empty(torch.broadcast_shapes(*shapes))
    return None


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _carry_padding(x: Any, output: Tensor, dim: int) -> None:
    """Through the unsqueeze that torch puts before 1-D pooling."""
    known = getattr(x, "_symconv_padded", None)
    if known is not None:
        source, pads, repad, tokens = known
        at = dim % output.dim()
        again = lambda y: repad(y.squeeze(at)).unsqueeze(at)  # noqa: E731
        output._symconv_padded = (source.unsqueeze(at), pads, again, tokens)  # type: ignore[attr-defined]


def _eagerly() -> Any:
    """What torch.compile made of a module hides its operations."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance is not None else nullcontext()
