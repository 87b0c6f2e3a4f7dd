# SymmetryWarning: ties that do nothing, or not what was meant, are said when the layer is made.
"""Each reason with the layer, the reason and what to do; and silence where there is nothing to say."""

from __future__ import annotations

import inspect
import re
import warnings

import pytest
import torch
from torch import nn

import symconv_fast as sf
from symconv_fast import Symmetry, SymmetryWarning

ONE_TAP = [
    (sf.SymmetricConv2d, (8, 16, 1), {"symmetry": "h"}, "one tap along 'h', so that the tie 'h' repeats 8"),
    (sf.SymmetricConv2d, (8, 16, (3, 1)), {"symmetry": "hv"}, "tap along 'h', so that the tie 'hv' repeats 8"),
    (sf.SymmetricConv2d, (8, 16, 1), {"symmetry": "hv"}, "along 'h', 'v', so that the tie 'hv' repeats 12"),
    (sf.SymmetricConv1d, (8, 16, 1), {"symmetry": "h", "groups": 2}, "so that the tie 'h' repeats 8"),
    (sf.SymmetricConv3d, (8, 16, (1, 3, 3)), {"symmetry": {"z": 4, "h": 4}}, "along 'z', so that the tie 'z'"),
    (sf.SymmetricConvTranspose2d, (8, 16, (1, 3)), {"symmetry": "v"}, "along 'v', so that the tie 'v' repeats 8"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "sizes", "more", "message"), ONE_TAP)
def test_ties_along_axes_with_one_tap(cls, sizes, more, message):
    with pytest.warns(SymmetryWarning) as caught:
        layer = cls(*sizes, **more)
    (warning,) = caught
    text = str(warning.message)
    assert message in text
    assert text.startswith(f"{cls.__name__}(8, 16, kernel_size={layer.kernel_size}, groups={layer.groups}): ")
    assert "use another tie or symmetry=None for this layer, or a larger kernel" in text
    assert "differ in their bias alone" in text
    assert warning.filename == __file__
    with pytest.warns(SymmetryWarning, match="differ in nothing"):
        cls(*sizes, **more, share_bias=True)


