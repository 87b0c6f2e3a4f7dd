"""Is a network, up to the order of its channels, its own mirror image? `match_mirrored` aligns and merges the two."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels import Space, Spaces, find_spaces
from ..conversion import to_torch
from ..extras import need
from ..tables import Report, Table
from ..ties import mirrored_dims
from .arguments import axis_mask
from .merging import (
    Goals,
    average,
    batch_norms,
    mirror_filters,
    repair,
    repairable,
    reset_batch_norm,
)
from .moments import Pair, compare, input_of

_NETWORKS = {
    "naive": "merged, not aligned",
    "aligned": "merged, aligned",
    "reset": "merged, aligned, reset",
    "repaired": "merged, aligned, REPAIR",
}
"""Names of merged networks in the report."""

Evaluate = Callable[[nn.Module, Any], tuple[float, float]]


@dataclass(frozen=True)
class MirroredRow:
    """One network; barriers are None for the two that are merged."""

    network: str
    loss: float
    accuracy: float
    loss_barrier: float | None = None
    """Its loss less the mean of the two networks'."""
    accuracy_barrier: float | None = None
    """The mean of the two networks' accuracy less its own."""


@dataclass(frozen=True)
class SpaceMatch:
    """How the channels of one space were matched."""

    producers: tuple[str, ...]
    channels: int
    correlation: float
    """The mean over channels and points of the correlation with the channel of the mirrored network at its place."""
    before: float
    """The same without permutation."""
    moved: int
    """Channels whose partner has another place."""
    fixed: str | None
    """Why the order was kept."""


@dataclass(frozen=True)
class MirroredReport(Report):
    """What `match_mirrored` found; `str` is the table of networks, `matches_table` that of spaces."""

    axis: str
    rows: tuple[MirroredRow, ...]
    matches: tuple[SpaceMatch, ...]
    mirror_error: float
    """Largest difference of the mirrored network's output from that for mirrored inputs, by the largest output, in the
    first batch: 0 up to rounding where mirroring is exact (odd sizes at stride 2)."""
    notes: tuple[str, ...]
    orders: Mapping[Space, Tensor] = field(repr=False)
    """For each free space: channel i of the network goes with channel `order[i]` of the mirrored one."""
    models: Mapping[str, nn.Module] = field(repr=False)
    """With `keep_models`: "mirrored" (permuted), "naive", "aligned", "reset", "repaired", in eval mode. Else empty."""

    def table(self) -> Table:
        """One row a network."""
        columns = ("network|", "loss", "accuracy", "loss barrier", "accuracy barrier")
        rows = [[row.network, f"{row.loss:.4f}", f"{row.accuracy:.2%}", *_barriers(row)] for row in self.rows]
        return Table(f"merged with its mirror image along {self.axis}", columns, rows, self.notes)

    def matches_table(self) -> Table:
        """One row a space of channels."""
        columns = ("channels of|", "channels", "moved", "correlation", "before", "order|")
        rows = [
            [
                match.producers[0]
                + (f" and {len(match.producers) - 1} more" if len(match.producers) > 1 else ""),
                str(match.channels),
                str(match.moved),
                f"{match.correlation:.3f}",
                f"{match.before:.3f}",
                match.fixed or "free",
            ]
            for match in self.matches
        ]
        return Table(f"channels matched with those of the mirror image along {self.axis}", columns, rows)


def _barriers(row: MirroredRow) -> list[str]:
    if row.loss_barrier is None or row.accuracy_barrier is None:
        return ["", ""]
    return [f"{row.loss_barrier:+.4f}", f"{row.accuracy_barrier:+.2%}"]


