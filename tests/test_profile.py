"""Profiles of whole models: rows in order, what has nothing to measure, and the figure."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import symconv_fast as sf
from symconv_fast.analysis import kernel_symmetry, symmetry_profile
from symconv_fast.analysis.profile_figure import image

FEW = 100
"""Samples of the null where its values do not matter."""


def model():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5, groups=8)),
        sf.SymmetricConv2d(8, 16, 3, symmetry={"h": 8}),
        nn.ConvTranspose2d(16, 4, (2, 4), stride=(1, 2)),
        nn.Linear(4, 4),
    )
    net.add_module("zero", nn.Conv2d(4, 2, 3))
    net.add_module("broken", nn.Conv2d(4, 2, 3))
    net.add_module("lazy", nn.LazyConv2d(2, 3))
    net.add_module("complex", nn.Conv2d(2, 2, 3, dtype=torch.cfloat))
    nn.init.zeros_(net.zero.weight)
    nn.init.constant_(net.broken.weight, torch.nan)
    return net


def test_every_convolution_has_a_row_in_order():
    net = model()
    profile = symmetry_profile(net, samples=FEW)
    assert [(layer.name, layer.reason) for layer in profile.layers] == [
        ("0", ""), ("2.0", "one tap"), ("2.1", ""), ("3", ""), ("4", ""), ("zero", "mean is 0"),
        ("broken", "not finite"), ("lazy", "no values yet"), ("complex", "complex"),
    ]  # fmt: skip
    assert [layer.strided for layer in profile.layers[:5]] == [True, False, False, False, True]
    assert [layer.tie for layer in profile.layers[2:5]] == [None, "{'h': 8}", None]
    assert profile.layers[4].type == "ConvTranspose2d"
    for layer in profile.layers:
        if layer.symmetry:
            conv = net.get_submodule(layer.name)
            assert layer.symmetry == kernel_symmetry(conv, samples=FEW)
            assert (layer.kernel_size, layer.stride) == (conv.kernel_size, conv.stride)
        else:
            assert layer.reason


def test_options_reach_every_layer():
    net = nn.Conv2d(3, 8, 3)
    (layer,) = symmetry_profile(net, include_identity=True, samples=FEW, seed=3).layers
    assert layer.symmetry == kernel_symmetry(net, include_identity=True, samples=FEW, seed=3)
    assert layer.symmetry != kernel_symmetry(net, samples=FEW)
    assert layer.symmetry.null.transformations == 8


def test_the_table():
    profile = symmetry_profile(model(), samples=FEW)
    table = profile.table()
    assert list(table.columns)[:7] == ["#", "name|", "type|", "tie|", "kernel|", "stride|", "S"]
    assert list(table.columns)[-2:] == ["h", "v"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    first, dot = profile.layers[0].symmetry, table.rows[1]
    assert table.rows[0][:7] == ["1", "0", "Conv2d", "", "3 × 3", "2 × 2 *", f"{first.value:.3f}"]
    assert table.rows[0][-2:] == [f"{first.h:.3f}", f"{first.v:.3f}"]
    assert dot[-5:] == ["-", "one tap", "-", "-", "-"]
    assert "* strided" in str(profile)
    assert "by construction" in str(profile)


def test_notes_and_columns_appear_where_they_are_of_use():
    text = str(symmetry_profile(nn.Conv1d(2, 2, 3), samples=FEW))
    assert "(itself)" in text
    assert "strided" not in text
    assert " v" not in text
    assert "tie" not in text
    volume = symmetry_profile(nn.Sequential(nn.Conv3d(2, 2, 3), nn.Conv1d(2, 2, 3)), samples=FEW).table()
    assert list(volume.columns)[-3:] == ["h", "v", "z"]
    assert volume.rows[1][-2:] == ["-", "-"]


def test_a_layer_in_two_places_comes_once_and_an_untied_layer_has_no_tie():
    conv = sf.SymmetricConv2d(2, 2, 3)
    (layer,) = symmetry_profile(nn.Sequential(conv, conv), samples=FEW).layers
    assert (layer.name, layer.tie) == ("0", None)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_marked():
    quantised = pytest.importorskip("torch.ao.nn.quantized")
    try:
        conv = quantised.Conv2d(2, 2, 3)
    except RuntimeError as error:
        pytest.skip(f"no engine for quantised layers: {error}")
    profile = symmetry_profile(nn.Sequential(nn.Conv2d(2, 2, 3), conv), samples=FEW)
    assert [layer.reason for layer in profile.layers] == ["", "quantised"]
    with pytest.raises(TypeError, match="Conv2d is quantised; give the layer it was made from"):
        kernel_symmetry(conv)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (nn.Linear(2, 2), ValueError, "Linear has no convolution"),
        (torch.randn(2, 2, 3, 3), TypeError, "got Tensor; for tensors: kernel_symmetry"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_bad_models(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        symmetry_profile(given)


def test_bad_options_are_no_reason_of_a_row():
    with pytest.raises(ValueError, match="samples=1 must be"):
        symmetry_profile(nn.Conv2d(2, 2, 3), samples=1)


# --- the figure ------------------------------------------------------------------------------------------------------


def parts(figure):
    """The pictures and the axes by depth."""
    *pictures, depth = figure.axes
    return pictures, depth


def test_the_figure_shows_mean_kernels_and_symmetry_by_depth():
    profile = symmetry_profile(model(), samples=FEW)
    shown = [layer for layer in profile.layers if layer.symmetry]
    pictures, depth = parts(profile.figure())
    assert [axes.get_title() for axes in pictures] == [
        f"{number}{star}: {layer.symmetry.value:.2f}"
        for number, star, layer in zip((1, 3, 4, 5), ("*", "", "", "*"), shown)
    ]
    for axes, layer in zip(pictures, shown):
        np.testing.assert_array_equal(axes.images[0].get_array(), layer.symmetry.mean_kernel)
        assert axes.images[0].get_clim() == pytest.approx(
            (-(top := np.abs(layer.symmetry.mean_kernel).max()), top)
        )
    lines = {line.get_label(): line for line in depth.lines}
    assert list(lines["stride 1"].get_xdata()) == [1, 2]
    assert list(lines["strided"].get_xdata()) == [0, 3]
    assert lines["strided"].get_marker() == "*"
    np.testing.assert_array_equal(
        lines["strided"].get_ydata(), [shown[0].symmetry.value, shown[3].symmetry.value]
    )
    assert list(lines["their mean"].get_ydata())[:4] == [layer.symmetry.null.mean for layer in shown]
    assert [text.get_text() for text in depth.get_xticklabels()] == ["1: 0", "3: 2.1", "4: 3", "5: 4"]
    band = depth.collections[0].get_datalim(depth.transData)
    assert band.y0 == pytest.approx(min(layer.symmetry.null.low for layer in shown))
    assert band.y1 == pytest.approx(max(layer.symmetry.null.high for layer in shown))


def test_one_and_three_dimensions():
    net = nn.Sequential(nn.Conv1d(2, 2, 5), nn.Conv3d(2, 2, 3), nn.Conv3d(1, 1, (9, 2, 3)))
    profile = symmetry_profile(net, samples=FEW)
    (bars, slices, middle), _ = parts(profile.figure())
    kernels = [layer.symmetry.mean_kernel for layer in profile.layers]
    np.testing.assert_array_equal([bar.get_height() for bar in bars.patches], kernels[0])
    drawn = slices.images[0].get_array()
    assert drawn.shape == (3, 11)
    np.testing.assert_array_equal(drawn[:, 4:7], kernels[1][1])
    assert np.ma.getmaskarray(drawn)[:, [3, 7]].all()
    np.testing.assert_array_equal(middle.images[0].get_array(), kernels[2][4])


def test_slices_lie_in_order():
    kernel = np.arange(24.0).reshape(2, 3, 4)
    found = image(kernel)
    np.testing.assert_array_equal(found[:, :4], kernel[0])
    np.testing.assert_array_equal(found[:, 5:], kernel[1])
    assert np.isnan(found[:, 4]).all()


def test_many_layers_are_numbered():
    net = nn.Sequential(*[nn.Conv2d(1, 1, 3) for _ in range(32)])
    pictures, depth = parts(symmetry_profile(net, samples=FEW).figure())
    assert len(pictures) == 32
    assert depth.get_xlabel() == "convolution, as numbered in the table"
    assert [text.get_text() for text in depth.get_xticklabels()][:3] == ["1", "3", "5"]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files(tmp_path, suffix, start):
    path = tmp_path / f"profile.{suffix}"
    symmetry_profile(nn.Conv2d(2, 2, 3, stride=2), samples=FEW).save(path, dpi=50)
    assert path.read_bytes().startswith(start)


def test_what_cannot_be_saved(tmp_path):
    profile = symmetry_profile(nn.Conv2d(2, 2, 3), samples=FEW)
    with pytest.raises(ValueError, match="xyz"):
        profile.save(tmp_path / "profile.xyz")
    with pytest.raises(OSError, match="nowhere"):
        profile.save(tmp_path / "nowhere" / "profile.png")


def test_nothing_to_draw():
    net = nn.Sequential(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="no convolution of Sequential has a symmetry to show: one tap"):
        symmetry_profile(net).figure()


def test_pyplot_knows_nothing_of_it():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    symmetry_profile(nn.Conv2d(2, 2, 3), samples=FEW).figure()
    assert pyplot.get_fignums() == before


def test_without_matplotlib_one_sentence_says_so(monkeypatch):
    profile = symmetry_profile(nn.Conv2d(2, 2, 3), samples=FEW)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        @staticmethod
        def find_spec(name, *_):
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(
        ModuleNotFoundError, match="symmetry profile needs the package matplotlib: pip install"
    ):
        profile.figure()
