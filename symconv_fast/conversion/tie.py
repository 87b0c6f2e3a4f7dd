"""convert(): the convolutions of a model become tied layers, in the order of filters that loses least."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..channels import Space, Spaces, find_spaces
from ..problem import memory_format, suggests_channels_last
from ..symmetry import SymmetryWarning
from . import budget as budgets
from .carry import give
from .estimate import Call, Cost, cost_of, record_calls
from .plan import Decision, Matcher, arrange, convolution
from .reordered import Reordered, reorder_outputs, replace_modules
from .report import ConversionReport, LayerReport
from .sites import TIED, Site, Skip, find_sites
from .wishes import Wish, check_wish, wanted

Model = TypeVar("Model", bound=nn.Module)
Calls = Mapping[nn.Module, Sequence[Call]]


def convert(
    model: Model,
    symmetry: Wish | Literal["auto"] = "hv",
    *,
    match: bool | Literal["followed"] = True,
    min_channels: int = 16,
    skip: Skip = (),
    keep_norm: bool = True,
    example_input: Any = None,
    budget: Mapping[str, float] | None = None,
    inplace: bool = False,
    progress: bool = True,
) -> tuple[Model, ConversionReport]:
    """A copy of `model` with tied layers for its convolutions, 1-D to 3-D and transposed, and a report of it.

    A starting point for training, not a free lunch: filters that were trained without ties are far from tied ones, in
    deep layers of large networks nearly as far as random filters. The report has what each layer lost, beside that.

    Device, dtype, memory format, hooks, training mode, `requires_grad` and attributes set on a layer carry over; make
    the optimizer afterwards. `revert` gives ordinary layers back. Computed in the CPU's memory, wherever the model is.

    Args:
        model: any module, a convolution by itself included.
        symmetry: a key such as "hv", of which each layer takes the letters that it has an axis with more than one tap
            for; a dict such as {"h": "50%"}; a function of a layer's name and the layer that returns either, or None
            to leave the layer alone; or "auto", which finds, layer by layer, the ties of least lost energy under
            `budget` and leaves alone what has no gain to expect.
        match: bring the filters of each layer into the order in which its orbits lose least. The output channels are
            permuted by that, and what reads them is permuted back: batch normalisation, activations, pooling,
            residual sums, concatenations, the next convolution or linear layer, wherever torch.fx can follow. Layers
            whose outputs are added share one order. Elsewhere an index on the output restores the order; "followed"
            leaves filters as they lie there. False leaves them everywhere.
        min_channels: layers with fewer input or output channels are left alone; they gain little.
        skip: names or patterns ("head.*") of convolutions to leave alone, or a function of name and layer.
        keep_norm: scale each tied filter to the norm that its orbit had, as `from_conv` does, which keeps the size of
            activations; False takes the nearest tied filters.
        example_input: a tensor, a tuple of arguments or a dict of named ones, that the model is run on once, in eval
            mode. With it the report has multiply-accumulates and the speed that the dispatch expects, and "auto"
            leaves layers alone that would not be faster.
        budget: for "auto", one of {"parameters": 0.5} (at most that share of the model's parameters is left; the
            default), {"time": 0.5} (of the estimated time of its convolutions in a training step; needs
            `example_input`) and {"lost_energy": 0.3} (the mean over the convolutions; saves most within it).
        inplace: change `model` itself instead of a copy.
        progress: show a bar where matching takes more than a few seconds.

    Returns:
        The model and a `ConversionReport`: print it for a table; its `layers` are the data. Layers that are not
        replaced are in it with the reason.

    Raises:
        TypeError: `model` is no module, `symmetry` nothing of the above, or `inplace` with a convolution by itself.
        ValueError: the model has no convolutions, filters are not finite, `symmetry` has unknown keys, a function gave
            what does not fit its layer, `skip` fits no layer, or the budget cannot be met.
        ModuleNotFoundError: matching needs rustworkx, and "auto" scipy: `pip install 'symconv_fast[analysis]'`.
    """
    _check(model, symmetry, match, min_channels, budget)
    limit = budgets.check_budget(budget, example_input is not None)
    find_sites(model, min_channels, skip)  # raises before anything is copied
    if inplace and type(model) in TIED:
        raise TypeError(
            f"inplace=True cannot make another object of {type(model).__name__}; use the result instead"
        )
    if not inplace:
        model = copy.deepcopy(model)
    sites = find_sites(model, min_channels, skip)
    calls = None if example_input is None else _record(model, example_input, sites)
    decisions, spaces = _decide(model, sites, symmetry, (match, progress), calls, limit)
    before = _size(model)
    costs = {site: _cost(decisions[site], calls) for site in sites}
    made = _replace(model, [decisions[site] for site in sites], spaces, keep_norm)
    rows = tuple(_row(decisions[site], made.get(site.conv), costs[site]) for site in sites)
    result: Any = made.get(model, model)
    return result, ConversionReport(rows, before, _size(result), _notes(spaces))


def _check(model: Any, symmetry: Any, match: Any, min_channels: Any, budget: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={type(model).__name__} must be a torch.nn.Module, such as torchvision's resnet18()"
        )
    check_wish(symmetry)
    if match not in (True, False, "followed"):
        raise ValueError(f"match={match!r} must be True, False or 'followed'")
    if isinstance(min_channels, bool) or not isinstance(min_channels, int):
        raise TypeError(f"min_channels={min_channels!r} must be an int, such as 16")
    if budget is not None and symmetry != "auto":
        raise ValueError(f"budget={budget!r} is for symmetry='auto', got symmetry={symmetry!r}")


def _record(model: nn.Module, example_input: Any, sites: Sequence[Site]) -> Calls:
    return record_calls(model, example_input, [site.conv for site in sites])


def _decide(
    model: nn.Module,
    sites: Sequence[Site],
    symmetry: Any,
    matching: tuple[bool | str, bool],
    calls: Calls | None,
    limit: tuple[str, float],
) -> tuple[dict[Site, Decision], Spaces | None]:
    """What becomes of each site; nothing is changed."""
    decisions = {site: Decision(site, reason=site.reason) for site in sites}
    able = [site for site in sites if site.reason is None]
    _check_values(able)
    match, progress = matching
    matcher = Matcher(find_spaces(model) if match else None, match == "followed", progress)
    if symmetry == "auto":
        ties, reasons = budgets.choose_ties(model, able, matcher, calls, limit)
    else:
        found = {site: wanted(symmetry, site) for site in able}
        ties = {site: tie for site, tie in found.items() if not isinstance(tie, str)}
        reasons = {site: reason for site, reason in found.items() if isinstance(reason, str)}
    decisions.update((site, Decision(site, reason=reason)) for site, reason in reasons.items())
    decisions.update((decision.site, decision) for decision in arrange(matcher, ties))
    return decisions, matcher.spaces


def _check_values(sites: Sequence[Site]) -> None:
    for site in sites:
        weight = convolution(site).weight
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"model: the weight of {site.name or 'the layer'} has values that are not finite (nan or inf); "
                "load a sound checkpoint, or leave the layer out with skip"
            )


def _size(module: nn.Module) -> int:
    """Values of its parameters; torch's lazy ones have none yet."""
    return sum(0 if nn.parameter.is_lazy(p) else p.numel() for p in module.parameters())


