# On a GPU: every backend against the oracle, the same bits again, sizes past 2^31, CUDA graphs, streams, devices.
"""What only a CUDA device can show. `bench/gpu.sh` runs this file; elsewhere it is skipped.

With SYMCONV_FAST_REHEARSE=1 (and TRITON_INTERPRET=1, for the Triton kernels) the tests run on a CPU with tiny sizes:
that they work is then known before there is a GPU. What an H200 has run of them is in docs/gpu.md.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import cuda_grid
import pytest
import refusals
import torch
from oracle import OPS, Case, algorithms, candidates, check, pinned, problem_of, run

import symconv_fast as sf
from symconv_fast import settings
from symconv_fast.problem import memory_format
from symconv_fast.trial import verdicts

REHEARSAL = bool(os.environ.get("SYMCONV_FAST_REHEARSE")) and not torch.cuda.is_available()
DEVICE = "cpu" if REHEARSAL else "cuda"
HERE = REHEARSAL or torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(
    REHEARSAL, reason="a rehearsal on a CPU has no CUDA graphs, streams and devices"
)
pytestmark = pytest.mark.gpu

DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
# Small enough for compute-sanitizer, and what goes wrong first: borders, odd sizes, mixed ties, strides, few channels.
SMOKE = ("h", "hv", "mixed 2-D, channels last", "stem, C = 3", "transposed, stride 2", "depthwise")
SAMPLE = 24
REHEARSED = (*SMOKE[:2], "one pixel")
PROBLEMS = {name: cases.SPECIAL[name] for name in (REHEARSED if REHEARSAL else SMOKE)}
if not REHEARSAL:
    PROBLEMS |= cases.SPECIAL | {f"random {i}": case for i, case in enumerate(cases.sample(SAMPLE))}


def skip(what: str, reason: str) -> None:
    """Skips the test if nothing can run for that reason, else fails it."""
    if refusals.may_skip(reason):
        pytest.skip(f"{what}: {reason}")
    pytest.fail(f"{what}: {reason}; no test is skipped for that")


def _available(backend: str) -> Any:
    """The module of a backend; a test of one that is not available here is skipped, or fails."""
    module = sf.dispatch.load(backend)
    if isinstance(module, str):
        skip(backend, module)
    return module


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are used without a known answer: these tests are more than that."""
    monkeypatch.setenv(settings.ENV_KNOWN_ANSWERS, "0")


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 means float32: TF32 has a test of its own."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _grid() -> list[object]:
    """Everything that runs here; nothing is asked where there is no device."""
    found = []
    for dtype in DTYPES[:2] if REHEARSAL else DTYPES:
        # Every new shape compiles kernels: the types that differ least get the short list.
        names = SMOKE if dtype in DTYPES[2:] else tuple(PROBLEMS)
        for name in names if HERE else ():
            for op in OPS:
                for backend, algorithm, reason in candidates(PROBLEMS[name], dtype, op, DEVICE):
                    if reason is None and backend not in ("cpu", "cuda"):  # the latter's are below
                        smoke = "smoke, " if name in SMOKE else ""
                        title = f"{smoke}{backend} {algorithm}, {str(dtype)[6:]}, {op}, {name}"
                        found.append(pytest.param(PROBLEMS[name], dtype, op, backend, algorithm, id=title))
    return found or [pytest.param(None, None, None, None, None, id="nothing")]


@pytest.mark.parametrize(("case", "dtype", "op", "backend", "algorithm"), _grid())
def test_equals_the_oracle(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str) -> None:
    check(case, dtype, op, backend, algorithm, DEVICE)


def _kernels() -> list[object]:
    """What the CUDA kernels take of their own grid, where there is a GPU."""
    found = []
    there = sf.dispatch.available() if HERE and not REHEARSAL else {}
    for name, case in cuda_grid.grid().items() if "cuda" in there else ():
        for algorithm, op in itertools.product(cuda_grid.ALGORITHMS, OPS):
            for dtype in cuda_grid.DTYPES:
                if cuda_grid.must_run(case, dtype, op, algorithm):
                    smoke = "smoke, " if name.removesuffix(", grown") in SMOKE else ""
                    title = f"{smoke}cuda {algorithm}, {str(dtype)[6:]}, {op}, {name}"
                    found.append(pytest.param(case, dtype, op, algorithm, id=title))
    return found or [pytest.param(None, None, None, None, id="no cuda kernels")]


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), _kernels())
def test_cuda_kernels_equal_the_oracle(
    case: Case | None, dtype: torch.dtype, op: str, algorithm: str
) -> None:
    """The grid that the stand-in runs without a GPU; float32 as TF32, of whole numbers."""
    cuda = _available("cuda")
    assert case is not None, "the cuda kernels have no problem that they must run"
    torch.backends.cudnn.allow_tf32 = True  # until the fixture is left
    reason = cuda.can_run(problem_of(case, dtype, op, DEVICE), op, algorithm)
    if reason is not None:  # another shared memory than the stand-in's, or an architecture that was not built
        skip(f"cuda {algorithm}", reason)
    cuda_grid.check(case, dtype, op, algorithm, DEVICE)


