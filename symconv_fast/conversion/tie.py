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
from ..problem import format_of
from ..symmetry import SymmetryWarning
from . import budget as budgets
from .carry import give
from .estimate import Call, Cost, cost_of, count_parameters, present_cost, record_calls
from .plan import Decision, Matcher, arrange, convolution
from .reordered import Reordered, asks_for_types, reorder_outputs, replace_modules
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
        skip: names or patterns ("stages.*.conv1") of convolutions, or of modules that hold them, to leave alone; or a
            function of name and layer.
        keep_norm: scale each tied filter to the norm that its orbit had, as `from_conv` does, which keeps the size of
            activations; False takes the nearest tied filters.
        example_input: a tensor, a tuple of arguments or a dict of named ones, that the model is run on once, in eval
            mode. With it the report has multiply-accumulates and the speed that the dispatch expects, and "auto"
            leaves layers alone that would not be faster. Inputs without a batch are noticed by it alone: without it,
            dims that `forward` counts from the front are taken for those of a batch (N, C, *spatial).
        budget: for "auto", one of {"parameters": 0.5} (at most that share of the model's parameters is left; the
            default), {"time": 0.5} (of the estimated time of its convolutions in a training step; needs
            `example_input`) and {"lost_energy": 0.3} (the mean over the convolutions; saves most within it).
        inplace: change `model` itself instead of a copy.
        progress: show a bar where matching takes more than a few seconds.

    Returns:
        The model and a `ConversionReport`: print it for a table; its `layers` are the data. Layers that are not
        replaced are in it with the reason.

    Raises:
        TypeError: `model` is no module or cannot be copied, `symmetry` is nothing of the above, an argument is of
            another type, or `inplace` with a convolution by itself.
        ValueError: the model has no convolutions, filters are not finite, `symmetry` has unknown keys, a function gave
            what does not fit its layer, `skip` fits no layer, the budget cannot be met, or "auto" is to tie layers on
            the meta device. A model that is changed in place is then as it was.
        ModuleNotFoundError: matching needs rustworkx, and "auto" scipy: `pip install 'symconv_fast[analysis]'`.
    """
    _check(model, symmetry, match, min_channels, budget)
    _check_flags(keep_norm=keep_norm, inplace=inplace, progress=progress)
    limit = budgets.check_budget(budget, example_input is not None)
    find_sites(model, min_channels, skip)  # raises before anything is copied
    if inplace and type(model) in TIED:
        raise TypeError(
            f"inplace=True cannot make another object of {type(model).__name__}; use the result instead"
        )
    if not inplace:
        model = _copied(model)
    calls = None
    if example_input is not None:
        calls = _record(model, example_input, find_sites(model, min_channels, skip))
    sites = find_sites(model, min_channels, skip)  # lazy layers have their sizes by now
    spaces = _unless_unbatched(find_spaces(model), calls)
    sites = [_unless_apart(site, spaces) for site in sites]
    matcher = Matcher(spaces if match else None, match == "followed", progress)
    notes = _prefer_followed(model, sites, matcher)
    decisions = _decide(model, sites, symmetry, matcher, calls, limit)
    before = count_parameters(model)
    costs = {
        site: (None if calls is None else len(calls.get(site.conv, ())), _cost(decisions[site], calls))
        for site in sites
    }
    made = _replace(model, [decisions[site] for site in sites], matcher.spaces, keep_norm)
    rows = tuple(_row(decisions[site], made.get(site.conv), costs[site]) for site in sites)
    result: Any = made.get(model, model)
    return result, ConversionReport(rows, before, count_parameters(result), (*_notes(matcher.spaces), *notes))


def _check(model: Any, symmetry: Any, match: Any, min_channels: Any, budget: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={type(model).__name__} must be a torch.nn.Module, such as torchvision's resnet18()"
        )
    check_wish(symmetry)
    if not isinstance(match, bool) and match != "followed":
        raise ValueError(f"match={match!r} must be True, False or 'followed'")
    if isinstance(min_channels, bool) or not isinstance(min_channels, int):
        raise TypeError(f"min_channels={min_channels!r} must be an int, such as 16")
    if min_channels < 0:
        raise ValueError(f"min_channels={min_channels!r} must be 0 or more, such as 16")
    if budget is not None and symmetry != "auto":
        raise ValueError(f"budget={budget!r} is for symmetry='auto', got symmetry={symmetry!r}")


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r} must be True or False")


def _copied(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"model={type(model).__name__} cannot be copied ({type(error).__name__}: {error}); use inplace=True"
        ) from error


def _record(model: nn.Module, example_input: Any, sites: Sequence[Site]) -> Calls:
    return record_calls(model, example_input, [site.conv for site in sites])


def _unless_unbatched(spaces: Spaces, calls: Calls | None) -> Spaces:
    """As they are; but dims that are counted from the front are others where inputs have no batch."""
    for conv, some in (calls or {}).items():
        ndim = len(getattr(conv, "kernel_size", ()))
        if spaces.error is None and any(len(call.shape) == ndim + 1 for call in some):
            return replace(spaces, error="the model is called on inputs without a batch")
    return spaces


def _prefer_followed(model: nn.Module, sites: Sequence[Site], matcher: Matcher) -> tuple[str, ...]:
    """No index where the model would take its layer for no convolution, and a note that says so."""
    able = [site.conv for site in sites if site.reason is None and site.name]
    if matcher.followed or matcher.spaces is None or matcher.spaces.error is not None:
        return ()
    matcher.followed = asks_for_types(model, able)
    if not matcher.followed:
        return ()
    return (
        "The model asks for the types of its layers, so that filters without a followed order lie as they did.",
    )


def _unless_apart(site: Site, spaces: Spaces) -> Site:
    """A site that is left alone where other code computes with the filters, of which a tied layer has fewer."""
    if site.reason is None and spaces.apart(site.name):
        return replace(site, reason="the model computes with its weight, apart from calling it")
    return site


def _decide(
    model: nn.Module,
    sites: Sequence[Site],
    symmetry: Any,
    matcher: Matcher,
    calls: Calls | None,
    limit: tuple[str, float],
) -> dict[Site, Decision]:
    """What becomes of each site; nothing is changed."""
    decisions = {site: Decision(site, reason=site.reason) for site in sites}
    able = [site for site in sites if site.reason is None]
    _check_values(able)
    if symmetry == "auto":
        ties, reasons = budgets.choose_ties(model, able, matcher, calls, limit)
    else:
        found = {site: wanted(symmetry, site) for site in able}
        ties = {site: tie for site, tie in found.items() if not isinstance(tie, str)}
        reasons = {site: reason for site, reason in found.items() if isinstance(reason, str)}
    decisions.update((site, Decision(site, reason=reason)) for site, reason in reasons.items())
    decisions.update((decision.site, decision) for decision in arrange(matcher, ties))
    return decisions


def _check_values(sites: Sequence[Site]) -> None:
    for site in sites:
        weight = convolution(site).weight
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"model: the weight of {site.name or 'the layer'} has values that are not finite (nan or inf); "
                "load a sound checkpoint, or leave the layer out with skip"
            )


def _cost(decision: Decision, calls: Calls | None) -> Cost | None:
    """Of a site after the conversion; None where the model was not run, or does not call it, or it cannot be told."""
    conv = decision.site.conv
    if calls is None or not calls.get(conv):
        return None
    if decision.tie is not None:
        return cost_of(convolution(decision.site), decision.tie[0], calls[conv])
    return present_cost(conv, calls[conv])


def _replace(
    model: nn.Module, decisions: Sequence[Decision], spaces: Spaces | None, keep_norm: bool
) -> dict[nn.Module | None, nn.Module]:
    """What each tied convolution became, in place: permute channels, tie, and put the layers into the model."""
    orders: dict[Space | None, Tensor] = {}
    for decision in decisions:
        if decision.through == "graph" and decision.order is not None:
            orders[decision.space] = decision.order
    known = {space: order for space, order in orders.items() if space is not None}
    if spaces is not None and known:
        spaces.permute(model, known)
    made: dict[nn.Module | None, nn.Module] = {}
    try:
        for decision in decisions:
            if decision.tie is not None:
                made[decision.site.conv] = _tied(decision, orders.get(decision.space), keep_norm)
    except BaseException:
        if spaces is not None and known:
            spaces.permute(model, {space: order.argsort() for space, order in known.items()})
        raise
    for decision in decisions:
        if decision.tie is not None:
            give(made[decision.site.conv], decision.site.conv)
    replace_modules(model, made)
    return made


def _tied(decision: Decision, space_order: Tensor | None, keep_norm: bool) -> nn.Module:
    """The layer for one convolution, whose filters lie in the order of their space by now."""
    conv = convolution(decision.site)
    assert decision.tie is not None
    last = format_of(conv.weight)
    index = None
    if decision.through == "index":
        assert decision.order is not None
        order = decision.order if space_order is None else space_order.argsort()[decision.order]
        conv = reorder_outputs(conv, order)
        index = order.argsort().to(conv.weight.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SymmetryWarning)  # the report says it
        layer: Any = TIED[type(conv)].from_conv(conv, decision.tie[0], keep_norm=keep_norm)
    layer.weight.data = layer.weight.data.contiguous(memory_format=last)
    return layer if index is None else Reordered(layer, index).train(conv.training)


def _row(decision: Decision, new: nn.Module | None, called: tuple[int | None, Cost | None]) -> LayerReport:
    conv = decision.site.conv
    row = LayerReport(
        decision.site.name,
        type(conv).__name__,
        None,
        decision.reason,
        parameters_before=count_parameters(conv),
        calls=called[0],
        cost=called[1],
    )
    if decision.tie is None or new is None:
        return replace(row, parameters=row.parameters_before)
    order = {"graph": "matched", "index": "matched, index", None: "as given"}[decision.through]
    return replace(
        row,
        symmetry=decision.tie[0],
        lost=decision.lost,
        lost_random=decision.lost_random,
        order=order,
        parameters=count_parameters(new),
    )


def _notes(spaces: Spaces | None) -> tuple[str, ...]:
    if spaces is None or spaces.error is None:
        return ()
    return (
        f"Channels cannot be followed, so that no permutation is undone in what reads them: {spaces.error}",
    )