NOTHING_TIED = [
    (sf.SymmetricConv2d, (8, 8, 3), {"groups": 8, "symmetry": "h"}, "ties no filter by 'h': 100% of 8 filters is less "
     "than the 16 of one orbit in each group; give it out_channels of 16 or more, or leave the tie out"),
    (sf.SymmetricConv2d, (4, 16, 3), {"symmetry": {"hv": "20%"}}, "ties no filter by 'hv': 20% of 16 filters is less "
     "than the 4 of one orbit in each group; give a larger share or a number of filters, such as {'hv': 4}"),
    (sf.SymmetricConv2d, (4, 16, 3), {"symmetry": {"h": 4, "v": "1%"}}, "ties no filter by 'v': 1%"),
    (sf.SymmetricConvTranspose3d, (4, 4, 3), {"symmetry": "hvz"}, "give it out_channels of 8 or more"),
    (sf.SymmetricConv1d, (4, 1, 3), {"symmetry": "h"}, "give it out_channels of 2 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "sizes", "more", "message"), NOTHING_TIED)
def test_shares_that_round_to_nothing(cls, sizes, more, message):
    with pytest.warns(SymmetryWarning, match=re.escape(message)) as caught:
        cls(*sizes, **more)
    (warning,) = caught
    assert warning.filename == __file__


def test_nothing_to_say():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.SymmetricConv2d(8, 16, 3, symmetry={"h": 4, "hv": "50%"})
        sf.SymmetricConv2d(8, 16, (3, 1), symmetry="v")
        sf.SymmetricConv2d(8, 16, (1, 2), symmetry="h")
        sf.SymmetricConv2d(8, 16, 1)
        sf.SymmetricConv2d(8, 16, 1, symmetry={"h": 0, "v": "0%"})
        sf.SymmetricConv2d(8, 18, 3, symmetry="hv")  # 16 of them
        sf.SymmetricConv2d(8, 16, 3, groups=8, symmetry="h")


@pytest.mark.parametrize(
    ("symmetry", "total"),
    [
        ({"h": "50%", "hv": "60%"}, "110"),
        ({"h": "100%", "v": "0.5%"}, "100.5"),
        ({"h": "34%", "v": "34%", "hv": "34%"}, "102"),
    ],
)
def test_percentages_that_add_up_past_the_whole(symmetry, total):
    """However few filters they would come to once they are rounded."""
    message = re.escape(f"symmetry={symmetry} adds up to {total}% of the filters; give at most 100% in all")
    with pytest.raises(ValueError, match=message):
        Symmetry(symmetry)
    with pytest.raises(ValueError, match=message):
        sf.SymmetricConv2d(4, 2, 3, symmetry=symmetry)


def test_counts_and_percentages_that_add_up_past_the_whole():
    """14 filters once 90 % are rounded to whole orbits, 16.4 as they were asked for."""
    with pytest.raises(ValueError, match=r"add up to 16\.4 filters, more than out_channels=16"):
        sf.SymmetricConv2d(4, 16, 3, symmetry={"h": 2, "hv": "90%"})
    assert sf.SymmetricConv2d(4, 20, 3, symmetry={"h": 2, "hv": "90%"}).unique_out_channels == 7
    for rows in range(
        3, 60
    ):  # whatever number of filters is found for the rows is one that the symmetry allows
        symmetry = Symmetry({"h": 2, "hv": "90%"})
        try:
            ties = symmetry.resolve_rows(2, rows)
        except ValueError as error:
            assert "no number of output channels" in str(error)  # noqa: PT017
        else:
            assert symmetry.resolve(2, ties.out_channels) == ties


# --- conversion ----------------------------------------------------------------------------------------------------

CONVERSIONS = [
    (nn.Conv2d, sf.SymmetricConv2d, (16, 32, 3), {}, "h", 0.5),
    (nn.Conv2d, sf.SymmetricConv2d, (16, 32, 3), {"groups": 2}, "hv", 0.75),
    (nn.Conv3d, sf.SymmetricConv3d, (8, 32, 2), {}, "hvz", 0.875),
    (nn.ConvTranspose2d, sf.SymmetricConvTranspose2d, (16, 32, 3), {"groups": 2}, {"h": 16}, 0.25),
]


@pytest.mark.parametrize(("plain", "cls", "sizes", "more", "symmetry", "random"), CONVERSIONS)
def test_from_conv_says_what_it_loses(plain, cls, sizes, more, symmetry, random):
    conv = plain(*sizes, **more)
    nn.init.normal_(conv.weight)
    dim = 1 if conv.transposed else 0
    match = rf"from_conv lost (\d+)% of the filters' energy, where random filters lose {random:.0%}".replace(
        "88%", "8[78]%"
    )
    with pytest.warns(SymmetryWarning, match=match) as caught:
        layer = cls.from_conv(conv, symmetry, share_bias=True)
    assert caught[0].filename == __file__
    rest = conv.weight - layer.expanded_weight()
    lost = float(rest.square().sum() / conv.weight.square().sum())
    assert layer.ties.lost_energy(conv.weight, dim) == pytest.approx(lost, rel=1e-4)
    assert lost == pytest.approx(random, abs=0.1 * random)
    assert int(re.search(match, str(caught[0].message))[1]) == round(100 * lost)


def test_from_conv_and_its_constructor_warn_of_the_callers_line():
    """Whoever is between the line that asks and the warning, as long as it is of the package."""
    conv = nn.Conv2d(4, 8, 1)
    nn.init.normal_(conv.weight)
    with pytest.warns(SymmetryWarning) as caught:
        sf.SymmetricConv2d.from_conv(conv, "h")
    assert [str(w.message).split(": ")[1].split()[0] for w in caught] == ["the", "from_conv"]
    line = inspect.currentframe().f_lineno - 2
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)] * 2


def test_conversions_that_lose_little_are_silent():
    made = sf.SymmetricConv2d(8, 16, 3, symmetry="hv").to_conv()
    with torch.no_grad():
        made.weight += 0.1 * made.weight.std() * torch.randn_like(made.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = sf.SymmetricConv2d.from_conv(made, "hv")
        assert 0 < layer.ties.lost_energy(made.weight) < 0.1
        sf.SymmetricConv2d.from_conv(nn.Conv2d(4, 8, 3, device="meta"), "hv")
        nn.init.zeros_(made.weight)
        assert float(sf.SymmetricConv2d.from_conv(made, "hv", keep_norm=True).weight.abs().sum()) == 0


@pytest.mark.filterwarnings("ignore::symconv_fast.SymmetryWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("plain", "cls", "sizes", "more", "symmetry", "random"), CONVERSIONS)
def test_keep_norm(plain, cls, sizes, more, symmetry, random, dtype):
    """The root mean square of the norms over each orbit stays, in each group; the direction is the projected one."""
    conv = plain(*sizes, **more, dtype=dtype)
    near, layer = cls.from_conv(conv, symmetry), cls.from_conv(conv, symmetry, keep_norm=True)

    def rows(weight: torch.Tensor) -> torch.Tensor:
        """One row a filter, over all groups."""
        weight = weight.detach().double()
        if not conv.transposed:
            return weight.flatten(1)
        groups = weight.unflatten(0, (conv.groups, -1)).transpose(1, 2)
        return groups.flatten(0, 1).flatten(1)

    before = rows(conv.weight).square().sum(1)
    orbits = [[] for _ in range(layer.unique_out_channels)]
    for energy, (row, _) in zip(before, layer.ties.channel_map):
        orbits[row].append(float(energy))
    expected = torch.tensor([sum(energies) / len(energies) for energies in orbits], dtype=torch.float64)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(rows(layer.weight).square().sum(1), expected, rtol=tolerance, atol=0)
    cosine = nn.functional.cosine_similarity(rows(layer.weight), rows(near.weight))
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=tolerance)
