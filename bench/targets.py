# What the kernels must reach and should reach, as data: each target with the cases that its mean is over.
"""Targets on a 2-core CPU with AVX-512 and on an H200, as geometric means of the ratio to the baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bench import rows, shapes
from bench.case import Case, tie_name
from bench.shapes import Shape

NOT_SLOWER = (
    0.97  # of any single shape: below this a fallback should have run, for it is more than noise explains
)
OVERHEAD_US = (
    10.0  # that a call of a tiny layer may take longer than torch's, in microseconds, without autograd
)
OVERHEAD_SHAPE = shapes.SMALL[0].name
MEMORY_SHARE = 0.10  # extra bytes that a layer may hold at the peak of a pass, as a share of its activations
MEMORY_OF_THREAD = (
    1 << 20
)  # or, on small maps, of each thread, for its panel and products: what a core's cache holds
PACKED = 4 / 3  # of the reduced weight, packed beside that; F(2,3) makes four products of three taps
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Target:
    """A mean that must be reached and one that is the goal.

    Attributes:
        name: for the table.
        must, goal: geometric mean of the ratio.
        cases: what the mean is over.
    """

    name: str
    must: float
    goal: float
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Achieved:
    """A target with what a run reached: the mean over the cases that it has, the worst of them, and how many."""

    target: Target
    measured: int
    mean: float | None
    worst: float | None
    worst_shape: str

    @property
    def verdict(self) -> str:
        """In one word, or two."""
        if self.mean is None:
            return "not measured"
        if self.measured < len(self.target.cases):
            return f"{self.measured} of {len(self.target.cases)} cases"
        if self.mean >= self.target.goal:
            return "goal"
        return "must" if self.mean >= self.target.must else "MISSED"


def _cases(some: Iterable[Shape], tie: str, direction: str = "fwd", **rest: object) -> tuple[Case, ...]:
    return tuple(Case(shape, tie, direction, **rest) for shape in some)  # type: ignore[arg-type]


BIG = [shape for shape in shapes.OCTUPLES if shape.channels >= 8 * 16]
FEW = [shape for shape in shapes.OCTUPLES if shape.channels < 8 * 16]
DEPTHWISE_7 = [shape for shape in shapes.DEPTHWISE if shape.kernel == 7]
MEAN = shapes.MEAN

CPU = (
    Target("forward, h", 2.2, 3.2, _cases(MEAN, "h")),
    Target("forward, v", 2.2, 3.2, _cases(MEAN, "v")),
    Target("forward, hv", 2.8, 3.8, _cases(MEAN, "hv")),
    Target("forward, hvz, U ≥ 16", 4.0, 6.0, _cases(BIG, "hvz")),
    Target("forward, hvz, U = 4 and 8", 2.5, 4.0, _cases(FEW, "hvz")),
    Target("forward without Winograd, h", 1.7, 1.95, _cases(MEAN, "h", algorithm="scatter")),
    Target("forward without Winograd, v", 1.7, 1.95, _cases(MEAN, "v", algorithm="scatter")),
    Target("forward without Winograd, hv", 2.8, 3.6, _cases(MEAN, "hv", algorithm="scatter")),
    Target("forward, contiguous, h", 1.7, 2.7, _cases(MEAN, "h", channels_last=False)),
    Target("forward, contiguous, hv", 2.6, 3.4, _cases(MEAN, "hv", channels_last=False)),
    Target("forward, contiguous, hvz, U ≥ 16", 3.5, 5.0, _cases(BIG, "hvz", channels_last=False)),
    Target("forward, bfloat16, h", 1.7, 2.1, _cases(MEAN, "h", dtype=BF16)),
    Target("forward, bfloat16, hv", 2.8, 3.6, _cases(MEAN, "hv", dtype=BF16)),
    Target("training step, h", 2.0, 2.8, _cases(MEAN, "h", "step")),
    Target("training step, hv", 2.8, 3.6, _cases(MEAN, "hv", "step")),
    Target("training step, hvz, U ≥ 16", 3.5, 5.0, _cases(BIG, "hvz", "step")),
    Target("depthwise 7×7, h", 2.5, 4.0, _cases(DEPTHWISE_7, "h")),
    Target("depthwise 7×7, hv", 3.0, 5.0, _cases(DEPTHWISE_7, "hv")),
    Target("weights decide (512@7, 1024@7), h", 1.5, 2.6, _cases(shapes.WEIGHT_BOUND, "h")),
    Target("weights decide (512@7, 1024@7), hv", 1.5, 2.6, _cases(shapes.WEIGHT_BOUND, "hv")),
)

WIDE = [
    shape.on("cuda")
    for shape in (*shapes.MEAN, *shapes.QUICK)
    if shape.family == "2-D" and shape.channels >= 128
]
NARROW = [shape.on("cuda") for shape in (*shapes.MEAN, *shapes.QUICK) if shape.channels == 64]
NARROW = [shape for shape in NARROW if shape.family == "2-D"]
GPU_BIG = [shape.on("cuda") for shape in shapes.OCTUPLES if shape.channels >= 64]
GPU_DEPTHWISE = [shape.on("cuda") for shape in shapes.DEPTHWISE]


def _gpu(name: str, must: float, goal: float, some: Iterable[Shape], tie: str, direction: str = "fwd",
         dtype: torch.dtype = BF16) -> Target:  # fmt: skip
    some = dict.fromkeys(some)
    title = f"H200, {name}, {str(dtype).removeprefix('torch.')}"
    return Target(title, must, goal, _cases(some, tie, direction, dtype=dtype, device="cuda"))


GPU = (
    _gpu("forward, h", 1.5, 1.9, WIDE, "h"),
    _gpu("forward, v", 1.5, 1.9, WIDE, "v"),
    _gpu("forward, hv", 2.3, 3.4, WIDE, "hv"),
    _gpu("forward, hv, 64 channels", 1.5, 1.9, NARROW, "hv"),
    _gpu("forward, hvz", 3.0, 5.5, GPU_BIG, "hvz"),
    _gpu("input gradient, h", 1.5, 1.9, WIDE, "h", "dgrad"),
    _gpu("input gradient, hv", 2.3, 3.4, WIDE, "hv", "dgrad"),
    _gpu("weight gradient, h", 1.3, 1.7, WIDE, "h", "wgrad"),
    _gpu("weight gradient, hv", 2.0, 3.0, WIDE, "hv", "wgrad"),
    _gpu("forward, h", 1.3, 2.4, WIDE, "h", dtype=torch.float32),
    _gpu("forward, hv", 2.0, 3.0, WIDE, "hv", dtype=torch.float32),
    _gpu("depthwise 7×7, hv", 1.5, 2.5, [s for s in GPU_DEPTHWISE if s.kernel == 7], "hv"),
    _gpu("depthwise 13×13 and 31×31, hv", 3.0, 10.0, [s for s in GPU_DEPTHWISE if s.kernel > 7], "hv"),
)


def _network(kind: shapes.Kind) -> list[Target]:
    """No pass of a layer of a real network is slower than torch's; in 3-D much is to be had."""
    least = {"3-D, large maps": (3.5, 2.5), "3-D, stride 2": (2.0, 2.0)}.get(kind.name, (1.0, 1.0))
    goals = {"3-D, large maps": (5.0, 4.0), "3-D, stride 2": (3.0, 3.0)}.get(kind.name, (1.5, 1.5))
    return [
        Target(f"{kind.name}, {rows.PASS_NAMES[direction]}, {kind.tie}", must, goal, cases)
        for direction, must, goal in zip(kind.passes, least, goals, strict=True)
        if (cases := _cases(kind.shapes, kind.tie, direction))
    ]


