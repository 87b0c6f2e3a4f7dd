# The figures of the benchmark: what is drawn, on which scale, and that files are small and always the same.

from __future__ import annotations

import re

import pytest
from fake_rows import row, some_rows

from bench import rows


@pytest.fixture
def plots():
    """The module that draws, where matplotlib is."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from bench import plots

    return plots


def drawn() -> list[rows.Row]:
    """What the figures are made from: pairs and quadruples, a training step, and rows that no figure has."""
    return [
        *some_rows(),
        row("4x128@28", 3.0, tie="hv", limit=4),
        row("4x64@56", 1.5, **{"pass": "step"}),
        row("1x8@8", 1.4, family="small"),
        row("1x8@8", 1.7, family="small", tie="hv", limit=4),
        row("4x64@56", 1.1, tie="v"),
        row("4x64@56", 1.2, layout="contiguous"),
        row("4x64@56", 1.3, dtype="bfloat16"),
        row("4x64@56", 9.0, family="equivariant", tie="h>h"),
        row("4x64@56", 9.0, family="equivariant", tie="h+"),
    ]


def test_plots_are_small_and_the_same_every_time(plots, tmp_path):
    measured = [*drawn(), row("1x9@9", 9.0, algorithm_pin="fold")]
    paths = plots.draw(measured, tmp_path)
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    assert {path.suffix for path in paths} == {".svg", ".png"}
    first = (tmp_path / "ratio.svg").read_text()
    plots.draw(measured, tmp_path)
    assert (tmp_path / "ratio.svg").read_text() == first
    assert ">9.0<" not in first  # pinned rows are not drawn
    assert ">ResNet  4x128@28<" in first  # text is text
    # Legible on a dark page as well: the first patch is the page, and it is white.
    assert re.search(r'id="patch_1">\s*<path d="[^"]*" style="fill: #ffffff"', first)
    assert 'width="600pt"' in first  # 800 pixels


def test_ratio_has_a_sorted_bar_for_each_layer_and_its_limit(plots):
    pairs, quadruples = plots.ratio(drawn()).axes
    assert [bar.get_width() for bar in pairs.patches] == [0.5, 1.0, 4.0]
    assert [text.get_text() for text in pairs.get_yticklabels()] == [
        "ResNet  1x512@7", "ResNet  4x64@56", "ResNet  4x128@28",
    ]  # fmt: skip
    assert [bar.get_width() for bar in quadruples.patches] == [3.0]
    for axis, limit in ((pairs, 2), (quadruples, 4)):
        assert limit in [line.get_xdata()[0] for line in axis.get_lines()]
        assert f"limit {limit}" in [text.get_text() for text in axis.texts]
        assert axis.get_xlim() == pairs.get_xlim()  # one scale
    (ring,) = [line for line in pairs.get_lines() if line.get_label() == "training step"]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1.5], [1])
    assert "1.4 (h), 1.7 (hv)" in plots.ratio(drawn()).get_supxlabel()


def test_channels_has_a_panel_a_tie_on_one_scale(plots):
    pairs, quadruples = plots.channels(drawn()).axes
    last, contiguous = pairs.get_lines()[:2]
    assert list(last.get_xdata()) == [64, 128, 512, 8]
    assert list(contiguous.get_ydata()) == [1.2]
    assert pairs.get_ylim() == quadruples.get_ylim()
    assert "limit 4" in [text.get_text() for text in quadruples.texts]


def test_roofline_says_why_points_lie_above_the_roof(plots):
    figure = plots.roofline(drawn())
    assert "which the tie makes unnecessary" in figure.get_supxlabel()
    dots, rings = figure.axes[0].get_lines()[:2]
    assert set(dots.get_ydata()) == {2.0}  # twice the folded multiply-accumulates
    assert set(rings.get_ydata()) == {4.0}
