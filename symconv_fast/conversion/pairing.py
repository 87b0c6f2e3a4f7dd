"""The cheapest disjoint pairs of a complete graph, exactly: maximum-weight matching (Edmonds' blossoms, rustworkx)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..extras import need

Array = np.ndarray[Any, Any]

_STEPS = 1 << 50
"""Whole-number weights of an edge: a cost is rounded to this part of the range of costs."""


def cheapest_pairs(costs: Array, count: int) -> Array:
    """`count` disjoint pairs of least total cost among N items.

    A maximum-weight perfect matching. Where items stay single, as many dummy items are added, which can be paired with
    every item for nothing and not with one another: a perfect matching then has `count` pairs of true items.

    rustworkx takes whole numbers. A cost is rounded to 2^-50 of the range of costs, so that the total is at most
    count * 2^-50 of that range above the least: less than the rounding of costs that are sums in float64.

    Args:
        costs: (N, N) float64, symmetric; the diagonal is not read.
        count: at most N // 2.

    Returns:
        (count, 2) int64: the lower index of each pair first, the pairs by their lower index.
    """
    items = len(costs)
    if count == 0:
        return np.empty((0, 2), np.int64)
    first, second = np.triu_indices(items, 1)
    values = costs[first, second]
    least, largest = values.min(), values.max()
    if largest == least:  # no choice is better than another: neighbours, the first ones
        return np.arange(2 * count, dtype=np.int64).reshape(count, 2)
    weights = np.rint((largest - values) / (largest - least) * _STEPS).astype(np.int64)
    rustworkx = need("rustworkx", "matching filters into orbits")
    graph = rustworkx.PyGraph(multigraph=False)
    dummies = items - 2 * count
    graph.add_nodes_from(range(items + dummies))
    graph.extend_from_weighted_edge_list(list(zip(first.tolist(), second.tolist(), weights.tolist())))
    # Any weight would do for what all perfect matchings have as many of; the search is quickest with the largest.
    graph.extend_from_weighted_edge_list(
        [(i, items + k, _STEPS) for i in range(items) for k in range(dummies)]
    )
    matching = rustworkx.max_weight_matching(graph, max_cardinality=True, weight_fn=int)
    pairs = sorted((min(pair), max(pair)) for pair in matching if max(pair) < items)
    return np.array(pairs, np.int64).reshape(count, 2)
