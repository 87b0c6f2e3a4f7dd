# The independent oracle of ties on both sides: the place and sign of every tap of every filter, by loops.
"""Written from the definition `w_g[c, k] = w[pi_g c, J_g k]` and from the published order of channels alone.

A case says what a layer is given; `places` says which number of its weight stands at each place of the ordinary filters
and with which sign. Nothing of the package is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COPIES = {
    "": [""],
    "h": ["", "h"],
    "v": ["", "v"],
    "z": ["", "z"],
    "hv": ["", "h", "v", "hv"],
    "hz": ["", "h", "z", "hz"],
    "vz": ["", "v", "z", "vz"],
    "hvz": ["", "h", "v", "z", "vz", "hz", "hv", "hvz"],
}
ORDER = list(COPIES)[1:]
AXIS = {"h": -1, "v": -2, "z": -3}


@dataclass(frozen=True)
class Case:
    """A layer: `symmetry` and `inputs` as counts of channels, or `inputs` as permutations; the rest is free."""

    symmetry: Mapping[str, int]
    inputs: Any
    channels: int
    filters: int
    kernel: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    across: bool = False  # do mirrors exchange groups?

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the constructor of a layer."""
        named = {"symmetry": dict(self.symmetry), "input_symmetry": self.inputs, "groups": self.groups}
        return {
            "in_channels": self.channels,
            "out_channels": self.filters,
            "kernel_size": self.kernel,
        } | named


def segments(counts: Mapping[str, int], total: int) -> list[tuple[str, int]]:
    """(key, channels): orbits in their order, then self-symmetric kinds, then free channels."""
    letters = {key: key.replace("+", "").replace("-", "") for key in counts}

    def place(key: str) -> tuple[Any, ...]:
        odd = [key[key.index(c) + 1] == "-" for c in reversed(letters[key])] if key != letters[key] else []
        return (key != letters[key], ORDER.index(letters[key]), odd)

    found = [(key, counts[key]) for key in sorted(counts, key=place) if counts[key]]
    rest = total - sum(counts.values())
    return [*found, ("", rest)] if rest or not found else found


def channels_of(counts: Mapping[str, int], total: int, groups: int = 1) -> list[tuple[int, str, str]]:
    """(row, key, mirrored letters) of every channel."""
    rows, copies, start, number = [], [], 0, 0
    for key, count in segments(counts, total):
        members = COPIES.get(key, [""])
        number = count // len(members) // groups
        rows += [(start + i, key, "") for i in range(number)]
        copies += [(start + i, key, member) for member in members[1:] for i in range(number)]
        start += number
    one = rows + copies
    return [(group * start + row, key, member) for group in range(groups) for row, key, member in one]


def exchange(a: str, b: str) -> str:
    """The member that a mirror along `b` takes a member to."""
    return "".join(c for c in "hvz" if (c in a) != (c in b))


def involution(case: Case, letters: str) -> list[int]:
    """pi_g of all input channels."""
    result = list(range(case.channels))
    for letter in letters:
        if case.inputs is None:
            continue
        if any(not isinstance(v, int) for v in case.inputs.values()):
            table = list(case.inputs.get(letter, range(case.channels)))
        else:
            channels = channels_of(case.inputs, case.channels)
            table = [
                channels.index((row, key, exchange(member, letter) if letter in key else member))
                for row, key, member in channels
            ]
        result = [table[c] for c in result]
    return result


def mirrored(kernel: Sequence[int], tap: Sequence[int], letters: str) -> tuple[int, ...]:
    """J_g of a tap."""
    flipped = {len(kernel) + AXIS[c] for c in letters}
    return tuple(n - 1 - k if axis in flipped else k for axis, (n, k) in enumerate(zip(kernel, tap)))


def subsets(letters: str) -> Iterator[str]:
    for size in range(len(letters) + 1):
        yield from ("".join(some) for some in itertools.combinations(letters, size))


def kept(case: Case, key: str) -> tuple[list[int], tuple[int, ...]]:
    """Channels of a group and extents of the taps that a weight keeps of self-symmetric filters."""
    inside = case.channels // case.groups
    letters = key.replace("+", "").replace("-", "")
    images = [involution(case, some) for some in subsets(letters)]
    firsts = sorted({min(image[c] for image in images) for c in range(inside)})
    extents = list(case.kernel)
    for letter in letters:
        if involution(case, letter) == list(range(case.channels)):
            odd = key[key.index(letter) + 1] == "-"
            axis = case.ndim + AXIS[letter]
            extents[axis] = math.floor(extents[axis] / 2) if odd else math.ceil(extents[axis] / 2)
    return firsts, tuple(extents)


def places(case: Case) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """The shape of the weight, and for each place of the filters the number that stands there, and its sign."""
    out = channels_of(case.symmetry, case.filters, 1 if case.across else case.groups)
    rows = 1 + max((row for row, _, _ in out), default=-1)
    inside, per_group = case.channels // case.groups, case.filters // case.groups
    signed = [key for _, key, _ in out if "+" in key or "-" in key]
    firsts, extents = kept(case, signed[0]) if signed else (list(range(inside)), case.kernel)
    if case.transposed:
        weight = (case.groups * len(firsts), rows // case.groups, *extents)
        filters = (case.channels, per_group, *case.kernel)
    else:
        weight = (rows, len(firsts), *extents)
        filters = (case.filters, inside, *case.kernel)
    numbers = torch.arange(math.prod(weight)).view(weight)
    index, sign = torch.zeros(filters, dtype=torch.long), torch.zeros(filters, dtype=torch.float64)
    for o, (row, key, member) in enumerate(out):
        group = o // per_group
        letters = key.replace("+", "").replace("-", "")
        for c, tap in itertools.product(range(inside), itertools.product(*map(range, case.kernel))):
            place = (group * inside + c, o % per_group, *tap) if case.transposed else (o, c, *tap)
            for g in subsets(letters) if key in signed else [member]:
                image = involution(case, g)[group * inside + c]
                at, source = image // inside, mirrored(case.kernel, tap, g)
                if image % inside not in firsts or any(k >= n for k, n in zip(source, extents)):
                    continue
                channel = firsts.index(image % inside)
                found = (
                    (at * len(firsts) + channel, row % (rows // case.groups), *source)
                    if case.transposed
                    else (row, channel, *source)
                )
                odd = sum(key[key.index(c) + 1] == "-" for c in g) if key in signed else 0
                index[place], sign[place] = numbers[found], (-1) ** odd
                break
    return weight, index, sign


def expand(case: Case, weight: Tensor) -> Tensor:
    """The ordinary filters, differentiable."""
    _, index, sign = places(case)
    return (
        weight.flatten()[index] * sign.to(weight.dtype) if weight.numel() else weight.new_zeros(index.shape)
    )