# Of a kind that ties both sides: what the forward pass and the training step must reach, and their goals.
BOTH_SIDES = {
    "h": ((1.8, 1.95), (1.8, 1.9)),
    "hv": ((2.7, 3.4), (2.6, 3.2)),
    "hvz": ((3.5, 5.0), (3.0, 4.5)),
}
ANY_GAIN = ((1.0, 1.5), (1.0, 1.5))  # of the reverse complement
SHARES = (0.75, 0.9)  # of the limit, of self-symmetric filters


def taps_limit(kind: shapes.Kind) -> float:
    """All taps of self-symmetric filters of `h+` or `h-` over those that are kept."""
    taps = kind.shapes[0].taps[-1]
    return taps / (taps // 2 if kind.tie == "h-" else (taps + 1) // 2)


def _equivariant(kind: shapes.Kind) -> list[Target]:
    """The forward pass and the training step of a kind of layer of equivariant networks."""
    if not kind.input_tie:
        bounds = (tuple(round(share * taps_limit(kind), 2) for share in SHARES),) * 2
    else:
        bounds = BOTH_SIDES[kind.tie] if kind.input_tie == kind.tie and "DNA" not in kind.name else ANY_GAIN
    return [
        Target(
            f"{kind.name}, {rows.PASS_NAMES[direction]}, {tie_name(kind.input_tie, kind.tie)}", must, goal,
            _cases(kind.shapes, kind.tie, direction, input_tie=kind.input_tie),
        )
        for direction, (must, goal) in zip(("fwd", "step"), bounds, strict=True)
    ]  # fmt: skip


EQUIVARIANT = tuple(target for kind in shapes.EQUIVARIANT for target in _equivariant(kind))
NETWORK = tuple(target for kind in shapes.NETWORK_LAYERS for target in _network(kind))
TARGETS = {"cpu": (*CPU, *NETWORK, *EQUIVARIANT), "cuda": GPU}


def cases(device: str) -> list[Case]:
    """Every case that some target of a device ("cpu" or "cuda") needs, once."""
    return list(dict.fromkeys(case for target in TARGETS[device] for case in target.cases))


def overhead(measured: Iterable[rows.Row]) -> float | None:
    """Microseconds that the forward pass of the tiny layer takes longer than torch's, at the worst of its ties."""
    tiny = [
        row
        for row in measured
        if row["shape"] == OVERHEAD_SHAPE
        and row["pass"] == "fwd"
        and not row["backend_pin"]
        and not row["algorithm_pin"]
    ]
    return max((1e3 * (row["ms_p50"] - row["baseline_ms"]) for row in tiny), default=None)


def memory_limit(row: rows.Row) -> float:
    """Extra bytes that a case may hold: a share of its activations, or what torch's convolution holds, or a cache of
    each thread and the packed weight. Where torch's convolution is what runs, it is given filters, and returns some."""
    packed = PACKED * row["filter_bytes"] / row["limit"]
    given = 2 * row["filter_bytes"] if "expand" in row["algorithm"] else 0
    torchs = (row["baseline_peak_extra_bytes"] or 0) + given
    return max(MEMORY_SHARE * row["activation_bytes"], torchs, MEMORY_OF_THREAD * row["threads"] + packed)


def memory_rows(measured: Iterable[rows.Row]) -> list[rows.Row]:
    """Rows of layers on the CPU whose memory is known; networks keep activations for their gradients beside."""
    return [
        row
        for row in measured
        if row["family"] != "model" and row["device_kind"] == "cpu" and row["peak_extra_bytes"] is not None
    ]


def achieved(measured: Iterable[rows.Row]) -> list[Achieved]:
    """Every target of the devices that these rows are from, with what they reach."""
    by_key = {rows.key(row): row for row in measured}
    devices = {row["device_kind"] for row in by_key.values()}
    result = []
    for target in (target for device, some in TARGETS.items() if device in devices for target in some):
        found = [by_key[k] for case in target.cases if (k := rows.key(case.facts())) in by_key]
        if not found:
            result.append(Achieved(target, 0, None, None, ""))
            continue
        worst = min(found, key=lambda row: row["ratio"])
        mean = rows.geometric_mean(row["ratio"] for row in found)
        result.append(Achieved(target, len(found), mean, worst["ratio"], worst["shape"]))
    return result
