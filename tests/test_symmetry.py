"""Ties: parsing, resolving, and the algebra of expand, adjoint, projection and parity parts."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from symconv_fast import Symmetry
from symconv_fast.ties import (
    mask_name,
    members,
    mirror,
    mirrored_dims,
    orbit_size,
    parity_parts,
    parity_sign,
    rank,
)

KEYS = {1: ["h"], 2: ["h", "v", "hv"], 3: ["h", "v", "z", "hv", "hz", "vz", "hvz"]}
# Spatial dims (from the last) that the copies of each tie mirror, written out by hand from the published order.
PUBLISHED = {
    "h": [(-1,)],
    "v": [(-2,)],
    "z": [(-3,)],
    "hv": [(-1,), (-2,), (-2, -1)],
    "hz": [(-1,), (-3,), (-3, -1)],
    "vz": [(-2,), (-3,), (-3, -2)],
    "hvz": [(-1,), (-2,), (-3,), (-3, -2), (-3, -1), (-2, -1), (-3, -2, -1)],
}
SIZE = {key: len(copies) + 1 for key, copies in PUBLISHED.items()}
LAYERS = [
    (1, {"h": 8}, 12, 1),
    (1, {"h": 8}, 16, 4),
    (2, {"h": 4, "v": 8, "hv": 8}, 24, 1),
    (2, {"h": 4, "v": 8, "hv": 8}, 24, 2),
    (2, {"hv": 8}, 8, 2),
    (3, {"h": 2, "v": 4, "z": 2, "hv": 4, "hz": 8, "vz": 4, "hvz": 16}, 43, 1),
    (3, {"z": 4, "hvz": 16}, 24, 2),
    (2, None, 6, 3),
]


def filters(ndim: int, rows: int, channels: int = 2) -> torch.Tensor:
    return torch.randn(rows, channels, *(3, 4, 5)[:ndim], dtype=torch.float64)


# --- what was given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{"vh": 4, "h": "50%"}, "hv", None, {}, {"h": 0}, {"h": "12.5%"}])
def test_prints_pickles_and_copies_as_given(spec):
    symmetry = Symmetry(spec)
    assert str(symmetry) == repr(spec)
    assert repr(symmetry) == f"Symmetry({spec!r})"
    for other in (pickle.loads(pickle.dumps(symmetry)), copy.deepcopy(symmetry), Symmetry(symmetry)):
        assert other == symmetry
        assert hash(other) == hash(symmetry)
        assert str(other) == repr(spec)


def test_is_immutable_even_through_the_dict_it_was_given():
    spec = {"h": 4}
    symmetry = Symmetry(spec)
    spec["h"] = 8
    assert symmetry == Symmetry({"h": 4})
    assert str(symmetry) == "{'h': 4}"
    for change in (lambda: setattr(symmetry, "counts", ()), lambda: delattr(symmetry, "counts")):
        with pytest.raises(AttributeError, match="immutable"):
            change()


def test_equality_is_of_meaning():
    assert Symmetry("hv") == Symmetry({"vh": "100%"})
    assert Symmetry(None) == Symmetry({}) == Symmetry({"h": 0}) == Symmetry({"h": "0%"})
    assert Symmetry({"h": 1}) != Symmetry({"h": "1%"})
    assert Symmetry({"h": 2}) != Symmetry({"v": 2})
    assert Symmetry({"h": 2}) != {"h": 2}
    assert len({Symmetry("h"), Symmetry({"h": "100%"}), Symmetry("v")}) == 2


# --- resolved for a layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "out", "groups", "flat"),
    [
        ({"h": 2, "v": 4, "hv": 8}, 20, 1, (1, 1, 2, 2, 3, 2, 0, 6)),
        ({"h": "50%"}, 8, 1, (1, 2, 0, 4)),
        ({"h": "50%"}, 9, 1, (1, 2, 0, 5)),  # 4.5 -> 4, half to even
        ({"h": "50%"}, 11, 1, (1, 3, 0, 5)),  # 5.5 -> 6, half to even
        ({"h": "50%"}, 5, 1, (1, 1, 0, 3)),  # 2.5 -> 2
        ({"h": "50%"}, 10, 1, (1, 2, 0, 6)),  # 5 -> 4, whole pairs
        ({"hv": "50%"}, 30, 1, (3, 3, 0, 18)),  # 15 -> 12
        ({"h": "33.3%"}, 100, 1, (1, 16, 0, 68)),  # 33.3 -> 33 -> 32
        ({"h": "50%"}, 24, 3, (1, 6, 0, 12)),
        ({"h": "50%"}, 18, 3, (1, 3, 0, 12)),  # 9 -> 6, whole pairs in each group
        ("hv", 10, 1, (3, 2, 0, 2)),
        ("h", 1, 1, (0, 1)),
        ("hv", 3, 1, (0, 3)),
        (None, 4, 2, (0, 4)),
        ({"v": 2, "h": 2}, 4, 1, (1, 1, 2, 1)),
    ],
)
def test_counts_and_percentages(spec, out, groups, flat):
    ties = Symmetry(spec).resolve(2, out, groups)
    assert ties.flat == flat
    assert ties.out_channels == out
    assert ties.unique == sum(flat[1::2])


def test_one_symmetry_serves_many_layers():
    half = Symmetry({"h": "50%"})
    assert [half.resolve(2, out).unique for out in (4, 8, 64)] == [3, 6, 48]
    assert half.resolve(1, 8, 2).groups == 2


@given(data=st.data(), ndim=st.integers(1, 3), groups=st.sampled_from([1, 2, 3]))
def test_any_valid_counts_resolve(data, ndim, groups):
    orbits = {key: data.draw(st.integers(0, 3)) for key in KEYS[ndim]}
    free = groups * data.draw(st.integers(0 if any(orbits.values()) else 1, 3))
    spec = {"".join(data.draw(st.permutations(key))): n * SIZE[key] * groups for key, n in orbits.items()}
    out = free + sum(spec.values())
    ties = Symmetry(spec, ndim=ndim).resolve(ndim, out, groups)
    expected = [(key, n * groups) for key, n in orbits.items() if n] + ([("free", free)] if free else [])
    assert [(mask_name(mask), rows) for mask, rows in ties.segments] == expected
    assert ties.out_channels == out
    assert len(ties.channel_map) == out
    assert Symmetry(spec).resolve_rows(ndim, ties.unique, groups) == ties


@given(
    count=st.integers(0, 200), key=st.sampled_from(KEYS[3]), groups=st.integers(1, 3), out=st.integers(1, 30)
)
def test_any_count_resolves_or_names_counts_that_do(count, key, groups, out):
    out *= groups
    unit = SIZE[key] * groups
    if count % unit == 0 and count <= out:
        assert Symmetry({key: count}).resolve(3, out, groups).unique == out - count + count // SIZE[key]
        return
    with pytest.raises(ValueError, match=str(count)) as error:
        Symmetry({key: count}).resolve(3, out, groups)
    if count <= out:
        near = [int(word) for word in str(error.value).split("nearest valid: ")[1].split(" and ")]
        assert near
        for valid in near:
            Symmetry({key: valid}).resolve(3, out, groups)
            assert abs(valid - count) < 2 * unit


def test_rows_without_out_channels():
    assert Symmetry("hv").resolve_rows(2, 3, 1).out_channels == 12
    assert Symmetry({"hv": 8}).resolve_rows(2, 3, 1).out_channels == 9
    assert Symmetry(None).resolve_rows(2, 3, 1).out_channels == 3
    half = Symmetry({"h": "50%"}).resolve_rows(2, 6, 1)
    assert half.unique == 6
    assert half == Symmetry({"h": "50%"}).resolve(2, half.out_channels)
    assert Symmetry({"h": "50%"}).resolve(2, half.out_channels + 1).unique != 6
    with pytest.raises(ValueError, match="at least 4 rows of weight, got 3"):
        Symmetry({"h": 8}).resolve_rows(2, 3, 1)


# --- the algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS[3])
def test_published_order_of_one_orbit(key):
    w = filters(3, 1)
    expected = torch.cat([w, *(w.flip(dims) for dims in PUBLISHED[key])])
    assert torch.equal(Symmetry(key).resolve(3, SIZE[key]).expand(w), expected)


def test_published_order_of_a_mixed_layer_with_groups():
    """Two groups, each: rows h0 h1 hv0 f0, then h0' h1', then hv0 mirrored three ways."""
    ties = Symmetry({"h": 8, "hv": 8}).resolve(2, 18, 2)
    w = filters(2, 8)
    flips = [(), (), (), (), (-1,), (-1,), (-1,), (-2,), (-2, -1)]
    rows = [0, 1, 2, 3, 0, 1, 2, 2, 2]
    expected = [w[4 * g + row].flip(dims) for g in range(2) for row, dims in zip(rows, flips)]
    assert torch.equal(ties.expand(w), torch.stack(expected))
    assert torch.equal(
        ties.expand_bias(torch.arange(8)), torch.tensor([4 * g + r for g in range(2) for r in rows])
    )


@pytest.mark.parametrize(("ndim", "spec", "out", "groups"), LAYERS)
def test_channel_map_describes_expand(ndim, spec, out, groups):
    ties = Symmetry(spec).resolve(ndim, out, groups)
    w = filters(ndim, ties.unique)
    by_map = torch.stack([mirror(w[row], member) for row, member in ties.channel_map])
    assert torch.equal(ties.expand(w), by_map)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("ndim", "spec", "out", "groups"), LAYERS)
def test_adjoint_is_the_transpose_and_projection_is_least_squares(ndim, spec, out, groups, dim):
    ties = Symmetry(spec).resolve(ndim, out, groups)
    rows, channels = (ties.unique, out) if dim == 0 else (ties.unique // groups, out // groups)
    w, v = filters(ndim, rows), filters(ndim, channels)
    if dim == 1:
        w, v = w.transpose(0, 1), v.transpose(0, 1)
    expanded = ties.expand(w, dim)
    assert expanded.shape == v.shape
    torch.testing.assert_close((expanded * v).sum(), (w * ties.adjoint(v, dim)).sum())
    # Projection undoes expansion, is idempotent, and leaves a residual orthogonal to every tied filter bank.
    torch.testing.assert_close(ties.project(expanded, dim), w)
    nearest = ties.expand(ties.project(v, dim), dim)
    torch.testing.assert_close(ties.expand(ties.project(nearest, dim), dim), nearest)
    torch.testing.assert_close(ties.adjoint(v - nearest, dim), torch.zeros_like(w))


def test_bias_projection_is_the_mean_over_orbits():
    ties = Symmetry({"h": 2, "hv": 4}).resolve(2, 7)
    # channels: h0 hv0 free | h0' | hv0 hv0 hv0
    bias = torch.tensor([1.0, 2.0, 5.0, 3.0, 4.0, 6.0, 8.0])
    assert ties.project_bias(bias).tolist() == [2.0, 5.0, 5.0]


def test_expand_is_differentiable_and_takes_any_dtype():
    ties = Symmetry({"h": 4, "hvz": 8}).resolve(3, 14)
    w = filters(3, ties.unique).requires_grad_()
    assert torch.autograd.gradcheck(ties.expand, w)
    for dtype in (torch.int8, torch.bfloat16, torch.complex64):
        values = filters(3, ties.unique).to(dtype)
        assert ties.expand(values).dtype == dtype
    with pytest.raises(ValueError, match="expected 5 rows along dim 0"):
        ties.expand(filters(3, 4))


@pytest.mark.parametrize("key", KEYS[3])
def test_members_are_in_the_published_order(key):
    found = members(sum({"h": 1, "v": 2, "z": 4}[c] for c in key))
    assert [tuple(sorted(mirrored_dims(member))) for member in found] == [(), *PUBLISHED[key]]
    assert [rank(member) for member in found] == [0, *map(len, PUBLISHED[key])]


@pytest.mark.parametrize("key", KEYS[3])
def test_parity_parts(key):
    """Each part is even or odd along each tied axis, and the signed sums give back every member of the orbit."""
    mask = sum({"h": 1, "v": 2, "z": 4}[c] for c in key)
    w = filters(3, 2)
    parts = parity_parts(w, mask)
    assert sorted(parts) == sorted(members(mask))
    for (parity, part), bit in itertools.product(parts.items(), (1, 2, 4)):
        if mask & bit:
            torch.testing.assert_close(mirror(part, bit), -part if parity & bit else part)
    for member in members(mask):
        total = sum(parity_sign(parity, member) * part for parity, part in parts.items())
        torch.testing.assert_close(total, mirror(w, member))
    # The fold multiplies as many taps as the kernel has: half of them with the centre where even, without where odd.
    taps = 0
    for parity in parts:
        count = 1
        for bit, size in ((4, 3), (2, 4), (1, 5)):
            count *= size if not mask & bit else size // 2 if parity & bit else (size + 1) // 2
        taps += count
    assert taps == 3 * 4 * 5
    assert orbit_size(mask) == len(parts)
