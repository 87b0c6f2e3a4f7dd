# A family of "kernels" in torch for the CUDA backend: it computes from addresses and strides alone, as kernels do.
"""`Fake` stands in for the native module. Its launches see what a kernel sees: integers, and the fields of the planner.

So what is around the kernels is tested without them: layouts, strides, alignment, plans that are kept, errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Case
from torch import Tensor

from symconv_fast import dispatch, ops
from symconv_fast.activation import ACTIVATIONS
from symconv_fast.backends.cuda import families, native
from symconv_fast.backends.cuda.limits import Limits
from symconv_fast.problem import Problem

PLAIN = Case(ties=((3, 8),), channels=16, spatial=(6, 7), padding=(1, 1), bias=True)
LAST = replace(PLAIN, layouts=("channels_last",) * 3, result_last=True)

AXES = {"x": "nczyx", "w": "guczyx", "y": "nczyx"}


class Planner:
    """A planner whose fields are strides, and the problem by its number."""

    def __init__(self, layout: str) -> None:
        self.LAYOUT = layout
        self.problems: list[tuple[Problem, str]] = []
        self.refuses: str | None = None

    def refusal(self, problem: Problem, op: str, limits: Limits) -> str | None:
        return self.refuses

    def parameters(self, call: families.Request) -> dict[str, int]:
        self.problems.append((call.problem, call.op))
        fields = {f"{t}_{a}": s for t in AXES for a, s in zip(AXES[t], call.strides[t])}
        return {**fields, "number": len(self.problems) - 1, "activation": call.activation, "bias": call.bias}

    def kernels(self, problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
        return (f"of {op}",)

    def seconds(self, problem: Problem, op: str, limits: Limits) -> float:
        return 1e-6


def memory(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What lies at an address, as a tensor."""
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides))
    buffer = (ctypes.c_char * (reach * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype).as_strided(shape, strides)


class Fake:
    """The native module: `launches` are the addresses that were given, `error` and `wrong` what is reported."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.launches: list[tuple[int, ...]] = []
        self.plans, self.error, self.wrong, self.work = 0, "", "", 0
        self.buffers: list[tuple[int, int, bool]] = []
        fake = self

        class Params:
            def __init__(self, **fields: int) -> None:
                self.fields = fields
                fake.plans += 1

            def check(self) -> str:
                return fake.wrong

            def workspace(self) -> int:
                return fake.work

            def launch(self, *places: int) -> str:
                fake.launches.append(places)
                if not fake.error:
                    fake.compute(self.fields, *places[:5])
                return fake.error

        self.ConvParams = self.WgradParams = self.PatchParams = self.HopperParams = self.DepthwiseParams = (
            Params
        )

    def variants(self) -> list[dict[str, Any]]:
        return [
            {"family": "conv", "name": "of fprop", "arch": 80},
            {"family": "hopper", "name": "of fprop", "arch": 90},
        ]

    def clear_buffers(self) -> None:
        self.buffers.clear()

    def register_buffer(self, address: int, size: int, writable: bool) -> None:
        self.buffers.append((address, size, writable))

    def compute(self, f: Mapping[str, int], x: int, w: int, bias: int, y: int, work: int) -> None:
        """The pass in float64, from where the planner said that its tensors are."""
        problem, op = self.planner.problems[f["number"]]
        at = {"fprop": (x, w, y), "dgrad": (y, w, x), "wgrad": (x, y, w)}[op]
        shapes = {"x": problem.input_shape, "w": problem.weight_shape, "y": problem.output_shape}
        seen = {name: self._tensor(problem, name, shapes[name], f, place) for name, place in zip("xwy", at)}
        # No autograd here: inside an operator nothing is recorded.
        tensors = {name: tensor.double() for name, tensor in seen.items()}
        filters = problem.layer_ties.expand(tensors["w"], 0)
        geometry = (
            problem.stride,
            problem.padding,
            problem.dilation,
            False,
            problem.output_padding,
            problem.groups,
        )
        assert bool(bias) == bool(f["bias"])
        if op == "fprop":
            b = memory(bias, (problem.out_channels,), (1,), problem.dtype).double() if bias else None
            output = torch.convolution(tensors["x"], filters, b, *geometry)
            name = (None, *ACTIVATIONS)[f["activation"]]
            seen["y"].copy_(output if name is None else ACTIVATIONS[name][0](output))
            return
        gx, gw, _ = torch.ops.aten.convolution_backward(
            tensors["y"], tensors["x"], filters, None, *geometry, [op == "dgrad", op == "wgrad", False]
        )
        seen["x" if op == "dgrad" else "w"].copy_(gx if op == "dgrad" else problem.layer_ties.adjoint(gw, 0))

    @staticmethod
    def _tensor(p: Problem, name: str, shape: tuple[int, ...], f: Mapping[str, int], place: int) -> Tensor:
        strides = [f[f"{name}_{axis}"] for axis in AXES[name]]
        if name == "w":
            group, row, *strides = strides
            rows = p.unique // p.groups
            assert rows == 1 or p.groups == 1 or group == rows * row, "rows of groups follow each other"
            strides = [group if rows == 1 else row, *strides]
        spatial = len(shape) - 2
        return memory(place, shape, (*strides[:2], *strides[5 - spatial :]), p.dtype)


@contextmanager
def stand_in(module: Any) -> Iterator[Any]:
    """Have the backend take tensors on the CPU, and run them by `module`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "STAND_IN", module)
        forget()
        yield module
    forget()


def forget() -> None:
    """Ask again which backends there are, and choose anew."""
    from symconv_fast.backends.cuda import run

    dispatch.load.cache_clear()
    dispatch._choose.cache_clear()
    run.bind.cache_clear()
    ops.forget_plans()


@contextmanager
def fake_family(layout: str = families.CHANNELS_LAST) -> Iterator[Fake]:
    """Every pass of every algorithm by the fake."""
    planner = Planner(layout)
    with stand_in(Fake(planner)) as fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "planner", lambda algorithm, op: planner)
        forget()
        yield fake
