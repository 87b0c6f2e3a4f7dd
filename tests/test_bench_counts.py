# bench.counts: what is counted of a few CTAs is what all of them do, and what a hand finds for a small layer.
from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import cuda_host
import pytest

from bench import counts
from bench.counts import H200, Layer, Way

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture
def machine() -> Iterator[Any]:
    module = cuda_host.module()
    with counts.stand_in(module, H200):
        yield module


def done(machine: Any, way: Way) -> list[dict[str, float]]:
    return [counts.work(launch) for launch in counts.launches(machine, way)]


@pytest.mark.parametrize(("tie", "members"), [("h", 2), ("hv", 4)])
def test_a_layer_whose_tiles_are_full(machine: Any, tie: str, members: int) -> None:
    """There are as many folded taps as taps; a tile's pixels come with a halo, and all folded weights with them."""
    images, size, channels = 2, 32, 128
    way = Way(Layer(channels, size, images, "none"), tie, "fprop", "patch")
    fold, forward = done(machine, way)
    pixels, orbits = images * size**2, channels // members
    assert forward["mma"] == pixels * channels * orbits * 9
    assert forward["stored"] == pixels * channels * 2
    assert fold["stored"] == orbits * channels * 9 * 2
    least = pixels * channels * 2
    weights = orbits * channels * 9 * 2
    assert least < forward["l2"] <= least * (18 / 16) * (10 / 8) + pixels / 64 * weights
    busy = counts.clocks(forward, H200)
    assert busy["matrix units"] == forward["mma"] / H200.mma / H200.multiprocessors


@pytest.mark.parametrize(
    ("algorithm", "op"), [("patch", "fprop"), ("hopper", "fprop"), ("hopper", "dgrad"), ("tile", "wgrad")]
)
def test_a_sample_stands_for_all(machine: Any, algorithm: str, op: str) -> None:
    way = Way(Layer(64, 16, 3, "none"), "h", op, algorithm)
    few = done(machine, way)
    machine.set_sample(1 << 20)
    every = done(machine, way)
    machine.set_sample(counts.SAMPLE)
    for one, all_ in zip(few, every, strict=True):
        for name in ("mma", "wgmma", "shared", "l2"):
            assert one[name] == pytest.approx(all_[name], rel=0.15), name


def test_what_was_measured_stands_beside_it() -> None:
    layer = counts.LAYERS[0]
    assert str(layer) == "64x512@28"
    found = counts.measured(Way(layer, "hv", "dgrad", "tile"), ("",))
    assert found == {"cudnn_ms": pytest.approx(0.296, abs=1e-3), "triton_ms": pytest.approx(0.234, abs=1e-3)}
    found = counts.measured(Way(layer, "h", "fprop", "patch"), ("patch h64",))
    assert found == {"cudnn_ms": 0.2937, "prototype_ms": 0.3927}


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of layers that nobody measured, too."""
    monkeypatch.setattr(counts, "LAYERS", (Layer(64, 16, 1, "none"),))
    monkeypatch.setattr(counts, "load", cuda_host.module)
    monkeypatch.setattr(sys, "argv", ["counts", "--algorithms", "patch"])
    counts.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1x64@16")]
    assert [row.split(" | ")[1:4] for row in rows] == [
        ["h", "fprop", rows[0].split(" | ")[3]],
        ["hv", "fprop", rows[1].split(" | ")[3]],
    ]
    assert all(" | patch " in row for row in rows)
