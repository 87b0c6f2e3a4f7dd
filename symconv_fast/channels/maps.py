"""What `channels` knows of a value in a graph: whose channels it has, along which dim, and what reshaping leaves of it.

No sizes of inputs are known, so that dims are told by how many spatial dims follow the channels. Dims counted from the
front are those of a batch: (N, C, *spatial).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class Block(NamedTuple):
    """A run of channels: all those of one space, in its order."""

    space: int
    size: int


@dataclass(frozen=True)
class Maps:
    """A tensor (N, C, *spatial) or (C, *spatial) whose channels are `blocks`, one after the other."""

    blocks: tuple[Block, ...]
    ndim: int
    """Dims after the channels."""
    flat: bool = False
    """(N, C * positions): each channel is there once for each position, next to each other."""
    batched: bool = True
    """At most one dim before the channels; else any number of them, as what a linear layer takes may have."""
    origin: object = None
    """The node whose first dim the first dim of this one is, if that is known."""

    @property
    def total(self) -> int:
        """Channels in all."""
        return sum(block.size for block in self.blocks)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of each block."""
        return tuple(block.size for block in self.blocks)


@dataclass(frozen=True)
class Number:
    """A number, or a tensor of one element: what it is combined with keeps its channels."""

    known: int | None = None
    batch_of: object = None
    """It is the size of the first dim of values of this origin."""
    rank: int = 0
    """Of a tensor, its dims."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a value."""

    maps: Maps | None
    origin: object


@dataclass(frozen=True)
class Foreign:
    """A tensor whose channels are not followed: `why` it must find the others in the order that they have."""

    why: str
    origin: object = None
    owner: tuple[Any, str] | None = None
    """It is this parameter or buffer (module, name)."""


class UnknownError(Exception):
    """An operation whose effect on channels is not known: all that it touches is fixed, for the reason given."""

    def __init__(self, why: str, beside: Foreign | None = None) -> None:
        super().__init__(f"{why} {beside.why}" if beside else why)
        self.source = beside.why if beside else why
        """The operation that made the first tensor whose channels are not followed."""


def _backwards(maps: Maps, dim: Any) -> int:
    """The dim counted from the end; raises UnknownError where that depends on how many there are."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise UnknownError("a dim that is computed")
    if dim < 0:
        return dim
    if not maps.batched:
        raise UnknownError("a dim counted from the front of a tensor of unknown rank")
    return dim - (maps.ndim + 2)


def is_channel_dim(maps: Maps, dim: Any) -> bool:
    """Is `dim` that of the channels?"""
    return _backwards(maps, dim) == -(maps.ndim + 1)


def flatten(maps: Maps, start: Any = 0, end: Any = -1) -> Maps:
    """`torch.flatten`: of channels and positions, or of positions alone."""
    start, end = _backwards(maps, start), _backwards(maps, end)
    channels = -(maps.ndim + 1)
    if start == end and channels <= start <= -1:
        return maps
    if end == -1 and start == channels and maps.batched and not maps.flat:
        return replace(maps, ndim=0, flat=True)
    if channels < start < end <= -1:
        return replace(maps, ndim=maps.ndim - (end - start))
    raise UnknownError("flatten of other dims than channels and positions")


def reduce(maps: Maps, dim: Any = None, keepdim: Any = False) -> Maps:
    """The mean, sum or extreme over spatial dims."""
    if dim is None:
        raise UnknownError("a reduction over all dims")
    dims = [_backwards(maps, d) for d in (dim if isinstance(dim, (tuple, list)) else [dim])]
    if not dims or not all(-maps.ndim <= d <= -1 for d in dims) or not isinstance(keepdim, bool):
        raise UnknownError("a reduction over channels")
    return maps if keepdim else replace(maps, ndim=maps.ndim - len(set(dims)))


def unsqueeze(maps: Maps, dim: Any) -> Maps:
    """A new spatial dim."""
    if maps.flat or not isinstance(dim, int):
        raise UnknownError("unsqueeze")
    # The new dim is counted among those of the result.
    back = dim if dim < 0 else _backwards(replace(maps, ndim=maps.ndim + 1), dim)
    if not -(maps.ndim + 1) <= back <= -1:
        raise UnknownError("unsqueeze before the channels")
    return replace(maps, ndim=maps.ndim + 1)


def index(maps: Maps, key: Any) -> Maps:
    """`x[:, :, ...]`: whatever is done to positions; all channels and the whole batch stay."""
    keys = list(key) if isinstance(key, tuple) else [key]
    whole = slice(None)
    if maps.flat:
        raise UnknownError("indexing of flattened channels")
    if keys and keys[0] is Ellipsis:
        keys = keys[1:]
        taken = sum(k is not None for k in keys)
        if taken > maps.ndim or None in keys[: len(keys) - taken]:
            raise UnknownError("indexing of channels")
    else:
        if not maps.batched or keys[:2] != [whole, whole]:
            raise UnknownError("indexing of channels")
        keys = keys[2:]
        taken = sum(k is not None for k in keys)
    ndim = maps.ndim
    for k in keys:
        if k is None:
            ndim += 1
        elif isinstance(k, int) and not isinstance(k, bool):
            ndim -= 1
        elif not isinstance(k, slice):
            raise UnknownError("indexing by a tensor")
    if taken > maps.ndim:
        raise UnknownError("indexing of channels")
    return replace(maps, ndim=ndim)


def view(maps: Maps, shape: Sequence[Any]) -> Maps:
    """`view` and `reshape` that flatten, or add or drop dims of one position; raises UnknownError for others."""
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if len(shape) < 2 or maps.flat or not maps.batched:
        raise UnknownError("view")
    first, second, *rest = (s if isinstance(s, Number) else Number(known=s) for s in shape)
    same_batch = maps.origin is not None and first.batch_of is maps.origin
    if same_batch and second.known == -1 and not rest and maps.ndim:
        return replace(maps, ndim=0, flat=True)
    if same_batch and second.known == maps.total and not rest:  # no positions are left over
        return replace(maps, ndim=0)
    ones = all(number.known == 1 for number in rest)
    if maps.ndim == 0 and ones and (second.known == maps.total or (same_batch and second.known == -1)):
        return replace(maps, ndim=len(rest))
    raise UnknownError("view")


def values_in(value: Any) -> Iterator[Any]:
    """All that arguments hold, in tuples, lists, dicts and slices."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from values_in(item)
    elif isinstance(value, dict):
        yield from values_in(list(value.values()))
    elif isinstance(value, slice):
        yield from values_in((value.start, value.stop, value.step))
    else:
        yield value


def maps_in(value: Any) -> list[Maps]:
    """Those whose channels are followed."""
    return [item for item in values_in(value) if isinstance(item, Maps)]
