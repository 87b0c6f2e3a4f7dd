"""Ties resolved for one layer: orbits, expand, reduce, project, parity parts. Knows no kernels.

A mask is a set of mirrored axes: bit 0 is `h` (the last dim, W), bit 1 is `v` (H), bit 2 is `z` (D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

BIT = {"h": 1, "v": 2, "z": 4}

# The mirrored copies of a tie, in the published order of the output channels.
COPIES: dict[int, tuple[int, ...]] = {
    0: (),
    1: (1,),
    2: (2,),
    4: (4,),
    3: (1, 2, 3),
    5: (1, 4, 5),
    6: (2, 4, 6),
    7: (1, 2, 4, 6, 5, 3, 7),
}


def orbit_size(mask: int) -> int:
    """Number of filters that one row of tie `mask` stands for: 1, 2, 4 or 8."""
    return 1 << mask.bit_count()


def mask_name(mask: int) -> str:
    """The key of a mask: 3 -> "hv", 0 -> "free"."""
    return "".join(c for c, bit in BIT.items() if mask & bit) or "free"


def mirror(filters: Tensor, mask: int) -> Tensor:
    """`filters` (..., *K) with tap k replaced by K-1-k on the axes in `mask` (J_g of the algebra)."""
    dims = [-1 - bit for bit in range(3) if mask >> bit & 1]
    return filters.flip(dims) if dims else filters


def parity_sign(parity: int, member: int) -> int:
    """Character of the reflection group: (-1)^|parity and member|."""
    return -1 if (parity & member).bit_count() & 1 else 1


def parity_parts(rows: Tensor, mask: int) -> dict[int, Tensor]:
    """Split rows (..., *K) of one tie into their parity parts.

    Part p is `2^-|A| sum_g sign(p, g) J_g w` over the members g of the tie: even along the tied axes that
    are not in p, odd along those that are. `J_g w = sum_p sign(p, g) part[p]`.
    Returns one tensor of the shape of `rows` per subset of `mask`, keyed by the subset.
    """
    members = (0, *COPIES[mask])
    mirrored = {g: mirror(rows, g) for g in members}
    parts = {}
    for parity in members:
        total = mirrored[0]
        for g in members[1:]:
            total = torch.add(total, mirrored[g], alpha=parity_sign(parity, g))
        parts[parity] = total / len(members)
    return parts


def _size_of_values(filters: Tensor) -> Tensor:
    """The largest absolute value, or 1 of zeros: divided by it, squares neither overflow nor vanish."""
    wide = filters.detach().to(torch.promote_types(filters.dtype, torch.float32))
    largest = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    return torch.where(largest > 0, largest, 1.0)


class Segment(NamedTuple):
    """All orbits of a layer that share a tie: the tie and the number of rows of the reduced weight."""

    mask: int
    rows: int


class _Block(NamedTuple):
    """A run of output channels inside a group: `rows` rows from `start`, mirrored along `member`."""

    segment: int
    start: int
    rows: int
    member: int


@dataclass(frozen=True, slots=True)
class Ties:
    """The ties of one layer: `segments` of (mask, rows over all groups) in canonical order, free rows last.

    Output channels of a group: all its rows as they are, then segment by segment the mirrored copies, member by
    member. Groups are outermost in the rows and in the channels. Immutable, hashable, picklable.
    """

    ndim: int
    groups: int
    segments: tuple[Segment, ...]
    unique: int = field(init=False, compare=False)
    """U, the rows of the reduced weight."""
    out_channels: int = field(init=False, compare=False)
    flat: tuple[int, ...] = field(init=False, compare=False)
    """[mask, rows, mask, rows, ...], the form in which the operators take ties."""
    _blocks: tuple[_Block, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        blocks, start = [], 0
        for i, (_, rows) in enumerate(self.segments):
            blocks.append(_Block(i, start, rows // self.groups, 0))
            start += rows // self.groups
        for i, (mask, _) in enumerate(self.segments):
            blocks += [blocks[i]._replace(member=member) for member in COPIES[mask]]
        derived = {
            "unique": sum(rows for _, rows in self.segments),
            "out_channels": sum(rows * orbit_size(mask) for mask, rows in self.segments),
            "flat": tuple(v for segment in self.segments for v in segment),
            "_blocks": tuple(blocks),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def channel_map(self) -> tuple[tuple[int, int], ...]:
        """(row, member) of every output channel: the filter is row `row` mirrored along the mask `member`."""
        per_group = self.unique // self.groups
        return tuple(
            (g * per_group + block.start + i, block.member)
            for g in range(self.groups)
            for block in self._blocks
            for i in range(block.rows)
        )

    def one_tap_axes(self, kernel: Sequence[int]) -> int:
        """Mask of the axes along which a kernel of this shape has one tap, and mirroring therefore changes nothing."""
        return sum(1 << bit for bit in range(self.ndim) if kernel[self.ndim - 1 - bit] == 1)

    def distinct(self, kernel: Sequence[int]) -> Ties:
        """The ties of the same rows whose members all differ: those of `kernel`'s axes with more than one tap."""
        kept = ~self.one_tap_axes(kernel)
        segments: list[Segment] = []
        for mask, rows in self.segments:
            if segments and segments[-1].mask == mask & kept:
                rows += segments.pop().rows
            segments.append(Segment(mask & kept, rows))
        return Ties(self.ndim, self.groups, tuple(segments))

    def copied_from(self, kernel: Sequence[int]) -> list[tuple[int, int, int]]:
        """How channels of one group repeat those of `distinct`: runs of (first channel, first distinct one, length)."""
        inner = self.distinct(kernel)
        kept = ~self.one_tap_axes(kernel)
        place = {}
        start = 0
        for block in inner._blocks:
            for i in range(block.rows):
                place[block.start + i, block.member] = start + i
            start += block.rows
        runs: list[tuple[int, int, int]] = []
        channel = 0
        for block in self._blocks:
            for i in range(block.rows):
                source = place[block.start + i, block.member & kept]
                if runs and runs[-1][1] + runs[-1][2] == source:
                    first, begin, length = runs.pop()
                    runs.append((first, begin, length + 1))
                else:
                    runs.append((channel, source, 1))
                channel += 1
        return runs

    def expand(self, weight: Tensor, dim: int = 0) -> Tensor:
        """The ordinary filters of a reduced weight: (U, C, *K) -> (out_channels, C, *K).

        With dim=1, for transposed layers: (C_in, U/groups, *K) -> (C_in, out_channels/groups, *K).
        Differentiable; any dtype. Returns `weight` itself when nothing is tied.
        """
        return self._spread(weight, dim, reflect=True)

    def expand_bias(self, bias: Tensor) -> Tensor:
        """(U,) -> (out_channels,): every member of an orbit gets the bias of its row."""
        return self._spread(bias, 0, reflect=False)

    def adjoint(self, filters: Tensor, dim: int = 0) -> Tensor:
        """Transpose of `expand`: sums the filters of an orbit, mirrored back, into its row."""
        return self._reduce(filters, dim, reflect=True, mean=False)

    def project(self, filters: Tensor, dim: int = 0, *, keep_norm: bool = False) -> Tensor:
        """The reduced weight whose expansion is nearest to `filters` in least squares: adjoint / orbit size.

        With `keep_norm` each row is scaled to the norm that its orbit had, the root mean square of the norms of its
        filters; a row that projects to 0 stays 0.
        """
        rows = self._reduce(filters, dim, reflect=True, mean=True)
        if not keep_norm:
            return rows
        size = _size_of_values(filters)
        kept = self._reduce(self._energies(filters, dim, size), 0, reflect=False, mean=True)
        own = self._energies(rows, dim, size)
        scale = torch.where(own > 0, kept / own, 1.0).sqrt()
        if dim == 1:  # all input channels of a group share a row
            scale = scale.view(self.groups, -1).repeat_interleave(rows.shape[0] // self.groups, 0)
        return (rows * scale.reshape(*scale.shape, *[1] * (rows.dim() - scale.dim()))).to(rows.dtype)

    def _energies(self, filters: Tensor, dim: int, size: Tensor) -> Tensor:
        """The squared norm of each filter, or of each row, in units of `size`: one value each, over all groups."""
        squares = (filters.to(torch.promote_types(filters.dtype, torch.float32)) / size).square()
        if dim == 0:
            return squares.flatten(1).sum(1)
        grouped = squares.unflatten(0, (self.groups, squares.shape[0] // self.groups))
        return grouped.flatten(3).sum((1, 3)).flatten()

    def lost_energy(self, filters: Tensor, dim: int = 0) -> float:
        """What `project` loses of the squared norm of `filters`, 0 to 1: the part that no tied filters can have.

        Random filters lose 1 - U / out_channels in the mean: half for a pair, 3/4 for a quadruple.
        """
        wide = filters.detach().to(torch.promote_types(filters.dtype, torch.float32))
        wide = wide / _size_of_values(wide)
        whole = float(wide.square().sum())
        if whole == 0:
            return 0.0
        rest = wide - self.expand(self.project(wide, dim), dim)
        return float(rest.square().sum()) / whole

    def project_bias(self, bias: Tensor) -> Tensor:
        """(out_channels,) -> (U,): the mean over the members of each orbit."""
        return self._reduce(bias, 0, reflect=False, mean=True)

    def _spread(self, rows: Tensor, dim: int, reflect: bool) -> Tensor:
        copies = self._blocks[len(self.segments) :]
        rows, dim, grouped = self._by_group(rows, dim, self.unique, "rows")
        if not copies:
            return rows.flatten(0, 1) if grouped else rows
        parts = [rows]
        for block in copies:
            part = rows.narrow(dim, block.start, block.rows)
            parts.append(mirror(part, block.member) if reflect else part)
        full = torch.cat(parts, dim)
        return full.flatten(0, 1) if grouped else full

    def _reduce(self, full: Tensor, dim: int, reflect: bool, mean: bool) -> Tensor:
        full, dim, grouped = self._by_group(full, dim, self.out_channels, "filters")
        pieces = full.split([block.rows for block in self._blocks], dim)
        sums = list(pieces[: len(self.segments)])
        for block, piece in zip(self._blocks[len(sums) :], pieces[len(sums) :]):
            sums[block.segment] = sums[block.segment] + (mirror(piece, block.member) if reflect else piece)
        if mean:
            sums = [s / orbit_size(mask) if mask else s for s, (mask, _) in zip(sums, self.segments)]
        reduced = torch.cat(sums, dim) if len(sums) > 1 else sums[0]
        return reduced.flatten(0, 1) if grouped else reduced

    def _by_group(self, tensor: Tensor, dim: int, total: int, what: str) -> tuple[Tensor, int, bool]:
        """View along one group's channels: rows first (dim 0) holds all groups, dim 1 of a transposed weight one."""
        expected = total if dim == 0 else total // self.groups
        if tensor.shape[dim] != expected:
            raise ValueError(
                f"expected {expected} {what} along dim {dim} for ties {self.segments}, got shape {tuple(tensor.shape)}"
            )
        if dim == 0 and self.groups > 1:
            return tensor.unflatten(0, (self.groups, total // self.groups)), 1, True
        return tensor, dim, False
