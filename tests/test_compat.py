# Checkpoints of the published PyTorch layers: loaded and written to the bit, checked before, errors that say what fits.
from __future__ import annotations

import io
from collections import OrderedDict
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import symconv_fast as sf
from symconv_fast import compat
from symconv_fast.compat import CheckpointError, cnn_symmetry_counts, load_cnn_symmetry, to_cnn_symmetry
from symconv_fast.compat.cnn_symmetry import _fitting

LAYER = {2: sf.SymmetricConv2d, 3: sf.SymmetricConv3d}
CONV = {2: F.conv2d, 3: F.conv3d}
FLIPS = {
    "h": ["W"],
    "v": ["H"],
    "z": ["D"],
    "hv": ["W", "H", "HW"],
    "hz": ["W", "D", "DW"],
    "vz": ["H", "D", "DH"],
    "hvz": ["W", "H", "D", "DH", "DW", "HW", "DHW"],
}
"""Of the published layers: the mirrored copies of the rows of a key, in their order; keys in the order of the rows."""
MIXED = {2: {"h": 4, "v": 2, "hv": 8}, 3: {"h": 2, "v": 2, "z": 4, "hv": 4, "hz": 8, "vz": 4, "hvz": 16}}


def published_filters(weight: torch.Tensor, counts: dict[str, int]) -> torch.Tensor:
    """The rows as they are, then segment by segment the copies: written from the format, not from this package."""
    filters, start = [weight], 0
    for key, flips in FLIPS.items():
        rows = counts.get(key, 0) // (len(flips) + 1)
        for axes in flips:
            filters.append(
                weight[start : start + rows].flip([{"W": -1, "H": -2, "D": -3}[axis] for axis in axes])
            )
        start += rows
    return torch.cat(filters)


def checkpoint(ndim: int, counts: dict[str, int], free: int = 3, **options) -> OrderedDict[str, torch.Tensor]:
    """Of one published layer with 2 input channels; kernel 3 x 3 or 2 x 3 x 3."""
    rows = sum(counts[key] // (len(FLIPS[key]) + 1) for key in counts) + free
    size = sum(counts.values()) + free
    kernel = (3, 3) if ndim == 2 else (2, 3, 3)
    return OrderedDict(weight=torch.randn(rows, 2, *kernel, **options), bias=torch.randn(size, **options))


def made(ndim: int, counts: dict[str, int], free: int = 3, **options) -> nn.Module:
    kernel = (3, 3) if ndim == 2 else (2, 3, 3)
    return LAYER[ndim](2, sum(counts.values()) + free, kernel, symmetry=counts, **options)


# --- what is loaded is what they computed, and comes back to the bit -------------------------------------------------


@pytest.mark.parametrize(
    ("ndim", "which"), [(ndim, which) for ndim in MIXED for which in ("mixed", "none", *MIXED[ndim])]
)
def test_a_layer_computes_what_the_published_one_did(ndim: int, which: str) -> None:
    counts = MIXED[ndim] if which == "mixed" else {} if which == "none" else {which: 8}
    state = checkpoint(ndim, counts, dtype=torch.float64)
    layer = made(ndim, counts, dtype=torch.float64)
    assert str(load_cnn_symmetry(state, layer)) == "<All keys matched successfully>"
    x = torch.randn(2, 2, *[6] * ndim, dtype=torch.float64)
    theirs = CONV[ndim](x, published_filters(state["weight"], counts), state["bias"])
    torch.testing.assert_close(layer(x), theirs, rtol=0, atol=1e-12)

    back = to_cnn_symmetry(layer)
    assert list(back) == ["weight", "bias"]
    assert not hasattr(back, "_metadata")
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert all(back[key].data_ptr() != value.data_ptr() for key, value in layer.state_dict().items())


class Net(nn.Module):
    """Two and three dims, untied layers, batch norm, a layer without bias, and one in two places."""

    def __init__(self, first=None, **options) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1)
        self.conv2 = sf.SymmetricConv2d(2, 17, 3, symmetry=first or MIXED[2], **options)
        self.norm = nn.BatchNorm2d(17)
        self.inner = nn.Sequential(
            sf.SymmetricConv3d(2, 43, (2, 3, 3), symmetry=MIXED[3], bias=False), nn.ReLU()
        )
        self.again = self.inner[0]
        self.untied = sf.SymmetricConv2d(17, 4, 3)