def match_mirrored(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    axis: str = "h",
    evaluate: Evaluate | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    keep_models: bool = False,
) -> MirroredReport:
    """Align a network with its mirror image by permuting channels, merge the two halfway, and measure what that costs.

    With every kernel mirrored along `axis`, a network computes for an input what it computed for the mirrored one,
    mirrored back: another solution of a task that has this symmetry. Where a permutation of channels turns the one into
    the other, the filters of each layer are closed under mirroring, and the mean of the two is equivariant. After
    Bökman and Kahl, "Investigating how ReLU-networks encode symmetries" (NeurIPS 2023).

    - Channels are matched by the correlation of their outputs over the loader, one permutation for each free space of
      `channels.find_spaces` (a residual stream is one), with the sum of the correlations over the layers in it, by
      `scipy.optimize.linear_sum_assignment`. Constant channels correlate with nothing.
    - Merged is the mean of all parameters, without and with permutation.
    - "reset": the statistics of batch norm are those of the merged network, over the loader.
    - "REPAIR" (Jordan et al. 2022): each output channel of convolutions and hidden linear layers gets the mean of both
      networks' means and standard deviations, then batch norm is reset.

    Args:
        model: a network of convolutions that torch.fx can trace; it is not changed. Tied layers are taken as ordinary
            ones with their expanded filters.
        loader: batches (input, target), several times from the start; inputs (N, C, *spatial). With `evaluate` the
            batches may be inputs alone, or longer tuples.
        axis: "h" mirrors the last dim (left and right), "v" the one before, "z" the one before that; or several.
        evaluate: (model in eval mode, loader) to (loss, accuracy), for other tasks than classification; default: cross
            entropy and the share of inputs whose largest output is the target.
        device: where to compute; default: where the model's first parameter is.
        progress: show a bar.
        keep_models: return the networks too.

    Returns:
        The report.

    Raises:
        TypeError: `model` is no module; `loader` gives something else, or can be gone through only once. ValueError: an
            unknown axis, an empty loader, no convolution, a model that cannot be traced, weights that are computed, NaN
            or infinity in the outputs of layers. ModuleNotFoundError: scipy is missing.
    """
    assign = need("scipy.optimize", "match_mirrored").linear_sum_assignment
    mask = _check(model, loader, axis)
    original = to_torch(model)  # tied layers as ordinary ones, whose order is free
    spaces = find_spaces(original)
    if spaces.error is not None:
        raise ValueError(f"match_mirrored cannot permute channels of this model: {spaces.error}")
    if device is None:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    passes = _Passes(loader, device, progress)
    original = original.to(device).eval()
    # A DataLoader draws from torch's generator with each pass.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        first = passes.first()
        mirrored = mirror_filters(original, mask, spaces, first)
        mirror_error = _mirror_error(original, mirrored, mask, first)

        points = {space: spaces.points(space) for space in spaces.spaces}
        rescaled = repairable(original, spaces)
        names = dict.fromkeys([*(name for some in points.values() for name in some), *rescaled])
        pairs = compare(original, mirrored, names, lambda: passes("correlations"))
        orders, matches = _match(points, pairs, assign)
        naive = average(original, mirrored)
        spaces.permute(mirrored, orders)
        goals = _goals(rescaled, pairs, orders, spaces)
        models = {"mirrored": mirrored, "naive": naive, **_merged(original, mirrored, goals, spaces, passes)}
        scores = {
            key: passes.score(evaluate, net, key) for key, net in {"original": original, **models}.items()
        }
    return MirroredReport(
        axis=axis,
        rows=_rows(scores),
        matches=matches,
        mirror_error=mirror_error,
        notes=tuple(_notes(original, goals, mirror_error)),
        orders=orders,
        models=models if keep_models else {},
    )


def _merged(
    original: nn.Module, mirrored: nn.Module, goals: Goals, spaces: Spaces, passes: _Passes
) -> dict[str, nn.Module]:
    """The mean of the two as it is, with batch norm reset where there is any, and repaired."""
    models = {"aligned": average(original, mirrored)}
    if batch_norms(original):
        models["reset"] = copy.deepcopy(models["aligned"])
        reset_batch_norm(models["reset"], lambda: passes("reset"))
    models["repaired"] = copy.deepcopy(models["aligned"])
    repair(models["repaired"], goals, spaces, lambda: passes("REPAIR"))
    return models


