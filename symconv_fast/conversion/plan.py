"""What `convert` is going to do with each convolution: its tie, the order of its filters, and what that loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from ..channels import Space, Spaces
from ..symmetry import Symmetry
from ..ties import Ties
from .matching import Distances, match_filters, mirror_distances, random_loss, reorder_filters
from .sites import Site

Tie = tuple[Symmetry, Ties]


@dataclass(frozen=True, eq=False)
class Decision:
    """One convolution: the tie that it gets and the old places of its filters in the order of the tied layer.

    `reason` instead of a tie where it is left alone. `through` is "graph" where the space of its output takes on the
    same order, "index" where the output has to be brought back, None where the filters stay as they lie. `space` is
    that of its output where channels can be permuted in it.
    """

    site: Site
    tie: Tie | None = None
    reason: str | None = None
    order: Tensor | None = None
    through: str | None = None
    lost: float = 0.0
    lost_random: float = math.nan
    space: Space | None = None


@dataclass(eq=False)
class Matcher:
    """Finds orders of filters, jointly for those that share a space of channels; remembers what it measured.

    Without `spaces` filters stay as they lie. `followed` moves them only where the graph can be followed. `progress`
    shows a bar where that takes more than a few seconds.
    """

    spaces: Spaces | None
    followed: bool = False
    progress: bool = False
    _distances: dict[Site, Distances] = field(default_factory=dict)
    _orders: dict[tuple[tuple[int, ...], Ties], Tensor | None] = field(default_factory=dict)

    def each(self, units: Sequence[Sequence[Site]]) -> Iterator[Sequence[Site]]:
        """The units, behind a progress bar; matching takes time with the cube of the filters."""
        from tqdm import tqdm

        shown, self.progress = self.progress, False  # one bar, not one inside another
        work = [convolution(sites[0]).out_channels ** 3 for sites in units]
        look = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
        settings = {"total": sum(work), "delay": 2, "leave": False, "disable": not shown, "bar_format": look}
        with tqdm(desc="matching filters", **settings) as bar:
            for sites, amount in zip(units, work):
                yield sites
                bar.update(amount)
        self.progress = shown

    def space(self, site: Site) -> Space | None:
        """The space that the outputs of a site can be permuted in; None where their order is fixed."""
        if not site.name or self.spaces is None or self.spaces.error is not None:
            return None
        found = self.spaces.of(site.name)
        return found if found.fixed is None else None

    def order(self, sites: Sequence[Site], ties: Ties) -> Tensor | None:
        """The order of filters in which the sites together lose least; None for that which they have."""
        key = (tuple(map(id, sites)), ties)
        if any(convolution(site).weight.is_meta for site in sites):
            return None
        if key not in self._orders:
            distances = reduce(add, (self._measure(site) for site in sites))
            order = match_filters(distances, ties)
            same = torch.equal(order, torch.arange(order.numel()))
            self._orders[key] = None if same else order
        return self._orders[key]

    def _measure(self, site: Site) -> Distances:
        if site not in self._distances:
            conv = convolution(site)
            dim = 1 if conv.transposed else 0
            self._distances[site] = mirror_distances(
                filters_of(conv), len(conv.kernel_size), dim, conv.groups
            )
        return self._distances[site]


def convolution(site: Site) -> _ConvNd:
    """The layer of a site that can be tied."""
    assert isinstance(site.conv, _ConvNd)
    return site.conv


def filters_of(conv: _ConvNd) -> Tensor:
    """Its weight on the CPU, where matching runs."""
    return conv.weight.detach().cpu()


def arrange(matcher: Matcher, ties: Mapping[Site, Tie]) -> list[Decision]:
    """A decision for each site in `ties`; nothing is changed.

    Of the sites of one space those with the ties of most weights give it their order; others keep one of their own.
    """
    if matcher.spaces is None:
        return [_as_given(site, tie, None) for site, tie in ties.items()]
    groups: dict[Space | Site, list[Site]] = defaultdict(list)
    for site in ties:
        groups[matcher.space(site) or site].append(site)
    decisions: dict[Site, Decision] = {}
    for sites in matcher.each(list(groups.values())):
        leading = _most(sites, ties) if matcher.space(sites[0]) is not None else []
        order = matcher.order(leading, ties[leading[0]][1]) if leading else None
        for site in sites:
            if site in leading:
                decisions[site] = _matched(leading, site, ties[site], order, "graph")
            elif matcher.followed:
                decisions[site] = _as_given(site, ties[site], order)
            else:
                own = matcher.order([site], ties[site][1])
                decisions[site] = _matched([site], site, ties[site], own, "index")
    return [replace(decisions[site], space=matcher.space(site)) for site in ties]


def _most(sites: Sequence[Site], ties: Mapping[Site, Tie]) -> list[Site]:
    """The sites, among those of one space, whose ties most weights have."""
    alike: dict[Ties, list[Site]] = defaultdict(list)
    for site in sites:
        alike[ties[site][1]].append(site)
    return max(alike.values(), key=lambda some: sum(convolution(site).weight.numel() for site in some))


def _as_given(site: Site, tie: Tie, order: Tensor | None) -> Decision:
    """Filters as they lie, or in an order that others chose; random ones lose then what counting rows tells."""
    through = None if order is None else "graph"
    return Decision(site, tie, None, order, through, _lost(site, tie[1], order), _unmatched(tie[1]))


def _matched(joint: Sequence[Site], site: Site, tie: Tie, order: Tensor | None, through: str) -> Decision:
    """Filters in the order that all of `joint` lose least in; so are the random ones that they are compared with."""
    conv = convolution(site)
    if conv.weight.is_meta:
        return _as_given(site, tie, None)
    dim = 1 if conv.transposed else 0
    shape = list(conv.weight.shape)
    shape[1 - dim] = sum(convolution(other).weight.shape[1 - dim] for other in joint)
    null = random_loss(tuple(shape), tie[1], dim=dim, draws=1).mean
    way = None if order is None else through
    return Decision(site, tie, None, order, way, _lost(site, tie[1], order), null)


def _unmatched(ties: Ties) -> float:
    """What random filters lose in any order, in the mean."""
    return 1 - ties.unique / ties.out_channels


def _lost(site: Site, ties: Ties, order: Tensor | None) -> float:
    conv = convolution(site)
    if conv.weight.is_meta:
        return math.nan
    filters = filters_of(conv)
    if order is not None:
        filters = reorder_filters(filters, order, 1 if conv.transposed else 0, conv.groups)
    return ties.lost_energy(filters, 1 if conv.transposed else 0)