def _cost(decision: Decision, calls: Calls | None) -> Cost | None:
    """Of a site after the conversion; None where the model was not run, or does not call it, or it cannot be told."""
    conv = decision.site.conv
    if calls is None or not calls.get(conv):
        return None
    if decision.tie is not None:
        return cost_of(convolution(decision.site), decision.tie[0], calls[conv])
    return cost_of(convolution(decision.site), None, calls[conv]) if type(conv) in TIED else None


def _replace(
    model: nn.Module, decisions: Sequence[Decision], spaces: Spaces | None, keep_norm: bool
) -> dict[nn.Module | None, nn.Module]:
    """What each tied convolution became, in place: permute channels, tie, and put the layers into the model."""
    orders: dict[Space | None, Tensor] = {}
    for decision in decisions:
        if decision.through == "graph" and decision.order is not None:
            orders[decision.space] = decision.order
    if spaces is not None and orders:
        spaces.permute(model, {space: order for space, order in orders.items() if space is not None})
    made: dict[nn.Module | None, nn.Module] = {}
    for decision in decisions:
        if decision.tie is not None:
            made[decision.site.conv] = _tied(decision, orders.get(decision.space), keep_norm)
    replace_modules(model, made)
    return made


def _tied(decision: Decision, space_order: Tensor | None, keep_norm: bool) -> nn.Module:
    """The layer for one convolution, whose filters lie in the order of their space by now."""
    conv = convolution(decision.site)
    assert decision.tie is not None
    last = _memory_format(conv.weight)
    index = None
    if decision.through == "index":
        assert decision.order is not None
        order = decision.order if space_order is None else space_order.argsort()[decision.order]
        reorder_outputs(conv, order)
        index = order.argsort().to(conv.weight.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)  # the report says it
        layer: Any = TIED[type(conv)].from_conv(conv, decision.tie[0], keep_norm=keep_norm)
    layer.weight.data = layer.weight.data.contiguous(memory_format=last)
    new = layer if index is None else Reordered(layer, index).train(conv.training)
    give(new, conv)
    return new


def _memory_format(weight: Tensor) -> torch.memory_format:
    return memory_format(weight.dim() - 2, suggests_channels_last(weight))


def _row(decision: Decision, new: nn.Module | None, cost: Cost | None) -> LayerReport:
    conv = decision.site.conv
    row = LayerReport(
        decision.site.name,
        type(conv).__name__,
        None,
        decision.reason,
        parameters_before=_size(conv),
        cost=cost,
    )
    if decision.tie is None or new is None:
        return replace(row, parameters=row.parameters_before)
    order = {"graph": "matched", "index": "matched, index", None: "as given"}[decision.through]
    return replace(
        row,
        symmetry=str(decision.tie[0]),
        lost=decision.lost,
        lost_random=decision.lost_random,
        order=order,
        parameters=_size(new),
    )


def _notes(spaces: Spaces | None) -> tuple[str, ...]:
    if spaces is None or spaces.error is None:
        return ()
    return (
        f"torch.fx cannot follow the model, so that no permutation is undone in what reads it: {spaces.error}",
    )
