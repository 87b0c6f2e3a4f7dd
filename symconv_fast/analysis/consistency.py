"""How often a model predicts the same for an input and its mirrored or shifted version: `flip_consistency` and kin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..checks import DtypeError, ShapeError, check_bool, check_is_tensor
from ..tables import Report, Table
from .arguments import axis_mask
from .views import Chunks, Mirror, Shifts, Views

Compare = Callable[[Tensor, Tensor], Tensor]

_Z95 = 1.959963984540054
"""95 % of a normal distribution lie within this many standard deviations."""


@dataclass(frozen=True)
class Consistency(Report):
    """How often predictions agree, with its uncertainty; `str` is one line, `table` a table of one row."""

    transformation: str
    agreement: float
    """0 to 1: the mean over the samples; with an output at every position, of the share of positions that agree."""
    samples: int
    standard_error: float
    """Of `agreement` over the samples: their standard deviation / sqrt(samples)."""
    interval: tuple[float, float]
    """95 %, by Wilson; it is wider than need be where samples agree in part, at some positions."""
    positions: float | None = None
    """Of outputs at every position: how many were compared, in the mean over the samples. None: one a sample."""
    equal_offsets: int | None = None
    """Of shifts: samples whose two offsets were drawn equal, which agree for certain."""

    def table(self) -> Table:
        """The same as a table of one row."""
        low, high = self.interval
        row = [
            f"{self.agreement:.2%}",
            f"{self.standard_error:.2%}",
            f"{low:.2%} to {high:.2%}",
            str(self.samples),
        ]
        columns = ("agreement", "standard error", "95 % interval", "samples")
        return Table(f"predictions under {self.transformation}", columns, [row], list(self._notes()))

    def _notes(self) -> Iterator[str]:
        if self.positions is not None:
            yield f"{self.positions:.6g} positions compared in each sample"
        if self.equal_offsets is not None:
            yield f"{self.equal_offsets} of {self.samples} samples had two equal offsets"

    def __str__(self) -> str:
        """One line, with notes in brackets."""
        low, high = self.interval
        notes = "".join(f"; {note}" for note in self._notes())
        return (
            f"{self.agreement:.2%} of predictions agree under {self.transformation} "
            f"(95 %: {low:.2%} to {high:.2%}, {self.samples} samples{notes})"
        )


def flip_consistency(
    model: nn.Module,
    loader: Iterable[Any],
    axis: str = "h",
    *,
    map_output: Callable[[Tensor], Tensor] | None = None,
    compare: Compare | None = None,
    select_input: Callable[[Any], Tensor] | None = None,
    select_output: Callable[[Any], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Consistency:
    """How often a model predicts the same class for an input and for its mirror image (Alsallakh et al. 2025).

    The model runs in eval mode without gradients, and has its training mode back afterwards.

    Args:
        model: takes inputs (N, C, *S), and returns logits or scores (N, K), or (N, K, *S') at every position; or
            classes as integers, (N,) or (N, *S').
        loader: gives batches: tensors (N, C, *S), or tuples and lists that begin with one, such as (images, labels).
        axis: letters of the mirrored axes: "h" the last, "v" the one before, "z" the one before that.
        map_output: takes the output for the mirrored input to what it would be for the input itself. None mirrors
            outputs (N, K, *S') and (N, *S') back and leaves (N, K) and (N,) as they are. Give one where classes or
            channels change places, as of the left and the right hand, or where outputs have another shape; it then has
            to mirror positions too.
        compare: takes the outputs for the input and, mapped back, for its mirror image, and returns how far they agree:
            bool, or 0 to 1, of shape (N,) or (N, ...), whose mean over the rest is taken. None compares the classes
            of greatest score. Regression needs one, such as `lambda a, b: ((a - b).abs() < 0.1)`, and so does a single
            logit: `lambda a, b: (a > 0) == (b > 0)`.
        select_input: takes a batch to the input, such as `lambda batch: batch["image"]`.
        select_output: takes what the model returns to the tensor above, such as `lambda out: out["logits"]`.
        device: where inputs go; None: where the model's first parameter is.
        progress: show a progress bar.

    Raises:
        ValueError: the loader gives no sample; outputs hold NaN, are single numbers without `compare`, or have a shape
            that needs `map_output`; `axis` is not one of the input's. TypeError: an argument, a batch or an output is
            of another type.
    """
    if map_output is not None and not callable(map_output):
        raise TypeError(f"map_output must be a function of an output, got {type(map_output).__name__}")
    axis_mask(axis, 3)  # of inputs of fewer dims it is checked when they are there
    views = Mirror(axis, map_output)
    return _measure(model, loader, views, compare, select_input, select_output, device, progress)


def shift_consistency(
    model: nn.Module,
    loader: Iterable[Any],
    max_shift: int | tuple[int, ...],
    *,
    mode: str = "circular",
    seed: int = 0,
    map_output: Callable[[Tensor, Tensor], Tensor] | None = None,
    compare: Compare | None = None,
    select_input: Callable[[Any], Tensor] | None = None,
    select_output: Callable[[Any], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Consistency:
    """How often a model predicts the same class for two random shifts of an input.

    This is the classification consistency of Zhang 2019 ("Making Convolutional Networks Shift-Invariant Again"): of
    each sample two offsets are drawn, independently and uniformly from 0 to `max_shift` along each axis. It uses
    circular shifts on CIFAR, and on ImageNet crops of 224 from 256 pixels, which are `mode="crop"` with max_shift 32.

    Args:
        model, loader, compare, select_input, select_output, device, progress: as for `flip_consistency`.
        max_shift: the greatest offset in pixels, one for all axes or one for each spatial axis of the input.
        mode: "circular": the shifted input has x[(p + offset) mod S] at p, and the size S. "crop": x[p + offset], and
            the size S - max_shift; nothing is padded or repeated, and the model has to take that size.
        seed: of the offsets, which do not depend on the batch size.
        map_output: takes (output, offsets), with offsets (N, spatial dims), to something that does not depend on the
            offsets. None takes outputs (N, K, *S') at every position back by the offsets and compares the positions
            that both have; these must be of the shifted input's size. It leaves (N, K) and (N,) as they are.

    Raises:
        ValueError: as for `flip_consistency`; `max_shift` is 0 or as large as the input; an unknown `mode`.
        TypeError: as for `flip_consistency`.
    """
    if map_output is not None and not callable(map_output):
        raise TypeError(
            f"map_output must be a function of an output and offsets, got {type(map_output).__name__}"
        )
    views = Shifts(max_shift, mode, seed, map_output)
    return _measure(model, loader, views, compare, select_input, select_output, device, progress)


def wilson_interval(share: float, samples: int, z: float = _Z95) -> tuple[float, float]:
    """The interval of Wilson 1927 for a share of `samples`: within 0 to 1, of use at both ends too; 95 % by default."""
    centre = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    whole = 1 + z * z / samples
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def _measure(
    model: nn.Module,
    loader: Iterable[Any],
    views: Views,
    compare: Compare | None,
    select_input: Callable[[Any], Tensor] | None,
    select_output: Callable[[Any], Tensor] | None,
    device: torch.device | str | None,
    progress: bool,
) -> Consistency:
    from tqdm import tqdm

    _check_arguments(model, loader, compare, select_input, select_output)
    check_bool(progress, "progress")
    target = _device(model) if device is None else _as_device(device)
    shares: list[Tensor] = []
    compared, dense = 0, False
    batches = tqdm(
        loader, desc=f"agreement under {views.name}", unit="batch", disable=not progress, leave=False
    )
    # A DataLoader draws a number for its workers from torch's generator, and one for its order where it shuffles.
    drawn = [target] if target is not None and target.type == "cuda" else []
    with batches, torch.random.fork_rng(drawn), _evaluating(model), torch.no_grad():
        for batch in batches:
            inputs = _input(batch, select_input)
            if len(inputs) == 0:
                continue
            pair = views.make(inputs if target is None else inputs.to(target))
            outputs = [_output(model(view), select_output, len(inputs)) for view in pair]
            chunks, positions = views.align(*outputs)
            shares.append(_agreements(chunks, compare))
            compared += positions or 0
            dense = positions is not None
    if not shares:
        raise ValueError("the loader gives no sample; give batches (N, C, *S) with N of at least 1")
    return _result(torch.cat(shares), views, compared if dense else None)


def _result(shares: Tensor, views: Views, positions: int | None) -> Consistency:
    samples, agreement = len(shares), float(shares.mean())
    return Consistency(
        transformation=views.name,
        agreement=agreement,
        samples=samples,
        standard_error=float(shares.std(correction=0)) / math.sqrt(samples),
        interval=wilson_interval(agreement, samples),
        positions=None if positions is None else positions / samples,
        equal_offsets=views.equal_offsets,
    )


def _agreements(chunks: Chunks, compare: Compare | None) -> Tensor:
    """(N,) in float64: how far the two outputs of each sample agree."""
    found = []
    for first, second in chunks:
        agree = _same_class(first, second) if compare is None else compare(first, second)
        check_is_tensor(agree, "what compare returns")
        if agree.dim() == 0 or len(agree) != len(first):
            raise ShapeError(
                f"compare must return a value for each of {len(first)} samples, (N,) or (N, ...), got shape "
                f"{tuple(agree.shape)}"
            )
        if agree.is_complex() or agree.numel() == 0:
            raise ValueError(_compare_returned(f"{str(agree.dtype)[6:]} of shape {tuple(agree.shape)}"))
        share = agree.detach().reshape(len(agree), -1).to("cpu", torch.float64)
        if not bool(((share >= 0) & (share <= 1)).all()):
            raise ValueError(_compare_returned(f"{float(share.min()):g} to {float(share.max()):g}"))
        found.append(share.mean(1))
    return torch.cat(found)


def _compare_returned(what: str) -> str:
    return f"compare must return bools, or agreement from 0 to 1, got {what}; for example (a - b).abs() < 0.1"


def _same_class(first: Tensor, second: Tensor) -> Tensor:
    if not first.is_floating_point():
        return first.eq(second)
    if first.dim() == 1 or first.shape[1] == 1:
        shape = ", ".join(["N", *map(str, first.shape[1:])])
        raise ValueError(
            f"outputs ({shape}) are single numbers, not scores of classes; give compare, such as "
            "lambda a, b: (a - b).abs() < 0.1 for regression, or lambda a, b: (a > 0) == (b > 0) for a logit"
        )
    return first.argmax(1).eq(second.argmax(1))


def _input(batch: Any, select: Callable[[Any], Tensor] | None) -> Tensor:
    if select is not None:
        batch = select(batch)
    elif isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    elif isinstance(batch, Mapping):
        names = ", ".join(repr(key) for key in list(batch)[:5])
        raise TypeError(
            f"a batch is a dict with the keys {names}; say which is the input, for example "
            'select_input=lambda batch: batch["image"]'
        )
    check_is_tensor(batch, "the input of a batch")
    if not 3 <= batch.dim() <= 5:
        raise ShapeError(f"expected inputs (N, C, *S) of 3 to 5 dims, got shape {tuple(batch.shape)}")
    return batch


def _output(output: Any, select: Callable[[Any], Tensor] | None, samples: int) -> Tensor:
    output = output if select is None else select(output)
    if not isinstance(output, Tensor):
        hint = 'select_output takes the tensor out of it, for example lambda out: out["logits"]'
        raise TypeError(f"the model must return a Tensor, got {type(output).__name__}; {hint}")
    if output.is_complex():
        raise DtypeError(
            f"outputs must be real, got {str(output.dtype)[6:]}; give select_output=torch.view_as_real"
        )
    if output.dim() == 0 or len(output) != samples:
        raise ShapeError(
            f"expected outputs for {samples} samples, (N, K) or (N, K, *S), got shape {tuple(output.shape)}; batches "
            "must be (N, C, *S)"
        )
    if output.is_meta:
        raise ValueError(
            "the model's output has no values, it is on the meta device; give a model with values"
        )
    if output.numel() == 0:
        raise ShapeError(
            f"the model's output of shape {tuple(output.shape)} is empty; it must be (N, K) with K of at least 2"
        )
    if output.is_floating_point() and bool(output.isnan().any()):
        raise ValueError("the model's output holds NaN; its parameters and inputs must be finite")
    return output


def _check_arguments(model: Any, loader: Any, *functions: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; for example a whole model"
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"loader must give batches, but {type(loader).__name__} gives samples; give DataLoader(dataset)"
        )
    if isinstance(loader, (Tensor, str, Mapping)) or not isinstance(loader, Iterable):
        hint = (
            "[x] for a single batch x" if isinstance(loader, Tensor) else "a DataLoader or a list of batches"
        )
        raise TypeError(f"loader must give batches, got {type(loader).__name__}; give {hint}")
    for name, function in zip(("compare", "select_input", "select_output"), functions):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def _device(model: nn.Module) -> torch.device | None:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def _as_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except TypeError:
        raise TypeError(f"device={device!r} must be a torch.device or its name, such as 'cpu'") from None
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not valid, give one such as 'cpu': {error}") from None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
