# What the benchmark measures: its networks, its selections by options, and the whole run.

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from fake_rows import row, run_python
from torch import nn

from bench import networks, plan, regions, rows, shapes, targets

# --- networks --------------------------------------------------------------------------------------------------------


def plain(ndim: int) -> networks.Factory:
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    return lambda cin, cout, kernel, stride=1: conv(cin, cout, kernel, stride, kernel // 2)


def test_networks_are_the_published_ones():
    def count(make) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in make(plain(2)).parameters())

    assert count(networks.vgg16) == 138_357_544
    assert (
        count(networks.resnet18) == 11_689_512 + 64 * 5 + (128 + 256 + 512) * 5
    )  # the latter: biases beside norms


@pytest.mark.parametrize(
    ("make", "tie", "shape", "out"),
    [
        (networks.resnet18, "hv", (1, 3, 32, 32), (1, 1000)),
        (networks.unet, "h", (1, 3, 32, 16), (1, 2, 32, 16)),
        (networks.unet3d, "hvz", (1, 1, 8, 8, 4), (1, 3, 8, 8, 4)),
    ],
)
def test_tied_networks_equal_their_ordinary_ones(make, tie, shape, out):
    torch.manual_seed(0)
    tied = networks.initialise(make(networks.tied(tie, len(shape) - 2))).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        mine = tied(x)
        layers = [m for m in tied.modules() if isinstance(m, tuple(networks.SYMMETRIC.values()))]
        assert sum(layer.unique_out_channels < layer.out_channels for layer in layers) >= 9
        theirs = networks.ordinary(tied)(x)
    assert not any(isinstance(m, tuple(networks.SYMMETRIC.values())) for m in tied.modules())
    assert mine.shape == out
    torch.testing.assert_close(mine, theirs)


# --- selection -------------------------------------------------------------------------------------------------------


def test_shapes_have_distinct_names_and_every_tie_fits():
    everything = [*shapes.ALL, *shapes.SMALL]
    names = [(shape.name, shape.model, shape.family) for shape in everything]
    assert len(set(names)) == len(names)
    for shape in {*everything, *shapes.DEFAULT, *shapes.QUICK, *shapes.MEAN}:
        for tie in shape.ties:
            assert shape.out_channels(2 ** len(tie)) % (2 ** len(tie) * shape.groups) == 0


def test_every_set_is_part_of_the_full_one():
    for some in (shapes.QUICK, shapes.DEFAULT, shapes.OCTUPLES, shapes.WEIGHT_BOUND, shapes.MEAN):
        assert set(some) <= set(shapes.ALL)
    for kind in plan.KINDS:
        quick, full = (set(plan.cases(kind, plan.Options(full=full))) for full in (False, True))
        assert quick
        assert quick <= full


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_quick_set_has_every_target(where):
    quick, full = (
        {wanted for kind in plan.KINDS for wanted in plan.cases(kind, plan.Options(device=where, full=full))}
        for full in (False, True)
    )
    # Of these kinds the quick set has the first size.
    kinds = {c for c in targets.cases(where) if c.family in ("network", "equivariant")}
    assert set(targets.cases(where)) - kinds <= quick
    assert kinds <= full
    assert {wanted.device for wanted in quick} == {where}
    assert all(target.cases and target.must <= target.goal for target in targets.TARGETS[where])
    names = [target.name for target in targets.TARGETS[where]]
    assert len(set(names)) == len(names)


def test_equivariant_layers_are_those_that_were_named():
    quick, full = (plan.cases("equivariant", plan.Options(full=full)) for full in (False, True))
    assert {case.direction for case in quick} == {"fwd", "step"}
    assert {case.direction for case in full} == {"fwd", "dgrad", "wgrad", "step"}
    assert len(quick) == 2 * len(shapes.EQUIVARIANT)
    by_tie = {
        tie: {c.shape.name for c in full if c.ties == tie} for tie in ("hv>hv", "hvz>hvz", "rc>h", "h-")
    }
    assert by_tie["hv>hv"] == {shape.name for shape in shapes.MEAN}
    assert by_tie["hvz>hvz"] == {"1x128@16^3", "2x64@16^3"}
    assert (by_tie["rc>h"], by_tie["h-"]) == ({"32x4>64@L1000 k21"}, {"4x128@28"})
    asked = plan.cases("equivariant", plan.Options(ties=("h>h",), shapes="d256", passes=("dgrad",)))
    assert [(c.name, c.family) for c in asked] == [("32x64@L1000_d256-h>h-dgrad", "equivariant")]