SIDES = (
    "h to h, dilation",
    "hv to hv, even kernel",
    "hvz to hvz",
    "h-v+ of hv",
    "h+v-, stride 2",
    "reverse order",
)


@pytest.mark.parametrize("name", SIDES[:1] if REHEARSAL else SIDES, ids="smoke, {}".format)
def test_ties_on_both_sides_are_those_of_the_definition(name: str) -> None:
    """smoke: all passes by the fold of Triton, in the type of the case."""
    _available("triton")
    from triton_sides import CASES
    from triton_sides import check as check_sides

    check_sides(*CASES[name], device=DEVICE)


def _ways() -> list[tuple[str, str]]:
    return [way for way in algorithms() if way[0] in ("cuda", "triton", "reference")]


@pytest.mark.parametrize(("backend", "algorithm"), _ways())
@pytest.mark.parametrize("op", OPS)
def test_same_arguments_give_the_same_bits(op: str, backend: str, algorithm: str) -> None:
    """Split reductions, filled multiprocessors, odd sizes: twenty times the same."""
    size = (9, 7) if REHEARSAL else (61, 59)
    case = Case(
        ties=((1, 32), (3, 16)), channels=32 if REHEARSAL else 160, spatial=size, padding=(1, 1), batch=3
    )
    reason = {(b, a): why for b, a, why in candidates(case, torch.bfloat16, op, DEVICE)}[backend, algorithm]
    if reason is not None:
        skip(f"{backend} {algorithm}", reason)
    dtype = torch.float32 if REHEARSAL else torch.bfloat16
    first = run(case, dtype, op, backend, algorithm, DEVICE)
    assert first.abs().sum() > 0
    for _ in range(2 if REHEARSAL else 20):
        assert torch.equal(run(case, dtype, op, backend, algorithm, DEVICE), first)


# Root mean square error as a multiple of the ordinary convolution's, by number of tied axes.
LIMITS = {"h": 1.7, "v": 1.7, "hv": 2.1, "hvz": 2.5}