def test_whole_models_load_and_come_back() -> None:
    model, other = Net(), Net()
    state = to_cnn_symmetry(model)
    assert set(state) == set(model.state_dict())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    load_cnn_symmetry(torch.load(buffer, weights_only=True), other)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert all(torch.equal(a, b) for a, b in zip(to_cnn_symmetry(other).values(), state.values()))


def test_strict_is_as_in_torch() -> None:
    state = to_cnn_symmetry(Net())
    del state["conv1.bias"]
    state["head.weight"] = torch.randn(2)
    model = Net()
    with pytest.raises(CheckpointError, match=r"lacks the keys 'conv1.bias'\n.*model has not: 'head.weight'"):
        load_cnn_symmetry(state, model)
    result = load_cnn_symmetry(state, model, strict=False)
    assert result.missing_keys == ["conv1.bias"]
    assert result.unexpected_keys == ["head.weight"]
    assert torch.equal(model.conv2.weight, state["conv2.weight"])


def test_shared_biases_are_written_whole_and_shared_again_if_they_can_be() -> None:
    for ndim, counts in MIXED.items():
        layer, other = (made(ndim, counts, share_bias=True) for _ in range(2))
        state = to_cnn_symmetry(layer)
        assert state["bias"].shape == (layer.out_channels,)
        assert torch.equal(state["bias"], layer.expanded_bias())
        load_cnn_symmetry(state, other)
        assert torch.equal(other.bias, layer.bias)
        whole = made(ndim, counts)
        load_cnn_symmetry(state, whole)
        assert torch.equal(whole.bias, state["bias"])

        before = other.weight.detach().clone()
        state["bias"][-1] += 0.5  # the last copy of the last tie
        state["weight"] += 1
        with pytest.raises(
            CheckpointError, match=r"bias differs by up to 0\.5 within an orbit.*share_bias=False"
        ):
            load_cnn_symmetry(state, other)
        assert torch.equal(other.weight, before)


def test_a_layer_in_two_places_is_written_and_loaded_in_both() -> None:
    model, other = (nn.Sequential(made(2, {"h": 4}, share_bias=True), nn.Sequential()) for _ in range(2))
    for m in (model, other):
        m[1].append(m[0])
    state = to_cnn_symmetry(model)
    assert state["0.bias"].shape == state["1.0.bias"].shape == (7,)
    load_cnn_symmetry(state, other)
    assert torch.equal(other[0].bias, model[0].bias)


def test_the_record_of_this_package_is_heeded_and_may_be_missing() -> None:
    h, v = (sf.SymmetricConv2d(2, 8, 3, symmetry=key) for key in "hv")
    with pytest.raises(
        CheckpointError, match=r"symmetry=\{'v': 8\}, and the checkpoint has the record of .*'h': 8"
    ):
        load_cnn_symmetry(h.state_dict(), v)
    load_cnn_symmetry(to_cnn_symmetry(h), v)
    assert torch.equal(h.weight, v.weight)


def test_checkpoints_without_values_are_checked_by_shape() -> None:
    layer = made(2, {"h": 4}, share_bias=True, device="meta")
    state = {key: value.to("meta") for key, value in checkpoint(2, {"h": 4}).items()}
    load_cnn_symmetry(state, layer)
    with pytest.raises(CheckpointError, match="weight has shape"):
        load_cnn_symmetry(state, made(2, {"h": 6}, device="meta"))


