"""What explain() says of a layer: choices, reasons, costs, and the verdict."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from fake_backend import Fake, clear, fake, layer_and_input

import symconv_fast as sf
from symconv_fast import dispatch
from symconv_fast.backends import reference

__all__ = ["fake"]  # a fixture


def test_explain_shows_choices_reasons_and_costs(fake):
    layer, x = layer_and_input()
    fake.refused = {("dgrad", "fold"): "it rains", ("dgrad", "direct"): "it snows"}
    found = sf.explain(layer, x)
    assert fake.ran == []  # nothing was computed
    assert [(p.op, p.backend, p.algorithm) for p in found.passes] == [
        ("fprop", "fake", "fold"), ("dgrad", "reference", "expand"), ("wgrad", "fake", "fold"),
    ]  # fmt: skip
    text, details = str(found), found.details()
    for shown in (text, details):
        assert shown.startswith(found.verdict + "\n")
        assert "convolution (2, 4, 6, 7) -> (2, 16, 6, 7), kernel (3, 3), float32 on cpu, contiguous" in shown
        assert "8 rows of weight for 16 filters" in shown
        assert f"{2 * 42 * 8 * 4 * 9:,} folded, {2 * 42 * 16 * 4 * 9:,} dense" in shown
        assert f"{4 * (2 * 4 * 42 + 2 * 16 * 42 + 8 * 4 * 9):,} bytes" in shown
    assert "rains" not in text
    assert re.search(
        "^input gradient +torch's convolution  an estimated .*, torch's layer ", text, re.MULTILINE
    )
    rows = [line.split() for line in details.splitlines()[4:]]
    assert ["input", "gradient", "fake", "fold", "it", "rains"] in rows
    assert ["input", "gradient", "fake", "direct", "it", "snows"] in rows
    assert sum("chosen" in row for row in rows) == 3
    assert len(rows) == 9


def torchs_seconds(fake: Fake, monkeypatch, seconds: float) -> None:
    """Make torch's layer take so long a pass, and the fake a second."""
    fake.seconds = 1.0
    monkeypatch.setattr(reference, "torch_seconds", lambda problem, op: seconds)


TIMES = "an estimated {} times as fast as torch's layer forward, {} times in a training step (limit 2{})"


@pytest.mark.parametrize(
    ("seconds", "refused", "algorithms", "verdict"),
    [
        (1.9, {}, ("fold",), "runs on fake/fold forward and backward: " + TIMES.format("1.9", "1.9", "")),
        (
            1.9,
            {("wgrad", "fold"): "no"},
            ("fold", "other"),
            "runs on fake/fold forward, fake/fold and fake/other backward: " + TIMES.format("1.9", "1.9", ""),
        ),
        (
            1.9,
            {("dgrad", "fold"): "no"},
            ("fold",),
            "runs on fake/fold forward, torch's convolution and fake/fold backward: "
            + TIMES.format("1.9", "1.5", ""),
        ),
        (
            3.0,
            {},
            ("fold",),
            "runs on fake/fold forward and backward: "
            + TIMES.format("3.0", "3.0", "; torch's convolution is slow here"),
        ),
        (
            3.0,
            {},
            ("winograd",),
            "runs on fake/winograd forward and backward: "
            + TIMES.format("3.0", "3.0", "; minimal filtering adds to it"),
        ),
        (
            0.5,
            {},
            ("fold",),
            "no gain expected: torch's convolution runs, on filters that are expanded in the call",
        ),
    ],
)
def test_the_verdict_says_what_runs_and_how_fast(fake, monkeypatch, seconds, refused, algorithms, verdict):
    torchs_seconds(fake, monkeypatch, seconds)
    fake.refused, fake.ALGORITHMS = refused, algorithms
    assert sf.explain(*layer_and_input()).verdict == verdict


def test_the_verdict_says_why_torchs_convolution_runs(fake, monkeypatch):
    layer, x = layer_and_input()
    no_gain = "no gain expected: torch's convolution runs, on filters that are expanded in the call"
    with sf.backend("reference"):
        assert sf.explain(layer, x).verdict == f"{no_gain} (backend() asks for it)"
    assert sf.explain(layer, x[:0]).verdict == "nothing to compute: input, weight or output is empty"
    torchs_seconds(fake, monkeypatch, 0.5)
    free = sf.SymmetricConv2d(4, 16, 3)
    assert sf.explain(free, x).verdict == f"{no_gain} (nothing is tied)"
    # A device without rates: the choice is made, but nothing is said of its speed.
    monkeypatch.setattr(fake, "estimate", lambda *_: float("inf"))
    with sf.backend("fake"):
        assert sf.explain(layer, x).verdict.endswith(": its speed is not estimated on this kind of device")


def test_explain_under_a_pin_that_cannot_run(fake):
    layer, x = layer_and_input()
    fake.refused = {("fprop", "fold"): "closed"}
    with sf.backend("fake", algorithm="fold"):
        found = sf.explain(layer, x)
    assert found.passes[0].backend is None
    assert found.passes[1].backend == "fake"
    assert str(found).startswith("cannot run the forward pass: backend() pins")
    assert "forward          error: backend() pins" in found.details()


@pytest.mark.parametrize("channels_last", [False, True])
def test_explain_describes_the_problems_that_run(fake, monkeypatch, channels_last):
    """The problem of each pass, layouts included, is the one that a backend gets."""
    layer, x = layer_and_input()
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    asked = {}
    monkeypatch.setattr(fake, "can_run", lambda problem, op, algorithm: asked.update({op: problem}))
    sf.explain(layer, x)
    explained = dict(asked)
    clear()
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert asked == explained
    assert explained["fprop"].channels_last == channels_last


