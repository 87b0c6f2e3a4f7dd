"""symmetry="auto": the tie of each convolution that loses least under a budget, as an integer program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..extras import need
from .estimate import Call, cost_of, count_parameters, present_cost
from .plan import Matcher, Tie, arrange, convolution
from .sites import Site
from .wishes import fitted, keys_of

BUDGETS = ("parameters", "time", "lost_energy")
GAIN = 1.02
"""Times as fast in a training step, by the estimate, below which a tie is not worth having."""

_WHOLE = {"parameters": "parameters of the model", "time": "time of the convolutions"}

_SCALE = 1e5
"""What shares and energies are multiplied by for the solver, whose absolute tolerances are 1e-6."""


@dataclass(frozen=True, eq=False)
class Option:
    """What the convolutions of one space could be: ties, the weights and seconds these save, the energies they lose."""

    ties: Mapping[Site, Tie]
    saved: int = 0
    seconds_saved: float = 0.0
    lost: float = 0.0


def check_budget(budget: Any, timed: bool) -> tuple[str, float]:
    """The one quantity that is limited, and its limit.

    Raises:
        TypeError, ValueError: it is no dict of one known name and a number that can be a limit.
    """
    if budget is None:
        return "parameters", 0.5
    valid = "{'parameters': 0.5}, {'time': 0.5} (shares of what there was) or {'lost_energy': 0.3} (the mean)"
    if not isinstance(budget, Mapping) or len(budget) != 1:
        raise TypeError(f"budget={budget!r} must limit one quantity: {valid}")
    ((name, limit),) = budget.items()
    if name not in BUDGETS:
        raise ValueError(f"budget={budget!r} limits {name!r}; valid: {valid}")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise TypeError(f"budget={budget!r} must have a number, such as {valid}")
    if not 0 < limit <= 1:
        raise ValueError(f"budget={budget!r} must be above 0 and at most 1, such as {valid}")
    if name == "time" and not timed:
        raise ValueError(
            "budget={'time': ...} needs example_input, such as torch.zeros(8, 3, 224, 224), for the estimate"
        )
    return name, float(limit)


def choose_ties(
    model: nn.Module,
    sites: Sequence[Site],
    matcher: Matcher,
    calls: Mapping[nn.Module, Sequence[Call]] | None,
    budget: tuple[str, float],
) -> tuple[dict[Site, Tie], dict[Site, str]]:
    """The ties of least lost energy under the budget, and why sites have none.

    The energies of layers are added as shares of their own, so that each layer counts alike.

    Raises:
        ValueError: no ties meet the budget; the message has the least that can be reached. Or filters have no values.
    """
    reasons: dict[Site, str] = {}
    for site in sites:
        if convolution(site).weight.is_meta:
            raise ValueError(
                f"symmetry='auto' needs the filters, and those of {site.name or 'the layer'} are on the meta device: "
                "load the weights first, or name a tie, such as 'hv'"
            )
    units: dict[Any, list[Site]] = defaultdict(list)
    for site in sites:
        units[matcher.space(site) or site].append(site)
    options = [_options(unit, matcher, calls, reasons) for unit in matcher.each(list(units.values()))]
    chosen = _solve(options, _totals(model, calls), len(sites), budget, calls is not None)
    ties = {site: tie for option in chosen for site, tie in option.ties.items()}
    for site in sites:
        if site not in ties:
            enough = "another tie would pass" if budget[0] == "lost_energy" else "no tie needed for"
            reasons.setdefault(site, f"{enough} the budget")
    return {site: ties[site] for site in sites if site in ties}, {
        s: r for s, r in reasons.items() if s not in ties
    }


def _options(
    unit: Sequence[Site],
    matcher: Matcher,
    calls: Mapping[nn.Module, Sequence[Call]] | None,
    reasons: dict[Site, str],
) -> list[Option]:
    """No tie at all, and each key for those of the unit that gain by it."""
    options = [Option({})]
    for key in dict.fromkeys(key for site in unit for key in keys_of(convolution(site))):
        ties: dict[Site, Tie] = {}
        seconds = 0.0
        for site in unit:
            tie = fitted(key, convolution(site))
            gained = tie if isinstance(tie, str) else _gain(site, tie, calls)
            if isinstance(gained, str):
                reasons.setdefault(site, gained)
            elif not isinstance(tie, str):
                ties[site] = tie
                seconds += gained
        if ties:
            lost = sum(decision.lost for decision in arrange(matcher, ties))
            saved = sum(_saved(site, tie) for site, tie in ties.items())
            options.append(Option(ties, saved, seconds, lost))
    return options


def _gain(site: Site, tie: Tie, calls: Mapping[nn.Module, Sequence[Call]] | None) -> float | str:
    """Seconds that a tie saves in a training step, or why there is no gain to expect; 0 where nobody knows."""
    if calls is None:
        return 0.0
    if not calls.get(site.conv):
        return "the model does not call it with example_input"
    cost = cost_of(convolution(site), tie[0], calls[site.conv])
    if cost.step_ratio < GAIN:
        return f"no gain to expect: an estimated {cost.step_ratio:.2f} times as fast with {tie[0]}"
    known = np.isfinite(cost.ordinary_step) and np.isfinite(cost.step)
    return cost.ordinary_step - cost.step if known else 0.0


def _saved(site: Site, tie: Tie) -> int:
    conv, ties = convolution(site), tie[1]
    return conv.weight.numel() // ties.out_channels * (ties.out_channels - ties.unique)


def _totals(model: nn.Module, calls: Mapping[nn.Module, Sequence[Call]] | None) -> dict[str, float]:
    """What shares are shares of: the model's parameters, and the seconds of its convolutions as they are."""
    costs = [present_cost(conv, made) for conv, made in (calls or {}).items()]
    seconds = sum(cost.step for cost in costs if cost is not None)
    return {"parameters": float(count_parameters(model)), "time": seconds}


