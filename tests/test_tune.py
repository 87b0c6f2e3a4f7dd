# The table of measured tiles: made from the rows of a run, written as a module, and what the Triton backend asks first.
"""Rows here are made up; nothing is measured, and nothing needs a GPU."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from bench import tiles
from symconv_fast.backends.triton import configs, launch, tuned
from symconv_fast.backends.triton.configs import Config

TARGET = tiles.Target(tiles.CLASSES[1], "h", "fprop", torch.bfloat16)
ODD = Config(32, 16, 32, 2, 5)  # in no table


def row(config: Config = ODD, ms: float | None = 1.0, **more: object) -> dict[str, object]:
    """A row of a run, for TARGET on a device that does not exist."""
    facts = {
        "device": "Some GPU", "arch": "sm_90", "dtype": "bfloat16", "kernel": "fprop_fold", "order": 1, "tie": "h",
        "class": TARGET.shape.name, "sizes": tiles.sizes(TARGET), "config": asdict(config), "date": "2026-01-01",
    }  # fmt: skip
    return facts | ({"error": "does not compile"} if ms is None else {"ms_p50": ms}) | more


def planned(target: tiles.Target, device: str) -> Config:
    """The tile of the main kernel of a plan."""
    step = launch.plan(target.problem, target.op, "fold", options=launch.Options("sm_90", device)).launches[
        -1 if target.op == "fprop" else 0
    ]
    c = step.constants
    depth = c["BK"] if "BK" in c else math.prod(c["SIZES"])
    return Config(c["BM"], c["BN"], depth, step.warps, step.stages, c.get("TAPS", 1))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """A function that makes rows the table for one test."""

    def use(*rows: dict[str, object]) -> None:
        monkeypatch.setattr(configs, "TUNED", list(rows))
        launch._plan.cache_clear()

    yield use
    launch._plan.cache_clear()


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_a_measured_tile_goes_before_that_of_the_model(op, measured):
    target = replace(TARGET, op=op)
    kernel, order = tiles.kernel_of(target)
    modelled = planned(target, "Some GPU")
    measured(row(kernel=kernel, order=order, sizes=tiles.sizes(target)))
    assert planned(target, "Some GPU") == ODD != modelled
    assert planned(target, "Another GPU") == modelled
    assert planned(replace(target, dtype=torch.float16), "Some GPU") == planned(
        replace(target, dtype=torch.float16), "Another GPU"
    )


def test_the_nearest_size_counts(measured):
    large, small = Config(64, 64, 32, 4, 3), Config(32, 32, 32, 4, 3)
    measured(row(large, sizes=(100_000, 256, 256)), row(small, sizes=(1000, 256, 256)))
    for positions, tile in ((200_000, large), (20_000, large), (5000, small), (10, small)):
        assert configs.measured("Some GPU", "bfloat16", "fprop_fold", 1, (positions, 256, 256)) == tile
    assert configs.measured("Some GPU", "bfloat16", "fprop_fold", 2, (1000, 256, 256)) is None


def test_the_table_has_the_quickest_that_worked(tmp_path):
    file = tmp_path / "rows.jsonl"
    quick, slow = replace(ODD, m=64), replace(ODD, m=128)
    rows = [row(slow, 2.0), row(quick, 1.0), row(ODD, None), row(slow, 0.5, device="Another GPU")]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = {entry["device"]: entry["config"] for entry in tiles.table(file)}
    assert found == {"Some GPU": asdict(quick), "Another GPU": asdict(slow)}


def test_the_module_that_is_written_is_the_table(tmp_path, measured):
    rows, module = tmp_path / "rows.jsonl", tmp_path / "tuned.py"
    rows.write_text(json.dumps(row()) + "\n")
    tiles.write(tiles.table(rows), module)
    text = module.read_text()
    assert "Measured: Some GPU." in text
    assert "Of a row:" in text
    found = runpy.run_path(str(module))["TUNED"]
    assert found == tiles.table(rows)
    measured(*found)
    assert planned(TARGET, "Some GPU") == ODD


def legible(entry: dict[str, object]) -> bool:
    """Can `configs.measured` read a row of its table, and is its tile one that a kernel can have?"""
    found = configs.measured(
        entry["device"], entry["dtype"], entry["kernel"], entry["order"], tuple(entry["sizes"])
    )
    sides = () if found is None else (found.m, found.n, found.k)
    return (
        bool(sides)
        and all(v >= 16 and v & (v - 1) == 0 for v in sides)
        and entry["arch"] in configs.ARCHITECTURES
    )


def test_a_table_that_was_written_is_legible(tmp_path, measured):
    rows = tmp_path / "rows.jsonl"
    kernels = ("fprop_fold", "fprop_direct", "dgrad", "wgrad")
    rows.write_text(
        "".join(
            json.dumps(row(kernel=kernel, order=o, tie=tie)) + "\n"
            for kernel in kernels
            for o, tie in enumerate(("free", "h"))
        )
    )
    table = tiles.table(rows)
    measured(*table)
    assert len(table) == 8
    assert all(legible(entry) for entry in table)
    bad = [row(arch="sm_1"), row(replace(ODD, m=24)), row(replace(ODD, k=8))]
    for entry in bad:
        measured(entry)
        assert not legible(entry)


def test_the_table_in_the_repository_is_legible():
    assert tuned.TUNED
    assert all(legible(entry) for entry in tuned.TUNED)


@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_sizes_are_those_that_a_plan_asks_with(op, monkeypatch):
    """Else the nearest layer would be looked for by other numbers than it was stored with."""
    asked = []
    monkeypatch.setattr(configs, "measured", lambda *key: asked.append(key))
    launch._plan.cache_clear()
    target = replace(TARGET, op=op)
    planned(target, "Some GPU")
    launch._plan.cache_clear()
    kernel, order = tiles.kernel_of(target)
    assert asked == [("Some GPU", "bfloat16", kernel, order, tiles.sizes(target))]


def test_tiles_of_channels_that_16_byte_loads_do_not_fit_are_smaller():
    sizes = (100_000, (256,), 256)
    for kernel, order in (("fprop_fold", 2), ("fprop_direct", 0), ("dgrad", 1)):
        fits, not_ = (configs.select(kernel, order, 2, "sm_90", sizes, aligned=a) for a in (True, False))
        assert not_.m * not_.n < fits.m * fits.n
        assert not_.k <= 32


def test_two_groups_of_warps_do_not_share_64_rows():
    wide = Config(128, 128, 32, 8, 3)
    assert configs.fit(wide, 1000, 128, 64).warps == 8
    assert configs.fit(wide, 64, 128, 64) == Config(64, 128, 32, 4, 3)
    assert configs.fit(Config(64, 32, 32, 8, 2), 64, 32, 64).warps == 8  # of the table, and compiled as it is


def test_what_has_no_tile_is_refused(monkeypatch):
    from symconv_fast.backends.triton import backend

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(backend.run, "architecture", lambda device: "sm_80")
    monkeypatch.setattr(backend.run, "device_name", lambda device: "")
    octuple = {
        "kernel": (3, 3, 3),
        "spatial": (8, 8, 8),
        "stride": (1,) * 3,
        "padding": (1,) * 3,
        "dilation": (1,) * 3,
    }
    for ties, dtype, refused in (
        (((7, 32), (0, 32)), torch.float64, True),
        (((7, 32), (0, 32)), torch.float32, False),
        (((3, 32), (0, 32)), torch.float64, False),
    ):
        problem = replace(TARGET.problem, ties=ties, unique=64, dtype=dtype, **octuple)
        assert bool(backend.can_run(problem, "fprop", "fold")) == refused
        assert backend.can_run(problem, "fprop", "direct") is None
        assert backend.can_run(problem, "dgrad", "fold") is None


def test_members_of_a_direct_gradient_fit_tensor_memory():
    """Each product of a step has its columns: with 128 a tile, those of a quadruple are more than there are."""
    sizes = (100_000, (256,), 256)
    for kernel in ("dgrad", "wgrad"):
        for order in (2, 3):
            assert configs.select(f"{kernel}_direct", order, 2, "sm_100", sizes).n == 64
            wide = 64 if (kernel, order) == ("wgrad", 3) else 128  # whose octuples spill with 128
            assert configs.select(kernel, order, 2, "sm_100", sizes).n == wide


def test_ties_that_share_a_launch_have_smaller_tiles():
    sizes = (100_000, (256,), 256)
    for kernel, order, itemsize, arch in (
        ("fprop_fold", 2, 2, "sm_90"),
        ("dgrad_direct", 1, 2, "sm_80"),
        ("dgrad", 2, 4, "sm_80"),
    ):
        mixed, alone = (configs.select(kernel, order, itemsize, arch, sizes, mixed=m) for m in (True, False))
        assert mixed.m * mixed.n < alone.m * alone.n
