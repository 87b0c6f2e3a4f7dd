"""Plans the gradient of the weight on Hopper: 3 x 3, stride 1, padding 1, one tie along one axis or two.

What cannot run is what the native check says, besides the geometry. No time was ever taken: the estimates count clocks
of products, of shared memory and of the second-level cache, and a share of them. NOT MEASURED.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from ...problem import Problem
from ..gpu_cost import CACHE_BYTES, LAUNCH_SECONDS
from ..triton.geometry import geometry, pixel_strides
from . import families, hopper
from .limits import DTYPES, Limits

LAYOUT = families.CHANNELS_LAST

CLOCK = 1.75e9
BLOCK = 64
"""Rows and channels of a CTA, which sums all nine taps of them."""

SHARE = 0.7
"""Of the rate of the instructions, or of shared memory where that is less, that is expected of the main loop."""

# Clocks of a multiprocessor. A product of a warp group is 64 x 64 x 16; an H200's rate was measured, and what a byte of
# the second-level cache and of the workspace takes. What a stage waits, and a CTA's start, are guesses.
_PRODUCT, _BYTE, _SUM_BYTE, _STAGE, _START = 32, 1 / CACHE_BYTES, 1 / 15, 100, 3000
_SHARED_BYTE = 1 / 128

_WORKSPACE = 64 << 20  # bytes of sums beyond those of one split


class Strip(NamedTuple):
    """A strip of pixels as csrc/cuda/hopperwgrad/strip.h names it: 8 columns, this many rows and members."""

    name: str
    members: int
    height: int
    shared_bytes: int

    def strips(self, problem: Problem) -> int:
        """Of the batch, rows and columns as the kernels have them: exchanged for a tie along rows alone."""
        g = geometry(problem)
        height, width = g.x[1:]
        if g.segments[0].mask == 2:
            height, width = width, height
        return int(g.batch * -(-height // self.height) * -(-width // 8))

    def clocks(self) -> float:
        """Of one strip: the products and what they read of shared memory, or the copies."""
        steps, pixel = self.height // 2, 2 * BLOCK
        pairs = 3 * (steps + 2) * self.members * 16 * pixel  # windows that ldmatrix loads
        shared = (pairs + 9 * steps * 16 * pixel) * _SHARED_BYTE
        copied = (self.members * (self.height + 2) * 10 + self.height * 8) * pixel
        return max(max(9 * steps * _PRODUCT, shared) / SHARE, copied * _BYTE) + _STAGE


# In the order of csrc/cuda/hopperwgrad/strip.h; a call's `strip` counts those of its number of members.
STRIPS = (
    Strip("h16", 2, 16, 191536),
    Strip("h8", 2, 8, 210016),
    Strip("hv16", 4, 16, 222240),
    Strip("hv8", 4, 8, 185392),
)


class Plan(NamedTuple):
    """The strip by its number, the splits of the pixels, clocks by the model."""

    strip: int
    splits: int
    clocks: float


def _strips(problem: Problem) -> tuple[Strip, ...]:
    members = 1 << geometry(problem).segments[0].order
    return tuple(strip for strip in STRIPS if strip.members == members)


@lru_cache(maxsize=4096)
def plan(problem: Problem, limits: Limits) -> Plan:
    """The quickest by the model, of both strips and up to four CTAs a multiprocessor, one after the other."""
    g, found = geometry(problem), []
    blocks = g.groups * -(-g.rows // BLOCK) * -(-g.channels // BLOCK)
    slab = 36 * g.groups * g.rows * g.channels
    for number, strip in enumerate(_strips(problem)):
        strips = strip.strips(problem)
        for turns in range(1, 5):
            most = min(strips, turns * limits.multiprocessors // blocks, 1 + _WORKSPACE // slab)
            splits = max(most, 1)
            rounds = -(-blocks * splits // limits.multiprocessors)
            clocks = rounds * (-(-strips // splits) * strip.clocks() + _START)
            sums = 2 * splits * slab * _SUM_BYTE / limits.multiprocessors
            found.append(Plan(number, splits, clocks + sums))
    return min(found, key=lambda plan: plan.clocks)


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op != "wgrad":
        return "it has the gradient of the weight alone"
    why = hopper.not_for_warp_groups(problem, limits)
    if why is not None:
        return why
    if problem.out_channels % 8:
        return f"8 does not divide the {problem.out_channels} output channels"
    if max(strip.shared_bytes for strip in STRIPS) > limits.shared_bytes:
        return f"its strips do not fit the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    return _native(problem, limits).check() or None


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of HopperwgradParams."""
    problem, strides = call.problem, call.strides
    g, chosen = geometry(problem), plan(problem, call.limits)
    values = {"dtype": DTYPES[problem.dtype], "batch": g.batch, "groups": g.groups, "channels": g.channels}
    values |= {"rows": g.rows, "mask": g.segments[0].mask, "height": g.x[1], "width": g.x[2]}
    values |= {"strip": chosen.strip, "splits": chosen.splits}
    for name in ("x", "y"):
        n, _, _, y, x = strides[name]
        values |= {f"{name}_n": n, f"{name}_y": y, f"{name}_x": x}
    group, row, channel, _, y, x = strides["w"]
    return values | {"w_group": group, "w_row": row, "w_channel": channel, "w_y": y, "w_x": x}


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """The strip's name; the splits are added up by a kernel of the family wgrad."""
    return (_strips(problem)[plan(problem, limits).strip].name,)


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    return float(2 * LAUNCH_SECONDS + plan(problem, limits).clocks / CLOCK)


def _native(problem: Problem, limits: Limits) -> Any:
    """The native parameters of a problem with dense tensors."""
    return _of(families.native_class("hopper", "wgrad"), problem, limits)


@lru_cache(maxsize=4096)
def _of(native: Any, problem: Problem, limits: Limits) -> Any:
    g = geometry(problem)
    row = 9 * g.channels
    strides = {
        "x": pixel_strides(problem.input_shape, True),
        "y": pixel_strides(problem.output_shape, True),
        "w": (g.rows * row, row, 9, 9, 3, 1),
    }
    return native(**parameters(families.Request(problem, "wgrad", strides, limits)))