@pytest.mark.parametrize(
    ("backend", "algorithm", "tie"),
    [(*way, tie) for way in _ways() for tie in LIMITS],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding(tie: str, dtype: torch.dtype, backend: str, algorithm: str) -> None:
    """Forward and input gradient against the ordinary layer of the same type: the rule of the project."""
    if backend == "reference" or REHEARSAL:
        pytest.skip("the reference is what is compared with, and a CPU rounds in other ways")
    ndim = 3 if tie == "hvz" else 2
    layer = getattr(sf, f"SymmetricConv{ndim}d")(64, 64, 3, padding=1, symmetry=tie, bias=False)
    layer = layer.to(DEVICE, dtype)
    x = torch.randn(4, 64, *[14] * ndim, device=DEVICE).to(dtype).requires_grad_()
    gy = torch.randn(4, 64, *[14] * ndim, device=DEVICE).to(dtype)

    def passes(dtype: torch.dtype, filters: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().to(dtype).requires_grad_()
        conv = getattr(torch.nn.functional, f"conv{ndim}d")
        y = layer(leaf) if filters is None else conv(leaf, filters.to(dtype), padding=1)
        return y, torch.autograd.grad(y, leaf, gy.to(dtype))[0]

    filters = layer.expanded_weight().detach()
    exact, ordinary = passes(torch.float64, filters), passes(dtype, filters)
    problem, reasons = layer.problem(x), []
    for i, op in enumerate(("fprop", "dgrad")):
        module = sf.dispatch.available()[backend]
        reason = module.can_run(problem, op, algorithm)
        if reason is not None:
            reasons.append(reason)
            continue
        with torch.autograd.set_multithreading_enabled(False), pinned(backend, algorithm):
            ours = passes(dtype, None)[i]
        mine, theirs = ((t.double() - exact[i]).square().mean().sqrt() for t in (ours, ordinary[i]))
        limit = 2.0 if dtype == torch.float32 else 1.1 if algorithm == "direct" else LIMITS[tie]
        assert mine <= limit * theirs
    if len(reasons) == 2:  # algorithms of the CUDA kernels are each for some kinds of layers
        skip(f"{backend} {algorithm}", next((r for r in reasons if not refusals.may_skip(r)), reasons[0]))


@needs_cuda
def test_tf32_is_as_exact_as_torchs() -> None:
    torch.backends.cudnn.allow_tf32 = True
    layer = sf.SymmetricConv2d(128, 128, 3, padding=1, symmetry="h", bias=False).cuda()
    x = torch.randn(8, 128, 28, 28, device="cuda")
    exact = torch.nn.functional.conv2d(x.double(), layer.expanded_weight().double(), padding=1)
    ordinary = torch.nn.functional.conv2d(x, layer.expanded_weight(), padding=1)
    limit = 2 * (ordinary.double() - exact).square().mean().sqrt()
    problem = layer.problem(x)
    for backend, algorithm in _ways():
        module = sf.dispatch.available()[backend]
        if backend in ("cuda", "triton") and module.can_run(problem, "fprop", algorithm) is None:
            with torch.no_grad(), pinned(backend, algorithm):
                assert (layer(x).double() - exact).square().mean().sqrt() <= limit


# --- sizes ---------------------------------------------------------------------------------------------------------

# (channels, height, width), channels last: with 16-bit values more than 2^31 elements on either side of the layer.
LARGE = (64, 8192, 4100)
EDGE = 8  # rows at the end that are not zero


@pytest.mark.parametrize(
    ("backend", "algorithm"), [("triton", "fold"), ("triton", "direct"), ("cuda", "tile"), ("cuda", "patch")]
)
@pytest.mark.parametrize("op", OPS)
def test_more_than_2_to_the_31_elements(op: str, backend: str, algorithm: str) -> None:
    """The last rows of a huge map, all others zero, give what they give in a small map of their own.

    For our own kernels: what torch does with such tensors is not for this test.
    """
    channels, height, width = (16, 40, 20) if REHEARSAL else LARGE
    dtype = torch.float32 if REHEARSAL else torch.bfloat16
    last = memory_format(2, True)

    def huge(rows: torch.Tensor) -> torch.Tensor:
        whole = (1, channels, height, width)
        full = torch.empty(whole, device=DEVICE, dtype=dtype, memory_format=last).zero_()
        full[:, :, -EDGE:] = rows
        return full

    shape = (1, channels, EDGE, width)
    x, gy = (torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=last) for _ in range(2))
    gy[:, :, :2] = 0  # what reaches past the upper border of the small map
    layer = sf.SymmetricConv2d(channels, channels, 3, padding=1, symmetry="h", bias=False).to(DEVICE, dtype)
    problem = replace(layer.problem(x), spatial=(height, width))
    reason = _available(backend).can_run(problem, op, algorithm)
    if reason is not None:
        skip(f"{backend} {algorithm}", reason)
    assert REHEARSAL or channels * height * width > 2**31

    with pinned(backend, algorithm):
        if op == "fprop":
            args = (layer.weight, None, *_static(layer))
            got = torch.ops.symconv_fast.fprop(huge(x), *args)[:, :, 1 - EDGE :]
            wanted = torch.ops.symconv_fast.fprop(x, *args)[:, :, 1:]
        elif op == "dgrad":
            call = torch.ops.symconv_fast.dgrad
            whole = [1, channels, height, width]
            got = call(huge(gy), layer.weight, whole, *_static(layer))[:, :, 1 - EDGE :]
            wanted = call(gy, layer.weight, list(shape), *_static(layer))[:, :, 1:]
        else:
            call = torch.ops.symconv_fast.wgrad
            args = (list(layer.weight.shape), *_static(layer))
            got, wanted = call(huge(gy), huge(x), *args), call(gy, x, *args)
    scale = float(wanted.abs().max())
    assert scale > 0
    # Another split of the sums, and for 16-bit types another rounding of them.
    assert float((got.double() - wanted.double()).abs().max()) <= (1e-4 if REHEARSAL else 0.02) * scale


def _static(layer: sf.SymmetricConv2d) -> tuple[object, ...]:
    """Arguments of the operators from `ties` on."""
    ties = layer.symmetry.resolve(2, layer.out_channels, 1)
    return (list(ties.flat), [1, 1], [1, 1], [1, 1], [0, 0], False, 1, True)


# --- graphs, streams, devices ----------------------------------------------------------------------------------------


def model(channels: int = 64, stem: int = 3) -> torch.nn.Module:
    """Three layers whose ties differ, in bfloat16, channels last."""
    sizes = ((stem, "h"), (channels, {"h": 16, "hv": 32}), (channels, "hv"))
    layers = [sf.SymmetricConv2d(c, channels, 3, padding=1, symmetry=tie) for c, tie in sizes]
    stack = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    return stack.to(DEVICE, torch.bfloat16, memory_format=torch.channels_last)


def image(seed: int, channels: int = 3) -> torch.Tensor:
    """A seeded batch for `model`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, channels, 48, 52, generator=generator).to(DEVICE, torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


@needs_cuda
@pytest.mark.parametrize("backend", [None, "cuda", "triton"])
def test_cuda_graph_capture_forward_and_backward(backend: str | None) -> None:
    """A captured training step, replayed on new values, gives what the eager one gives, bit by bit."""
    stem = _stem(backend)
    net, x = model(stem=stem), image(0, stem)

    def step() -> list[torch.Tensor]:
        out = net(x)
        return [out, *torch.autograd.grad(out, list(net.parameters()), torch.ones_like(out))]

    stream = torch.cuda.Stream()
    with torch.autograd.set_multithreading_enabled(False), sf.backend(backend):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
        for seed in (1, 2):
            x.copy_(image(seed, stem))
            graph.replay()
            torch.cuda.synchronize()
            kept = [t.clone() for t in captured]
            for a, b in zip(kept, step(), strict=True):
                assert torch.equal(a, b)


def _stem(backend: str | None) -> int:
    """Input channels of a network that a backend runs from end to end; skips where it is not available."""
    if backend is not None:
        _available(backend)
    return 64 if backend == "cuda" else 3


@needs_cuda
@pytest.mark.parametrize("backend", [None, "cuda"])
def test_two_streams_do_not_disturb_each_other(backend: str | None) -> None:
    stem = _stem(backend)
    net = model(stem=stem)
    with torch.no_grad(), sf.backend(backend):
        wanted = [net(image(seed, stem)) for seed in range(2)]
        streams = [torch.cuda.Stream() for _ in wanted]
        torch.cuda.synchronize()
        results: list[list[torch.Tensor]] = [[], []]
        for _ in range(30):
            for seed, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    results[seed].append(net(image(seed, stem)))
        torch.cuda.synchronize()
    for own, right in zip(results, wanted, strict=True):
        assert all(torch.equal(result, right) for result in own)


@needs_cuda
@pytest.mark.parametrize("backend", [None, "cuda"])
def test_second_device(backend: str | None) -> None:
    """The kernels run where the tensors are, whichever device is the current one."""
    if torch.cuda.device_count() < 2:
        skip("two devices", "there is one CUDA device")
    stem = _stem(backend)
    net, x = model(stem=stem), image(0, stem)
    with sf.backend(backend):
        wanted = net(x)
        assert torch.equal(net.to("cuda:1")(x.to("cuda:1")).cpu(), wanted.cpu())


@needs_cuda
def test_autocast_and_compile_agree_with_eager() -> None:
    net, x = model().float(), image(0).float()
    with torch.autocast("cuda", torch.bfloat16):
        eager = net(x)
        assert eager.dtype == torch.bfloat16
        assert torch.equal(torch.compile(net, fullgraph=True)(x), eager)


def test_a_layer_trains() -> None:
    """A step of descent through whatever the dispatch chooses lowers the loss."""
    net, x = model(), image(0)
    before, after = [], []
    for losses in (before, after):
        loss = net(x).float().square().mean()
        losses.append(float(loss))
        for parameter, gradient in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            with torch.no_grad():
                parameter -= 0.1 * gradient
    assert after[0] < before[0]


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tie", ["h", "hv"])
def test_what_runs_was_proven_and_timed(
    monkeypatch: pytest.MonkeyPatch, tie: str, dtype: torch.dtype
) -> None:
    """All three passes, with the numbers of torch's layer; what lost was right too."""
    monkeypatch.delenv(settings.ENV_KNOWN_ANSWERS)
    torch.use_deterministic_algorithms(False)
    verdicts.forget()
    sf.ops.forget_plans()
    conv = sf.SymmetricConv2d(128, 128, 3, padding=1, symmetry=tie).to(DEVICE, dtype)
    x = torch.randn(8, 128, 28, 28, device=DEVICE).to(dtype).requires_grad_()
    try:
        with sf.benchmarking():
            for _ in range(2):
                y = conv(x)
                ours = [y, *torch.autograd.grad(y, [x, conv.weight], torch.ones_like(y))]
        report = sf.explain(conv, x)
    finally:
        torch.use_deterministic_algorithms(True)
    y = torch.nn.functional.conv2d(x, conv.expanded_weight(), conv.bias, padding=1)
    for mine, torchs in zip(ours, [y, *torch.autograd.grad(y, [x, conv.weight], torch.ones_like(y))]):
        error = (mine.double() - torchs.double()).abs().max()
        assert error <= 0.03 * torchs.abs().max().double()
    for one in report.passes:
        assert one.measured is not None
        known = [e.known_answer for e in one.evidence if e.measured is not None]
        assert len(known) > 1
        assert {text for text in known if text} <= {"passed", "not needed (measured on this model)"}
        assert "failed" not in str(one)