def test_targets_of_self_symmetric_filters_are_shares_of_the_limit_of_their_taps():
    kinds = {kind.name: kind for kind in shapes.EQUIVARIANT}
    limits = {name: targets.taps_limit(kinds[name]) for name in kinds if "even" in name or "odd" in name}
    assert [round(limit, 2) for limit in limits.values()] == [1.5, 3.0, 1.67, 1.75, 1.99]
    by_name = {target.name: (target.must, target.goal) for target in targets.EQUIVARIANT}
    assert by_name["odd 3×3, training step, h-"] == (2.25, 2.7)
    assert by_name["orbits to orbits, forward, hv>hv"] == (2.7, 3.4)
    assert by_name["DNA, later layers, forward, h>h"] == (1.0, 1.5)


def test_overhead_is_that_of_the_tiny_layer():
    tiny = row("1x8@8", 0.5, ms_p50=0.030, baseline_ms=0.0225)
    others = [
        row("1x8@8", 0.5, algorithm_pin="fold"),
        row("1x8@8", 0.5, **{"pass": "step"}),
        row("9x9@9", 0.1),
    ]
    assert targets.overhead([tiny, *others]) == pytest.approx(7.5)
    assert targets.overhead(others) is None
    assert "| 10 µs | - | 7.5 µs | must |" in regions.targets_region([tiny, *others])


@pytest.mark.parametrize("full", [False, True])
def test_a_rehearsal_has_tiny_cases_of_every_kind_and_nothing_else(full):
    options = plan.Options(full=full, rehearsal=True)
    for kind, passes in plan.KINDS.items():
        found = plan.cases(kind, options)
        assert {case.shape for case in found} <= set(shapes.REHEARSAL)
        assert {case.direction for case in found} == set(passes)
        assert {case.shape.depthwise for case in found} == {kind == "depthwise"}


def test_options_that_narrow_leave_the_targets_out():
    options = plan.Options(shapes="256@14", ties=("hv",), layouts=("contiguous",), algorithm="fold")
    (only,) = [c for c in plan.cases("forward", options) if c.shape.batch == 4 and c.shape.stride == 1]
    assert (only.shape.name, only.tie, only.layout, only.algorithm) == (
        "4x256@14",
        "hv",
        "contiguous",
        "fold",
    )


def test_sequences_have_one_layout_and_gpus_their_batch():
    options = plan.Options(shapes="L202", layouts=("channels_last", "contiguous"))
    assert len(plan.cases("forward", options)) == 1
    on_gpu = plan.cases("forward", plan.Options(shapes="@56", device="cuda"))
    assert {"256x64@56", "64x256@56"} <= {c.shape.name for c in on_gpu}
    assert "1x64@512" not in {c.shape.name for c in plan.cases("forward", plan.Options(full=True))}


def test_budget_shares_the_time_that_is_left():
    now = [0.0]
    budget = plan.Budget(seconds=3.0, minutes=1.0, total=10, clock=lambda: now[0])
    assert budget.seconds(0) == 3.0  # 6 s a case, half of it for measuring
    now[0] = 40.0
    assert budget.seconds(0) == pytest.approx(1.0)
    assert budget.seconds(5) == pytest.approx(2.0)
    now[0] = 100.0
    assert budget.seconds(9) == plan.Budget.LEAST
    assert plan.Budget(3.0, 0.0, 10, lambda: 1e9).seconds(0) == 3.0


@pytest.mark.parametrize("wrong", [{"layouts": ("nhwc",)}, {"dtypes": ("int8",)}, {"passes": ("both",)}])
def test_unknown_options_are_named(wrong):
    ((name, (value,)),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}: '{value}' is not known; give some of"):
        plan.Options(**wrong)


# --- the whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`pytest bench/` on a few small layers, and the file that it wrote."""
    for module in ("pytest_benchmark", "tqdm"):
        pytest.importorskip(module, reason=f"needs {module}")
    out = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    options = ["--shapes", "1x8@8", "--ties", "hv", "--passes", "fwd", "--seconds", "0.01", "--out", str(out)]
    return run_python(
        "-m", "pytest", "bench", "-p", "no:cacheprovider", *options, OMP_WAIT_POLICY="passive"
    ), out


def test_a_run_measures_stores_and_shows_progress(whole):
    done, out = whole
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows.load(out)
    assert [r["shape"] for r in found] == ["1x8@8", "1x8@8^3"]
    assert "2/2" in done.stderr
    assert "geometric mean" in done.stdout
    assert str(out) in done.stdout
    assert "skipped" not in done.stdout


def test_a_run_says_what_it_cannot_do(tmp_path):
    for option, value, message in (
        ("--device", "cuda", "torch sees no GPU"),
        ("--dtypes", "int8", "'int8' is not known"),
    ):
        if option == "--device" and torch.cuda.is_available():
            continue
        done = run_python("-m", "pytest", "bench", "-p", "no:cacheprovider", "--collect-only", option, value)
        assert done.returncode == 4
        assert message in done.stderr
