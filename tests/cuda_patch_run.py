# Runs one tile of the patch or Hopper kernels on the stand-in: as a call of the module, or as a program of its own.
"""`convolve` calls the module that `cuda_host` builds; `program` compiles one tile, from changed sources if need be."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_host
import torch
from cuda_instructions import machine_objects
from oracle import Case
from torch import Tensor

from symconv_fast.backends.cuda import hopperdgrad, patch
from symconv_fast.backends.triton.geometry import pixels_view, weight_view
from symconv_fast.problem import Problem

SOURCES = cuda_host.ROOT / "csrc" / "cuda"
MAIN = Path(__file__).parent / "cuda_patch" / "main.cpp"
COMPILER = ("g++", "-std=c++20", "-O1", "-Wno-unknown-pragmas")

Planner = ModuleType
"""symconv_fast.backends.cuda.patch, hopper or hopperdgrad."""


def not_for_patches(good: Case) -> dict[str, list[Case]]:
    """Cases that no kernel with patches of pixels takes, made of one that it takes, by what it says of them."""
    ((mask, rows),) = good.ties
    axes = {"kernel": (3, 5), "stride": (1, 2), "dilation": (2, 1), "padding": (0, 1)}
    ties = (((mask, rows), (0, rows)), ((1, rows), (2, rows)), ((0, rows),))
    return {
        "its patches are for kernels of 3 x 3": [replace(good, **{name: axes[name]}) for name in axes],
        "it is for layers with one tie": [replace(good, ties=several) for several in ties],
        "8 does not divide the 12 input channels of a group": [replace(good, channels=12)],
    }


def parameters(planner: Planner, fields: Mapping[str, int]) -> Any:
    """The native parameters of a family."""
    name = planner.__name__.rpartition(".")[2].capitalize()
    return getattr(cuda_host.module(), f"{name}Params")(**fields)


def convolve(
    planner: Planner,
    problem: Problem,
    tile: int,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    activation: int = 0,
) -> Tensor:
    """The output by one tile, of x, w and bias in the dtype of the problem, x with its channels innermost.

    Raises:
        RuntimeError: the stand-in saw a fault.
    """
    x, w, bias = tensors
    inner = (problem.batch, *problem.out_spatial, problem.out_channels)
    y = torch.full(inner, torch.nan, dtype=problem.dtype).movedim(-1, 1)
    strides = {"x": pixels_view(x).stride(), "w": weight_view(w, problem).stride()}
    fields = patch.fields(problem, strides | {"y": pixels_view(y).stride()}, tile, activation)
    launch(parameters(planner, fields), (x, w, bias), y)
    return y


def gradient(problem: Problem, tile: int, grad: Tensor, w: Tensor) -> Tensor:
    """The gradient of the input by one tile of hopperdgrad, of the output's, which has its channels innermost.

    Raises:
        RuntimeError: the stand-in saw a fault.
    """
    inner = (problem.batch, *problem.spatial, problem.in_channels)
    x = torch.full(inner, torch.nan, dtype=problem.dtype).movedim(-1, 1)
    strides = {"x": pixels_view(x).stride(), "w": weight_view(w, problem).stride()}
    fields = hopperdgrad.fields(problem, strides | {"y": pixels_view(grad).stride()}, tile)
    launch(parameters(hopperdgrad, fields), (grad, w, None), x)
    return x


def launch(call: Any, read: tuple[Tensor, Tensor, Tensor | None], written: Tensor) -> None:
    """One call on tensors that the stand-in knows.

    Raises:
        RuntimeError: the numbers are refused, or the stand-in saw a fault.
    """
    if call.check():
        raise RuntimeError(call.check())
    native, work = cuda_host.module(), torch.empty(call.workspace(), dtype=torch.uint8)
    native.clear_buffers()
    for tensor, writable in (*((t, False) for t in read), (written, True), (work, True)):
        if tensor is not None:
            reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
            native.register_buffer(tensor.data_ptr(), reach * tensor.element_size(), writable)
    pointers = [0 if t is None else t.data_ptr() for t in (*read, written, work)]
    error = call.launch(*pointers, 0, 0)
    if error:
        raise RuntimeError(error)


def changed_sources(to: Path, file: str, old: str, new: str) -> Path:
    """The sources with one text replaced, in a folder of their own."""
    for source in filter(Path.is_file, SOURCES.rglob("*")):
        text, inside = source.read_text(), source.relative_to(SOURCES)
        if str(inside) == file:
            assert old in text, f"{file} has no {old!r}"
            text = text.replace(old, new)
        (to / inside).parent.mkdir(parents=True, exist_ok=True)
        (to / inside).write_text(text)
    return to


def program(
    folder: Path, tile: str, element: str = "Bfloat16", sources: Path = SOURCES
) -> subprocess.CompletedProcess[str]:
    """Compile and run tests/cuda_patch/main.cpp for a tile; its exit code is 0 if all is right."""
    made = folder / f"{tile}_{element}"
    flags = [f"-I{sources}", f"-DTILE={tile}", f"-DELEMENT={element}"]
    flags += ["-DHOPPER"] if tile.startswith("w") else []
    subprocess.run([*COMPILER, *flags, str(MAIN), *map(str, machine_objects()), "-o", str(made)], check=True)
    return subprocess.run([str(made)], capture_output=True, text=True, timeout=300)