def _check(model: nn.Module, loader: Iterable[Any], axis: str) -> int:
    """The mask of the axes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"match_mirrored needs a torch.nn.Module, got {type(model).__name__}")
    dims = [len(m.kernel_size) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    if not dims:
        raise ValueError(
            f"{type(model).__name__} has no convolution; without any there are no filters to mirror"
        )
    mask = axis_mask(axis, max(dims))
    if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
        raise TypeError(
            f"loader is gone through several times, which a {type(loader).__name__} does not allow; give a DataLoader "
            "or a list of batches"
        )
    return mask


class _Passes:
    """Goes through the loader with one bar for all passes."""

    def __init__(self, loader: Iterable[Any], device: torch.device, progress: bool) -> None:
        self._loader, self._device, self._progress = loader, device, progress

    def first(self) -> Tensor:
        """The first input."""
        for batch in self._loader:
            return _whole(input_of(batch, self._device))
        raise ValueError("loader is empty; give at least one batch (input, target)")

    def __call__(self, what: str) -> Iterator[Tensor]:
        """The inputs."""
        for batch in self._bar(what):
            x = input_of(batch, self._device)
            if x.numel():
                yield x

    def score(self, evaluate: Evaluate | None, model: nn.Module, what: str) -> tuple[float, float]:
        """Loss and accuracy of a network in eval mode."""
        with torch.no_grad():
            if evaluate is None:
                return _classify(model, self._bar(what), self._device)
            found: object = evaluate(model.eval(), self._loader)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise TypeError(f"evaluate must return (loss, accuracy), got {found!r:.60}")
        return float(found[0]), float(found[1])

    def _bar(self, what: str) -> Iterable[Any]:
        if not self._progress:
            return self._loader
        from tqdm.auto import tqdm

        return tqdm(self._loader, desc=f"match_mirrored: {what}", leave=False)


def _whole(x: Tensor) -> Tensor:
    if x.numel() == 0:
        raise ValueError(
            f"the first batch of loader is empty, of shape {tuple(x.shape)}; give at least one input"
        )
    return x


def _classify(model: nn.Module, batches: Iterable[Any], device: torch.device) -> tuple[float, float]:
    """Cross entropy and top-1 accuracy, the mean over all targets."""
    loss = right = count = 0.0
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
            raise TypeError("loader must give (input, target) for accuracy; for other tasks give evaluate=")
        output, target = model(input_of(batch, device)), batch[1].to(device)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returns a {type(output).__name__}; give evaluate=, which knows what to do with it"
            )
        loss += float(F.cross_entropy(output, target, reduction="sum"))
        right += float((output.argmax(1) == target).sum())
        count += target.numel()
    return loss / count, right / count


def _match(
    points: Mapping[Space, tuple[str, ...]], pairs: Mapping[str, Pair], assign: Any
) -> tuple[dict[Space, Tensor], tuple[SpaceMatch, ...]]:
    """For each free space the permutation with the largest sum of correlations."""
    orders, matches = {}, []
    for space, names in points.items():
        found = [pairs[name].correlation() for name in names if name in pairs]
        if not found:  # none of its layers was called
            continue
        mean = torch.stack(found).mean(0).cpu()
        order = torch.arange(space.size)
        if space.fixed is None:
            _, columns = assign(mean.numpy(), maximize=True)
            order = torch.from_numpy(columns).to(torch.int64)
            orders[space] = order
        matches.append(
            SpaceMatch(
                producers=space.producers,
                channels=space.size,
                correlation=float(mean[torch.arange(space.size), order].mean()),
                before=float(mean.diagonal().mean()),
                moved=int((order != torch.arange(space.size)).sum()),
                fixed=space.fixed,
            )
        )
    return orders, tuple(matches)


def _goals(
    names: Iterable[str], pairs: Mapping[str, Pair], orders: Mapping[Space, Tensor], spaces: Spaces
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the means of both networks' means and standard deviations, the mirrored one permuted."""
    goals = {}
    for name in names:
        if name not in pairs:
            continue
        ours, theirs = pairs[name].moments
        try:
            order = orders.get(spaces.of(name))
        except KeyError:  # depthwise, with several spaces
            continue
        order = torch.arange(ours.mean.numel()) if order is None else order
        order = order.to(ours.mean.device)
        goals[name] = ((ours.mean + theirs.mean[order]) / 2, (ours.std + theirs.std[order]) / 2)
    return goals


def _rows(results: Mapping[str, tuple[float, float]]) -> tuple[MirroredRow, ...]:
    (loss_a, right_a), (loss_b, right_b) = results["original"], results["mirrored"]
    loss, right = (loss_a + loss_b) / 2, (right_a + right_b) / 2
    return tuple(
        MirroredRow(_NETWORKS[key], *found, found[0] - loss, right - found[1])
        if key in _NETWORKS
        else MirroredRow(key, *found)
        for key, found in results.items()
    )


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return (
        [t for value in values for t in _tensors(value)] if isinstance(output, (Mapping, tuple, list)) else []
    )


def _mirror_error(original: nn.Module, mirrored: nn.Module, mask: int, x: Tensor) -> float:
    """How far the mirrored network is from the network of mirrored inputs, its maps mirrored back."""
    dims = mirrored_dims(mask)
    spatial = x.dim() - 2
    worst = 0.0
    with torch.no_grad():
        for a, b in zip(_tensors(mirrored(x)), _tensors(original(x.flip(dims)))):
            if not a.is_floating_point() or a.numel() == 0:
                continue
            b = b.flip(dims) if b.dim() == spatial + 2 else b
            scale = float(b.abs().max())
            worst = max(worst, float((a - b).abs().max()) / scale if scale else 0.0)
    return worst


def _notes(model: nn.Module, goals: Mapping[str, Any], mirror_error: float) -> Iterator[str]:
    if math.isnan(mirror_error):
        yield "the outputs of the network are not all finite"
    elif mirror_error > 1e-3:
        yield (
            f"the mirrored network is not quite the network of mirrored inputs (they differ by {mirror_error:.1%}): "
            "strides on even sizes, or operations beside convolutions that know left from right"
        )
    if not batch_norms(model):
        yield "no batch norm: nothing to reset"
    yield f"REPAIR rescaled the channels of {len(goals)} layers"