def test_values_that_are_not_there_or_sparse_change_nothing() -> None:
    model = nn.Sequential(sf.SymmetricConv2d(2, 4, 3, symmetry="h"), nn.Conv2d(4, 2, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.ones_like(value) for key, value in before.items()}
    for bad, message in (
        ({"1.bias": torch.zeros(2, device="meta")}, "1.bias has no values, it is on the meta device"),
        ({"0.weight": state["0.weight"].to_sparse()}, "0.weight is sparse; give it with .to_dense"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_cnn_symmetry({**state, **bad}, model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_dtypes_are_cast_as_torch_does() -> None:
    layer = made(2, {"h": 4})
    state = checkpoint(2, {"h": 4}, dtype=torch.float64)
    load_cnn_symmetry(state, layer)
    assert torch.equal(layer.weight, state["weight"].float())


# --- what does not fit ------------------------------------------------------------------------------------------------


def message_of(state, model, error=CheckpointError, **options) -> str:
    """Of the error, after which the model has its values still."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(error) as raised:
            load_cnn_symmetry(state, model, strict=strict)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    return str(raised.value)


@pytest.mark.parametrize(
    ("ndim", "theirs", "mine", "fits"),
    [
        (2, {"h": 8}, {"hv": 8}, "it would fit symmetry={'h': 8} or {'v': 8}"),
        (2, {"hv": 8}, {"h": 8}, "it would fit symmetry={'hv': 8}"),
        (2, {"hv": 4}, {"h": 8}, "it would fit symmetry={'h': 6} or {'v': 6} or {'hv': 4}"),
        (2, {"hv": 8, "h": 2}, {"v": 10}, "it would fit a mixture such as symmetry={'h': 8, 'hv': 4}"),
        (3, {"hvz": 8}, {"h": 8}, "it would fit symmetry={'hvz': 8}"),
        (2, {}, {"h": 8}, "it would fit symmetry=None, an ordinary layer: load it into one"),
    ],
)
def test_shapes_of_other_ties_name_what_they_fit(ndim, theirs, mine, fits) -> None:
    size = sum(mine.values()) + 3
    state = checkpoint(ndim, theirs, free=size - sum(theirs.values()))
    layer = made(ndim, mine)
    text = message_of(state, layer)
    wanted = f"weight has shape {tuple(state['weight'].shape)}, want {tuple(layer.weight.shape)} for a "
    assert wanted + type(layer).__name__ + f" with symmetry={mine}" in text
    assert fits in text
    prefixed = {f"0.{key}": value for key, value in state.items()}
    assert "0.weight has shape" in message_of(prefixed, nn.Sequential(layer))


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_said_to_fit_does_and_is_found_where_there_is_any(ndim) -> None:
    orbits = (2, 4) if ndim == 2 else (2, 4, 8)
    for filters in range(1, 26):
        sums = {(0, 0)}  # (filters, rows) of whole orbits
        for orbit in orbits:
            sums = {(n + orbit * i, rows + i) for n, rows in sums for i in range((filters - n) // orbit + 1)}
        possible = {rows + filters - n for n, rows in sums}
        for rows in range(1, filters):
            fits = _fitting(rows, filters, ndim)
            assert bool(fits) == (rows in possible), (rows, filters)
            for counts in fits:
                assert sf.Symmetry(counts).resolve(ndim, filters).unique == rows


def test_shapes_of_other_layers() -> None:
    layer = made(2, {"h": 8})
    text = message_of(checkpoint(3, {"h": 8}), layer)
    assert "it is of a 3-D layer" in text
    state = checkpoint(2, {"h": 8})
    text = message_of({**state, "weight": torch.randn(7, 5, 3, 3)}, layer)
    assert "it is of a layer with in_channels=5, kernel_size=(3, 3)" in text
    text = message_of({**state, "weight": torch.randn(7)}, layer)
    assert "no convolution has that many dims" in text
    text = message_of({**state, "bias": torch.randn(7)}, layer)
    assert "bias has shape (7,), want (11,): the published layers have one for each output channel" in text
    text = message_of(checkpoint(2, {"h": 4}), layer)
    assert "it would fit symmetry={'h': 4} or {'v': 4} and out_channels=7" in text
    text = message_of({"weight": torch.randn(40, 2, 3, 3)}, layer)
    assert "no symmetry of 11 filters has 40 rows" in text
    assert "2.weight has shape (3,), want (4,)" in message_of(
        {"2.weight": torch.randn(3)}, nn.Sequential(nn.ReLU(), nn.ReLU(), nn.BatchNorm2d(4))
    )


def test_values_that_are_no_numbers() -> None:
    layer, state = made(2, {"h": 8}), checkpoint(2, {"h": 8})
    state["weight"][0, 0, 0, 0] = float("nan")
    state["weight"][0, 0, 0, 1] = float("inf")
    assert "weight has 2 of 126 values that are NaN or infinite" in message_of(state, layer)
    state = checkpoint(2, {"h": 8})
    state["bias"] = torch.arange(11)
    assert "bias is of dtype int64, want a floating one" in message_of(state, layer)
    shared = made(2, {"h": 8}, share_bias=True)
    state["bias"] = torch.full((11,), float("nan"))
    assert "bias has 11 of 11 values that are NaN" in message_of(state, shared)


def test_all_problems_are_named_at_once() -> None:
    state = to_cnn_symmetry(Net())
    state["conv2.weight"][0] = float("nan")
    state["norm.weight"] = torch.randn(3)
    del state["conv1.bias"]
    with pytest.raises(CheckpointError) as raised:
        load_cnn_symmetry(state, Net())
    for part in ("lacks the keys 'conv1.bias'", "conv2.weight has 18 of", "norm.weight has shape (3,)"):
        assert part in str(raised.value)
    parallel = {f"module.{key}": value for key, value in to_cnn_symmetry(Net()).items()}
    with pytest.raises(CheckpointError, match=r"begin with 'module.', of DataParallel: take that off"):
        load_cnn_symmetry(parallel, Net())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (sf.SymmetricConv1d(2, 8, 3, symmetry="h"), "SymmetricConv1d and they have none but"),
        (
            sf.SymmetricConvTranspose2d(2, 8, 3, symmetry="h"),
            "SymmetricConvTranspose2d and they have none but",
        ),
        (sf.SymmetricConv2d(4, 8, 3, groups=2, symmetry="h"), "with groups=2, and they have groups=1"),
        (
            nn.utils.parametrizations.weight_norm(sf.SymmetricConv2d(2, 8, 3, symmetry="h")),
            "whose weight a parametrization computes; remove that first",
        ),
    ],
)
def test_layers_that_were_not_published(layer, why) -> None:
    model = nn.Sequential(nn.ReLU(), layer)
    with pytest.raises(CheckpointError, match=f"1 is a .*{why}"):
        to_cnn_symmetry(model)
    with pytest.raises(CheckpointError, match=why):
        load_cnn_symmetry(
            {"1.weight": torch.randn(4, 2, 3, 3), "1.bias": torch.randn(8)}, model, strict=False
        )
    load_cnn_symmetry({}, model, strict=False)  # nothing of the layer is in the checkpoint


def test_strict_is_a_bool() -> None:
    with pytest.raises(TypeError, match="strict='no' must be True or False"):
        load_cnn_symmetry({}, nn.ReLU(), strict="no")


def test_arguments_of_other_types() -> None:
    layer, state = made(2, {"h": 8}), checkpoint(2, {"h": 8})
    with pytest.raises(TypeError, match="needs a dict of tensors as state_dict, got Tensor"):
        load_cnn_symmetry(torch.randn(3), layer)
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module as model, got OrderedDict"):
        load_cnn_symmetry(layer, state)
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module as model, got NoneType"):
        to_cnn_symmetry(None)
    with pytest.raises(TypeError, match=r"pass what is in it: state_dict\['model'\]"):
        load_cnn_symmetry({"model": state, "epoch": 3}, layer)
    with pytest.raises(TypeError, match=r"must be a tensor, got ndarray; torch.as_tensor"):
        load_cnn_symmetry({"weight": state["weight"].numpy()}, layer)
    with pytest.raises(CheckpointError, match="lacks the keys 'weight', 'bias'"):
        load_cnn_symmetry({}, layer)


# --- how they counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [1, 2, 3, 7, 10, 16, 30, 50, 64, 375])
@pytest.mark.parametrize("symmetry", [{"h": "50%"}, {"hv": "100%"}, {"h": "30%", "v": "20%", "hv": "12.5%"}])
def test_percentages_are_those_of_this_package_where_the_product_is_exact(filters, symmetry) -> None:
    counts = cnn_symmetry_counts(filters, symmetry)
    exact = {}
    for key, value in symmetry.items():
        asked = Fraction(value[:-1]) * filters / 100
        whole = int(asked + Fraction(1, 2))
        if asked % 1 == Fraction(1, 2) and whole % 2:
            whole -= 1  # half to even
        unit = 4 if key == "hv" else 2
        exact[key] = whole - whole % unit
    assert counts == {key: count for key, count in exact.items() if count}
    ties = sf.Symmetry(symmetry).resolve(2, filters)
    assert sf.Symmetry(counts).resolve(2, filters) == ties


def test_where_their_counts_differ() -> None:
    """Their product is a float, below the half that the exact one is; and percentages may pass 100."""
    assert cnn_symmetry_counts(375, {"h": "16.4%"}) == {"h": 60}
    assert sf.checkpoint.describe(sf.Symmetry({"h": "16.4%"}).resolve(2, 375)) == {"h": 62}
    assert cnn_symmetry_counts(5, {"h": "60%", "v": "50%"}) == {"h": 2, "v": 2}
    with pytest.raises(ValueError, match="adds up to 110%"):
        sf.Symmetry({"h": "60%", "v": "50%"})


def test_counts_and_the_defaults_of_the_first_file() -> None:
    assert cnn_symmetry_counts(16, {"hv": 8, "h": 2, "v": 0}) == {"h": 2, "hv": 8}
    assert list(cnn_symmetry_counts(16, {"hv": 8, "h": 2})) == ["h", "hv"]
    assert cnn_symmetry_counts(64, {"hvz": 8, "z": 2}) == {"z": 2, "hvz": 8}
    assert cnn_symmetry_counts(16, {}) == {}
    assert cnn_symmetry_counts(32, {}, defaults=True) == {"h": 10, "v": 6, "hv": 4}
    assert cnn_symmetry_counts(32, {"h": 2, "hv": "0%"}, defaults=True) == {"h": 2, "v": 6}


@pytest.mark.parametrize(
    ("filters", "symmetry", "error", "match"),
    [
        (16, {"x": 2}, ValueError, "'x' is not one of the published layers'; theirs: h, v, z"),
        (16, {"h": "-5%"}, ValueError, "'-5%' is not a share"),
        (16, {"h": "nan%"}, ValueError, "'nan%' is not a share"),
        (16, {"h": "inf%"}, ValueError, "'inf%' is not a share"),
        (16, {"h": "50"}, ValueError, "'50' is not a share"),
        (16, {"h": ""}, ValueError, "'' is not a share"),
        (16, {"h": "%"}, ValueError, "'%' is not a share"),
        (16, {"z": "50%"}, ValueError, "the published 3-D layer took no percentages"),
        (16, {"h": 3}, ValueError, "not divisible by 2"),
        (16, {"h": -2}, ValueError, "is negative"),
        (16, {"h": 18}, ValueError, "more than out_channels=16"),
        (16, {"h": "60%", "v": "60%"}, ValueError, "add up to 20 filters"),
        (16, {"h": True}, TypeError, "must be a whole number"),
        (16, {"h": 2.0}, TypeError, "must be a whole number"),
        (16, "h", TypeError, "must be a dict"),
        (16, None, TypeError, "must be a dict"),
        (0, {}, ValueError, "out_channels=0 must be one int of 1 or more"),
        (2.0, {}, TypeError, "out_channels=2.0 must be an int"),
        ((4, 4), {}, ValueError, "must be one int"),
    ],
)
def test_bad_counts(filters, symmetry, error, match) -> None:
    with pytest.raises(error, match=match):
        cnn_symmetry_counts(filters, symmetry)


def test_keys_of_three_dims_with_the_defaults_of_two() -> None:
    with pytest.raises(ValueError, match=r"'z' is not one .*theirs: h, v, hv$"):
        cnn_symmetry_counts(16, {"z": 2}, defaults=True)


def test_all_that_is_exported_exists_and_says_what_it_is() -> None:
    assert all(getattr(compat, name).__doc__ for name in compat.__all__)
