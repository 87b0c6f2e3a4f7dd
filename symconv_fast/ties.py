"""Ties resolved for one layer: orbits, expand, reduce, project, parity parts. Knows no kernels.

A mask is a set of mirrored axes: bit 0 is `h` (the last dim, W), bit 1 is `v` (H), bit 2 is `z` (D). What mirrors do
beside that, to input channels and to self-symmetric filters, is in `sides`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import ShapeError
from .flat_ties import decode_head, encode_head, is_sided
from .moved import Block, moved_blocks
from .sides import Involutions, Sides, inverse, own_kind, select

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


def rank(mask: int) -> int:
    """Number of axes that `mask` mirrors: orbits have 2 ** rank members."""
    return mask.bit_count()


def orbit_size(mask: int) -> int:
    """Number of filters that one row of tie `mask` stands for: 1, 2, 4 or 8; 1 of a self-symmetric code."""
    return 1 if own_kind(mask) else 1 << rank(mask)


def members(mask: int) -> tuple[int, ...]:
    """Members of an orbit of tie `mask` in the order of their channels, each a mask of the axes that it mirrors."""
    return (0, *COPIES[mask])


def mirrored_dims(mask: int) -> tuple[int, ...]:
    """Dims of a tensor (..., *K) or (..., *spatial) that `mask` mirrors, counted from its end: 3 -> (-1, -2)."""
    return tuple(-1 - bit for bit in range(3) if mask >> bit & 1)


def mask_name(mask: int) -> str:
    """The key of a mask, or of the code of a self-symmetric kind: 3 -> "hv", 0 -> "free", "h+v-"."""
    own = own_kind(mask)
    if own:
        return "".join(c + ("-" if own.parity & bit else "+") for c, bit in BIT.items() if own.mask & bit)
    return "".join(c for c, bit in BIT.items() if mask & bit) or "free"


def mirror(filters: Tensor, mask: int) -> Tensor:
    """`filters` (..., *K) with tap k replaced by K-1-k on the axes in `mask` (J_g of the algebra)."""
    return filters.flip(mirrored_dims(mask)) if mask else filters


def parity_sign(parity: int, member: int) -> int:
    """Character of the reflection group: (-1)^|parity and member|."""
    return -1 if rank(parity & member) & 1 else 1


def parity_parts(rows: Tensor, mask: int) -> dict[int, Tensor]:
    """Split rows (..., *K) of one tie into their parity parts.

    Part p is `2^-|A| sum_g sign(p, g) J_g w` over the members g of the tie: even along the tied axes that
    are not in p, odd along those that are. `J_g w = sum_p sign(p, g) part[p]`.
    Returns one tensor of the shape of `rows` per subset of `mask`, keyed by the subset.
    """
    mirrored = {g: mirror(rows, g) for g in members(mask)}
    parts = {}
    for parity in mirrored:
        total = mirrored[0]
        for g in COPIES[mask]:
            total = torch.add(total, mirrored[g], alpha=parity_sign(parity, g))
        parts[parity] = total / orbit_size(mask)
    return parts


def _size_of_values(filters: Tensor) -> Tensor:
    """The largest absolute value, or 1 of zeros: divided by it, squares neither overflow nor vanish."""
    wide = filters.detach().to(torch.promote_types(filters.dtype, torch.float32))
    largest = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    return torch.where(largest > 0, largest, 1.0)


class Segment(NamedTuple):
    """All orbits of a layer that share a tie: the tie and the number of rows of the reduced weight.

    Self-symmetric filters have no copies: they are segments of mask 0, and `Sides.own` says what they are.
    """

    mask: int
    rows: int


@dataclass(frozen=True, slots=True)
class Ties:
    """The ties of one layer: `segments` of (mask, rows over all groups) in canonical order, free rows last.

    Output channels of a group: all its rows as they are, then segment by segment the mirrored copies, member by
    member. Groups are outermost in the rows and in the channels. `sides` says what else mirrors do, to the input and to
    self-symmetric filters; where they exchange groups, `groups` is 1, since the order is that of the whole layer.
    Immutable, hashable, picklable.
    """

    ndim: int
    groups: int
    segments: tuple[Segment, ...]
    unique: int = field(init=False, compare=False)
    """U, the rows of the reduced weight."""
    out_channels: int = field(init=False, compare=False)
    flat: tuple[int, ...] = field(init=False, compare=False)
    """[mask, rows, mask, rows, ...], the form in which the operators take ties; with sides, a head comes first."""
    _blocks: tuple[Block, ...] = field(init=False, compare=False, repr=False)
    sides: Sides | None = None
    """None where mirrors move no input channels and no filter is self-symmetric."""

    def __post_init__(self) -> None:
        blocks, start, sides = [], 0, self.sides
        for i, (_, rows) in enumerate(self.segments):
            blocks.append(Block(i, start, rows // self.groups, 0))
            start += rows // self.groups
        for i, (mask, _) in enumerate(self.segments):
            blocks += [blocks[i]._replace(member=member) for member in COPIES[mask]]
        flat = tuple(v for segment in self.segments for v in segment)
        if sides:
            codes = [own.code if own else mask for own, (mask, _) in zip(sides.own, self.segments)]
            pairs = (v for code, (_, rows) in zip(codes, self.segments) for v in (code, rows))
            flat = (*encode_head(sides), *pairs)
        derived: dict[str, Any] = {
            "unique": sum(rows for _, rows in self.segments),
            "out_channels": sum(rows * orbit_size(mask) for mask, rows in self.segments),
            "flat": flat,
            "_blocks": tuple(blocks),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if sides:
            object.__setattr__(self, "_blocks", moved_blocks(self, sides))

    def __reduce__(self) -> tuple[Any, ...]:
        return Ties, (self.ndim, self.groups, self.segments, self.sides)

    def __setstate__(self, state: Any) -> None:
        """Of a pickle that was made before there were sides: the values of all fields."""
        Ties.__init__(self, *state[:3])

    @property
    def layer_groups(self) -> int:
        """Groups of the convolution."""
        return self.sides.groups if self.sides else self.groups

    @property
    def holds_filters(self) -> bool:
        """Is the weight the filters themselves: is nothing tied?"""
        return self.unique == self.out_channels and not (self.sides and self.sides.is_packed)

    @property
    def keys(self) -> tuple[tuple[str, int], ...]:
        """(key, filters) of all segments but free ones."""
        own = self.sides.own if self.sides else (None,) * len(self.segments)
        pairs = [(kind.code if kind else mask, rows) for kind, (mask, rows) in zip(own, self.segments)]
        return tuple((mask_name(code), rows * orbit_size(code)) for code, rows in pairs if code)

    def weight_shape(self, channels: int, kernel: Sequence[int], transposed: bool = False) -> tuple[int, ...]:
        """Of the reduced weight of a layer with `channels` input channels in a group and this kernel."""
        inner, *taps = self.sides.kept(channels, kernel) if self.sides else (channels, *kernel)
        groups = self.layer_groups
        return (groups * inner, self.unique // groups, *taps) if transposed else (self.unique, inner, *taps)

    def in_channels(self, weight: Sequence[int], transposed: bool = False) -> int:
        """Input channels of the layer, by the shape of its weight."""
        kept = weight[0] if transposed else weight[1] * self.layer_groups
        return self.sides.in_group(kept) if self.sides else kept

    def kernel(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the kernel, by those of the weight."""
        return self.sides.kernel or tuple(taps) if self.sides else tuple(taps)

    def partners(self, letters: int) -> tuple[int, ...] | None:
        """The output channel that each one changes places with when the input is mirrored; None where none does."""
        channels = self.channel_map
        place = {pair: channel for channel, pair in enumerate(channels)}
        found = tuple(place.get((row, member ^ letters & self._mask(row)), 0) for row, member in channels)
        return None if found == tuple(range(len(found))) else found

    def signs(self, letters: int) -> tuple[int, ...] | None:
        """The sign that each output channel gets when the input is mirrored: None where all are kept."""
        own = self.sides.own if self.sides else ()
        if not any(kind and kind.parity & letters for kind in own):
            return None
        kinds = [own[self._segment(row)] for row, _ in self.channel_map]
        return tuple(parity_sign(kind.parity, letters) if kind else 1 for kind in kinds)

    def _segment(self, row: int) -> int:
        """That of a row, which counts over all groups."""
        place = row % (self.unique // self.groups)
        return next(b.segment for b in self._blocks if b.start <= place < b.start + b.rows)

    def _mask(self, row: int) -> int:
        return self.segments[self._segment(row)].mask

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

    @property
    def channel_codes(self) -> tuple[int, ...]:
        """Of every output channel the mask of its tie, or the code of its self-symmetric kind."""
        own = self.sides.own if self.sides else (None,) * len(self.segments)
        codes = [kind.code if kind else mask for kind, (mask, _) in zip(own, self.segments)]
        return tuple(codes[self._segment(row)] for row, _ in self.channel_map)

    def one_tap_axes(self, kernel: Sequence[int]) -> int:
        """Mask of the axes along which a kernel of this shape has one tap, and mirroring therefore changes nothing."""
        return sum(1 << bit for bit in range(self.ndim) if kernel[self.ndim - 1 - bit] == 1)

    def distinct(self, kernel: Sequence[int]) -> Ties:
        """The ties of the same rows whose members all differ: those of `kernel`'s axes with more than one tap.

        With `sides` they are the same ties: members may differ in their channels.
        """
        if self.sides:
            return self
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
        """The reduced weight whose expansion is nearest to `filters` in least squares: a mean over places.

        With `keep_norm` each row is scaled to the norm that its orbit had, the root mean square of the norms of its
        filters; a row that projects to 0 stays 0.
        """
        rows = self._reduce(filters, dim, reflect=True, mean=True)
        if not keep_norm:
            return rows
        size = _size_of_values(filters)
        kept = self._reduce(self._energies(filters, dim, size), 0, reflect=False, mean=True)
        if self.sides and self.sides.is_packed:  # some numbers stand for more taps than others
            own = self._reduce(self._energies(self.expand(rows, dim), dim, size), 0, reflect=False, mean=True)
        else:
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
        if self.sides and reflect:
            return self._spread_sides(rows, dim, self.sides)
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
        if self.sides and reflect:
            reduced = self._reduce_sides(full, dim, self.sides)
            return reduced / self._places(reduced, dim, self.sides) if mean else reduced
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
        self._check_rows(tensor, dim, total, what)
        if dim == 0 and self.groups > 1:
            return tensor.unflatten(0, (self.groups, total // self.groups)), 1, True
        return tensor, dim, False

    # With sides, weights are seen as (groups of the order, rows, channels of a group, *taps).

    def _spread_sides(self, rows: Tensor, dim: int, sides: Sides) -> Tensor:
        rows, parts = self._in_order(rows, dim, self.unique, "rows"), []
        for segment, start, count, member, take in self._blocks:
            part, own = rows.narrow(1, start, count), sides.own[segment]
            part = sides.unpack(part, own) if own else mirror(part, member)
            parts.append(part if take is None else select(part, 2, take))
        return self._as_weight(torch.cat(parts, 1), dim)

    def _reduce_sides(self, full: Tensor, dim: int, sides: Sides) -> Tensor:
        full = self._in_order(full, dim, self.out_channels, "filters")
        sums: list[Tensor | None] = [None] * len(self.segments)
        for (segment, _, _, member, take), part in zip(
            self._blocks, full.split([b.rows for b in self._blocks], 1)
        ):
            if take is not None:
                part = select(part, 2, inverse(take))
            own, total = sides.own[segment], sums[segment]
            part = sides.pack(part, own) if own else mirror(part, member)
            sums[segment] = part if total is None else total + part
        return self._as_weight(torch.cat([s for s in sums if s is not None], 1), dim)

    def _places(self, rows: Tensor, dim: int, sides: Sides) -> Tensor:
        """In how many places of the filters each number of a weight stands."""
        return self._reduce_sides(self._spread_sides(torch.ones_like(rows), dim, sides), dim, sides)

    def _in_order(self, tensor: Tensor, dim: int, total: int, what: str) -> Tensor:
        self._check_rows(tensor, dim, total, what)
        grouped = tensor.unflatten(0, (self.groups, tensor.shape[0] // self.groups))
        return grouped.transpose(1, 2) if dim == 1 else grouped

    @staticmethod
    def _as_weight(ordered: Tensor, dim: int) -> Tensor:
        return (ordered.transpose(1, 2) if dim == 1 else ordered).flatten(0, 1)

    def _check_rows(self, tensor: Tensor, dim: int, total: int, what: str) -> None:
        expected = total if dim == 0 else total // self.groups
        if tensor.shape[dim] != expected:
            raise ValueError(
                f"expected {expected} {what} along dim {dim} for ties {self.segments}, got shape {tuple(tensor.shape)}"
            )


def decode(ndim: int, groups: int, flat: Sequence[int]) -> Ties:
    """The `Ties` of a layer, of that many groups, from `Ties.flat`.

    Raises:
        ShapeError: that is no such form, or nothing that a layer can have.
    """
    return _decode(ndim, groups, tuple(flat))


@functools.lru_cache(maxsize=1024)
def _decode(ndim: int, groups: int, flat: tuple[int, ...]) -> Ties:
    if not is_sided(flat):
        return Ties(ndim, groups, _segments(ndim, groups, flat, flat))
    head, pairs = decode_head(flat)
    kinds = tuple(map(own_kind, pairs[::2]))
    plain = [
        v
        for kind, (code, rows) in zip(kinds, zip(pairs[::2], pairs[1::2]))
        for v in (0 if kind else code, rows)
    ]
    order = 1 if head.across else groups
    segments = _segments(ndim, order, plain if len(pairs) % 2 == 0 else (), flat)
    inputs: Ties | Involutions | None = head.tables
    if head.orbits:
        order_in, pairs_in = head.orbits
        inputs = Ties(ndim, order_in, _segments(ndim, order_in, pairs_in, flat))
    sizes = [kind.mask for kind in kinds if kind]
    if (
        any(mask >> ndim for mask in sizes)
        or len(head.kernel) not in (0, ndim)
        or any(n < 1 for n in head.kernel)
    ):
        raise ShapeError(f"ties {list(flat)} do not fit {ndim} dims")
    return Ties(ndim, order, segments, Sides(groups, inputs, kinds, head.kernel, head.across))


def _segments(ndim: int, groups: int, pairs: Sequence[int], flat: Sequence[int]) -> tuple[Segment, ...]:
    """[mask, rows, ...] as segments, checked; raises ShapeError, which names all of `flat`."""
    segments = tuple(map(Segment, pairs[::2], pairs[1::2]))
    if not segments or len(pairs) % 2 or groups < 1:
        raise ShapeError(f"ties {list(flat)} must end with [mask, rows, ...]")
    if any(m not in COPIES or m >> ndim or n < 0 or n % groups for m, n in segments):
        raise ShapeError(
            f"ties {list(flat)} do not fit {ndim} dims and groups={groups}: each mask must be below {1 << ndim} and "
            "each number of rows divisible by groups"
        )
    return segments