class _Program(NamedTuple):
    """Choose one option of each unit so that `objective` is least and the sum of `row` between `low` and `high`."""

    objective: np.ndarray
    row: np.ndarray
    low: float
    high: float


def _solve(
    options: Sequence[Sequence[Option]],
    totals: Mapping[str, float],
    layers: int,
    budget: tuple[str, float],
    timed: bool,
) -> list[Option]:
    """One option of each unit: the least of the objective within the limit."""
    name, limit = budget
    flat = [option for unit in options for option in unit]
    saved = {
        "parameters": np.array([option.saved for option in flat], dtype=float),
        "time": np.array([option.seconds_saved for option in flat]),
    }
    lost = np.array([option.lost for option in flat])
    if name == "lost_energy":
        goal = "time" if timed and totals["time"] > 0 and saved["time"].any() else "parameters"
        program = _Program(-saved[goal] / totals[goal], lost / max(1, layers), -np.inf, limit)
    else:
        whole = totals[name]
        if not 0 < whole < np.inf:
            raise ValueError(
                f"budget={{{name!r}: {limit}}} limits what there is none of, or no estimate: the {_WHOLE[name]}; "
                "limit another quantity"
            )
        shares = saved[name] / whole
        # Ties that lose as much are told apart by what they save.
        program = _Program(lost - 1e-6 * shares, shares, 1 - limit, np.inf)
        most = sum(max(of_unit) for of_unit in _by_unit(options, shares))
        if most < program.low:
            raise ValueError(
                f"budget={{{name!r}: {limit}}} cannot be met: with the most ties there are, {1 - most:.3f} of the "
                f"{_WHOLE[name]} is left; give at least that"
            )
    return [option for option, taken in zip(flat, _run(program, options, budget)) if taken]


def _run(program: _Program, options: Sequence[Sequence[Option]], budget: tuple[str, float]) -> Sequence[bool]:
    """Of each option whether it is taken."""
    count = len(program.row)
    if not count:
        return []
    optimize = need("scipy.optimize", "symmetry='auto'")
    one_each = np.zeros((len(options), count))
    start = 0
    for i, unit in enumerate(options):
        one_each[i, start : start + len(unit)] = 1
        start += len(unit)
    low, high = (program.low - 1e-12) * _SCALE, (program.high + 1e-12) * _SCALE
    solved = optimize.milp(
        program.objective * _SCALE,
        integrality=np.ones(count),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(program.row[None] * _SCALE, low, high),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise ValueError(f"budget={dict([budget])} cannot be met: {solved.message}")
    return [bool(x > 0.5) for x in solved.x]


def _by_unit(options: Sequence[Sequence[Option]], values: np.ndarray) -> list[list[float]]:
    iterator = iter(values)
    return [[float(next(iterator)) for _ in unit] for unit in options]