def test_explain_of_every_kind_of_layer():
    padded = sf.SymmetricConv2d(4, 16, 4, padding="same", padding_mode="circular", symmetry="hv")
    assert sf.explain(padded, torch.randn(4, 6, 7)).problem.output_shape == (1, 16, 6, 7)
    up = sf.SymmetricConvTranspose3d(4, 16, 3, stride=2, symmetry="hvz")
    found = sf.explain(up, torch.randn(2, 4, 3, 3, 3))
    assert "transposed convolution (2, 4, 3, 3, 3) -> (2, 16, 7, 7, 7)" in str(found)
    assert str(sf.explain(found.problem)) == str(found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sf.explain(padded, torch.randn(4, 6, 7)).problem.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="needs the input"):
        sf.explain(up)


@pytest.mark.parametrize("layer", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float64, torch.bfloat16])
def test_explain_raises_what_the_call_raises(layer, dtype):
    layer, x = layer(4, 8, 3, symmetry="h"), torch.ones(1, 4, 6, 6).to(dtype)
    with pytest.raises((TypeError, RuntimeError)) as called:
        layer(x)
    with pytest.raises(type(called.value), match=re.escape(str(called.value))):
        sf.explain(layer, x)


NOTHING = [
    (ndim, transposed, batch, channels)
    for ndim in (1, 2, 3)
    for transposed in (False, True)
    for batch, channels in ((0, 4), (2, 0), (0, 0))
    if channels or not transposed  # as torch, which refuses such a weight
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("ndim", "transposed", "batch", "channels"), NOTHING)
def test_explain_of_nothing_to_compute(ndim, transposed, batch, channels, last):
    cls = getattr(sf, f"SymmetricConv{'Transpose' * transposed}{ndim}d")
    x = torch.randn(batch, channels, *(9,) * ndim)
    if last and ndim > 1:
        x = x.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        layer = cls(channels, 16, 3, symmetry="h")
    for pin in ((None, None), ("distinct", "copy")):
        with sf.backend(*pin):
            found, y = sf.explain(layer, x), layer(x)
        assert found.verdict == "nothing to compute: input, weight or output is empty"
        assert y.shape == found.problem.output_shape
        assert "torch's convolution" not in str(found)
        for one in found.passes:
            assert (one.backend, one.algorithm, one.error) == ("reference", "expand", None)
            able = [c for c in one.candidates if c.reason is None]
            assert [(c.backend, c.seconds) for c in able] == [("reference", 0.0)]
            reasons = {c.reason for c in one.candidates if c.algorithm != "-"}
            assert reasons == {None, "there is nothing to compute, and the reference fills the result"}
        assert "None" not in found.details()


@pytest.mark.parametrize(
    "options",
    [{"dilation": 16385, "padding": 16385}, {"stride": 16385, "padding": 16384}, {"padding": 16385}],
)
def test_explain_of_steps_too_far_for_kernels(options):
    layer, x = sf.SymmetricConv1d(4, 8, 3, symmetry="h", **options), torch.randn(1, 4, 100)
    why = "strides (multiplied), paddings and dilations above 16384 always go to the reference"
    verdict = f"no gain expected: torch's convolution runs, on filters that are expanded in the call; {why}"
    clauses = {
        ("distinct", "copy"): ", whatever backend() asks for",
        ("distinct", None): ", whatever backend() asks for",
        (None, "fold"): ", whatever backend() asks for",
        ("reference", None): "",
        (None, "expand"): "",
        (None, None): "",
    }
    for pin, clause in clauses.items():
        with sf.backend(*pin):
            found = sf.explain(layer, x)
        assert found.verdict == verdict + clause
        for one in found.passes:
            assert (one.backend, one.algorithm) == ("reference", "expand")
            assert one.seconds > 0
            assert {c.reason for c in one.candidates if c.algorithm != "-"} == {None, why}
            assert [c.backend for c in one.candidates if c.reason is None] == ["reference"]


def test_explain_takes_no_other_layer():
    with pytest.raises(TypeError, match=r"SymmetricConv1d/2d/3d, SymmetricConvTranspose.*, got Conv2d"):
        sf.explain(torch.nn.Conv2d(4, 8, 3), torch.ones(1, 4, 6, 6))


def test_columns_of_explain_line_up(fake):
    fake.ALGORITHMS = ("fold", "an_algorithm_with_a_long_name")
    header, *rows = sf.explain(*layer_and_input()).details().splitlines()[3:]
    start = header.index("estimate")
    assert all(row[start - 1] == " " and row[start] != " " for row in rows)


@pytest.mark.skipif("cpu" not in dispatch.available(), reason="the native CPU module is not built")
def test_quadruples_filter_along_a_tied_axis_with_f4_alone():
    layer = sf.SymmetricConv2d(32, 32, 3, padding=1, symmetry="hv")
    cpu, able = dispatch.available()["cpu"], {}
    for level in ("f2", "f4"):
        sf.allow_winograd = level
        try:
            p = sf.explain(layer, torch.empty(1, 32, 16, 16)).problem
            able[level] = [
                cpu.can_run(p, op, algorithm) is None
                for op, algorithm in (
                    ("fprop", "scatter_winograd"),
                    ("dgrad", "winograd"),
                    ("wgrad", "winograd"),
                )
            ]
            reason = str(cpu.can_run(p, "wgrad", "winograd"))
        finally:
            sf.allow_winograd = "f2"
        assert "no axis is free of ties" in reason
    assert able == {"f2": [False, False, False], "f4": [True, True, False]}
