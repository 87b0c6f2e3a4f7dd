# Which cases a run measures: the quick set, everything, or what the options ask for.
"""Selection of the cases of each benchmark file, from data alone: no torch function is called here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bench import shapes, targets
from bench.case import STEPS, Case, tie_name
from bench.shapes import Shape

DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("channels_last", "contiguous")
# The passes of each benchmark file.
KINDS = {
    "forward": ("fwd",),
    "backward": ("dgrad", "wgrad"),
    "step": ("step",),
    "depthwise": ("fwd", "dgrad", "wgrad", "step"),
    "small": ("fwd", "step"),
    "network": ("fwd", *STEPS),
    "equivariant": ("fwd", "dgrad", "wgrad", "step"),
}
APART = ("depthwise", "small", "network", "equivariant")  # families that have a file of their own


@dataclass(frozen=True)
class Options:
    """What was asked for; an empty value leaves it to the set.

    Attributes:
        full: every shape that the device takes, every tie and layout, float32 and bfloat16.
        shapes: part of the name of a shape, such as "256@14"; out of all shapes.
        ties, layouts, dtypes, passes: names.
        backend, algorithm: pinned for ours.
        device: "cpu" or "cuda".
        rehearsal: one tiny shape of each kind and one tie, to see that everything runs.
    """

    full: bool = False
    shapes: str = ""
    ties: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    backend: str = ""
    algorithm: str = ""
    device: str = "cpu"
    rehearsal: bool = False

    def __post_init__(self) -> None:
        known = {"layouts": LAYOUTS, "dtypes": DTYPES, "passes": (*KINDS["depthwise"], *STEPS[1:])}
        for name, valid in known.items():
            for value in getattr(self, name):
                if value not in valid:
                    raise ValueError(f"{name}: {value!r} is not known; give some of {', '.join(valid)}")

    @property
    def narrowed(self) -> bool:
        """Is anything but the size of the set asked for?"""
        narrowing = (self.shapes, self.ties, self.layouts, self.dtypes, self.passes, self.rehearsal)
        return any(narrowing) or bool(self.backend or self.algorithm)


def cases(kind: str, options: Options) -> list[Case]:
    """The cases of one benchmark file, each once.

    Args:
        kind: a key of `KINDS`.
        options: without any that narrows, the quick or the full set with the cases of `bench.targets`;
            otherwise the product of what is asked for.
    """
    passes = [name for name in KINDS[kind] if not options.passes or name in options.passes]
    if kind == "network" and not options.rehearsal:
        some = shapes.NETWORK_LAYERS if options.device == "cpu" else ()
        return _of_kinds(some, passes, options)
    if kind == "equivariant":
        some = shapes.REHEARSAL_EQUIVARIANT if options.rehearsal else shapes.EQUIVARIANT
        quick = not options.full and not options.narrowed
        return _of_kinds(
            some, [name for name in passes if not (quick and name in KINDS["backward"])], options
        )
    grid = [
        Case(shape, tie, direction, layout == "channels_last", getattr(torch, dtype),
             options.backend, options.algorithm, options.device)
        for dtype in options.dtypes or (("float32", "bfloat16") if options.full else ("float32",))
        for direction in passes
        for shape in _shapes(kind, options)
        for tie in _ties(kind, direction, shape, options)
        for layout in _layouts(shape, options)
    ]  # fmt: skip
    if not options.narrowed:
        grid += [case for case in targets.cases(options.device) if _belongs(case, kind)]
    return list(dict.fromkeys(grid))


def _of_kinds(some: Iterable[shapes.Kind], passes: Sequence[str], options: Options) -> list[Case]:
    """Of every kind of layer all sizes, or in the quick set the first one."""
    return [
        Case(shape.on(options.device), kind.tie, direction, layout == "channels_last", getattr(torch, dtype),
             options.backend, options.algorithm, options.device, kind.input_tie)
        for kind in some
        if not options.ties or tie_name(kind.input_tie, kind.tie) in options.ties
        for shape in (kind.shapes if options.full or options.narrowed else kind.shapes[:1])
        if options.shapes in f"{kind.name} {shape.name}"
        for direction in kind.passes
        if direction in passes
        for dtype in options.dtypes or ("float32",)
        for layout in (options.layouts or LAYOUTS[:1] if len(shape.spatial) > 1 else LAYOUTS[:1])
    ]  # fmt: skip


def _belongs(case: Case, kind: str) -> bool:
    family = case.family if case.family in APART else "layer"
    return case.direction in KINDS[kind] and family == (kind if kind in APART else "layer")


def _shapes(kind: str, options: Options) -> list[Shape]:
    everything: Iterable[Shape] = shapes.ALL if options.full or options.shapes else shapes.QUICK
    if kind == "small":
        everything = shapes.SMALL
    if options.rehearsal:
        everything = shapes.REHEARSAL
    wanted = [shape.on(options.device) for shape in everything if shape.cpu or options.device == "cuda"]
    return [
        shape
        for shape in dict.fromkeys(wanted)
        if options.shapes in shape.name and shape.depthwise == (kind == "depthwise")
    ]


def _ties(kind: str, direction: str, shape: Shape, options: Options) -> tuple[str, ...]:
    if options.ties:
        return tuple(tie for tie in options.ties if tie in shape.ties)
    if options.rehearsal:
        return shape.ties[:1]
    if options.full or options.narrowed or (direction == "fwd" and kind != "small"):
        return shape.ties
    return shape.ties[-1:]  # the quick set: every pass, but only the largest tie


def _layouts(shape: Shape, options: Options) -> tuple[str, ...]:
    wanted = options.layouts or (LAYOUTS if options.full else LAYOUTS[:1])
    return wanted if len(shape.spatial) > 1 else wanted[:1]


class Budget:
    """How many seconds to measure a case, so that a run of `total` cases ends in time.

    Half of what is left for each case goes into measuring; the rest is for building and checking it.
    """

    LEAST = 0.2  # shorter ones say little

    def __init__(
        self, seconds: float, minutes: float, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.total, self.clock = seconds, total, clock
        self.end = clock() + 60 * minutes if minutes else None

    def seconds(self, done: int) -> float:
        """For the next case, after `done` ones."""
        if self.end is None:
            return self.most
        share = (self.end - self.clock()) / max(1, self.total - done)
        return min(self.most, max(self.LEAST, share / 2))
