# What is around the CUDA kernels: choice, layouts, alignment, plans that are kept, memory, errors, host time.
"""The kernels are a fake in torch (cuda_fake.py); what the kernels themselves compute is tested by test_cuda.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cases
import cuda_fake
import oracle
import pytest
import torch
from oracle import Case

import symconv_fast as sf
from symconv_fast import dispatch, ops
from symconv_fast.activation import ACTIVATIONS
from symconv_fast.backends import cuda, reference
from symconv_fast.backends.cuda import backend, families, limits, native, run
from symconv_fast.problem import OPS, Problem

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PLAIN = Case(ties=((3, 8),), channels=16, spatial=(6, 7), padding=(1, 1), bias=True)
LAST = replace(PLAIN, layouts=("channels_last",) * 3, result_last=True)


@pytest.fixture
def fake() -> Iterator[cuda_fake.Fake]:
    with cuda_fake.fake_family() as module:
        yield module


def algorithm_of(op: str) -> str:
    return "tile" if op != "fprop" else "patch"


# --- layouts -------------------------------------------------------------------------------------------------------

ROOMY = {
    name: case
    for name, case in cases.SPECIAL.items()
    if not case.transposed and oracle.problem_of(case, BF16, "fprop").macs_dense < 3e5
}


@pytest.mark.parametrize("layout", [families.CHANNELS_LAST, families.AS_IT_IS])
@pytest.mark.parametrize("name", ROOMY)
def test_kernels_find_every_tensor_where_the_planner_says(layout: str, name: str) -> None:
    with cuda_fake.fake_family(layout):
        for op in OPS:
            oracle.check(ROOMY[name], BF16, op, "cuda", "depthwise")


@pytest.mark.parametrize(
    "layouts", [(first, second) for first in oracle.LAYOUTS for second in oracle.LAYOUTS]
)
@pytest.mark.parametrize("result_last", [False, True])
def test_what_kernels_are_given_is_as_their_family_wants_it(layouts: Any, result_last: bool) -> None:
    """Channels innermost and multiples of 16 bytes; or dense, both in one layout."""
    first, second = layouts
    case = replace(PLAIN, layouts=(second, "contiguous", first), result_last=result_last)
    for layout in (families.CHANNELS_LAST, families.AS_IT_IS):
        with cuda_fake.fake_family(layout) as module:
            seen = []
            wrapped = module.planner.parameters

            def watch(
                problem: Any, op: str, strides: Any, *more: Any, wrapped: Any = wrapped, seen: Any = seen
            ) -> Any:
                seen.append(strides)
                return wrapped(problem, op, strides, *more)

            module.planner.parameters = watch  # type: ignore[method-assign]
            for op in ("dgrad", "wgrad"):
                oracle.check(case, BF16, op, "cuda", "tile")
            assert len(seen) == 2
            for strides in seen:
                x, y = strides["x"], strides["y"]
                if layout == families.CHANNELS_LAST:
                    assert x[1] == y[1] == 1
                    assert all(s % 8 == 0 for s in (x[0], *x[2:], y[0], *y[2:]))
                else:
                    assert (x[1] == 1) == (y[1] == 1) == (first == "channels_last")


def test_a_slice_that_fits_is_not_copied(fake: cuda_fake.Fake) -> None:
    """Channels 8 to 23 of 32 are read where they lie."""
    wide = torch.randn(2, 6, 7, 32).bfloat16().movedim(-1, 1)
    x = wide[:, 8:24]
    w = torch.randn(8, 16, 3, 3).bfloat16()
    with sf.backend("cuda", "tile"):
        y = ops.fprop(x, w, None, *LAST.static)
    assert fake.launches[0][0] == x.data_ptr()
    assert fake.launches[0][3] == y.data_ptr()
    # 4 to 19 do not start at 16 bytes: copied, and right all the same.
    x = wide[:, 4:20]
    with sf.backend("cuda", "tile"):
        y = ops.fprop(x, w, None, *LAST.static)
    assert fake.launches[1][0] != x.data_ptr()
    expected = oracle.convolve(LAST, x.double(), oracle.expand(w.double(), LAST), None)
    torch.testing.assert_close(y.double(), expected, atol=0.3, rtol=1e-2)


def test_pixels_that_do_not_start_at_16_bytes_are_copied(fake: cuda_fake.Fake) -> None:
    wide = torch.randn(2, 6, 7, 20).bfloat16().movedim(-1, 1)
    w = torch.randn(8, 16, 3, 3).bfloat16()
    problem = oracle.problem_of(LAST, BF16, "fprop")
    run.bind(problem, "fprop", "tile")(wide[:, :16], w)
    run.bind(problem, "fprop", "tile")(torch.cat([wide[:, :16]] * 2, 1)[:, :16], w)
    assert fake.launches[0][0] != wide.data_ptr()


def test_a_bias_of_one_value_is_written_out(fake: cuda_fake.Fake) -> None:
    t = oracle.make_tensors(LAST, BF16)
    x, w = t.x.to(BF16), t.w.to(BF16)
    run_bias = run.bind(oracle.problem_of(LAST, BF16, "fprop"), "fprop", "tile")
    with_one = run_bias(x, w, torch.tensor(2.0, dtype=BF16).expand(32))
    torch.testing.assert_close(with_one, run_bias(x, w, torch.full((32,), 2.0, dtype=BF16)), atol=0, rtol=0)


def test_axes_of_one_element_have_the_strides_of_a_dense_tensor() -> None:
    """Theirs may be anything; kernels that compute with them must not."""
    x = torch.zeros(1000).as_strided((4, 1, 1, 5, 1), (100, 77, 99, 20, 7))
    assert run._plain(x, 1) == (100, 1, 100, 20, 1)
    assert run._plain(torch.zeros(1, 8, 1, 5, 1), -1) == (40, 5, 5, 1, 1)
    assert run._plain(torch.zeros(1, 5, 1, 1, 8).movedim(-1, 1).transpose(2, 3), 1) == (40, 1, 40, 8, 8)


@pytest.mark.parametrize("which", ["x", "w", "b", "gy"])
def test_every_address_is_a_multiple_of_16_bytes(fake: cuda_fake.Fake, which: str) -> None:
    t = oracle.make_tensors(LAST, BF16)
    given = {"x": t.x, "w": t.w, "b": t.b, "gy": t.gy}

    def place(name: str) -> torch.Tensor:
        values = given[name]
        assert values is not None
        memory = torch.empty(values.numel() + 8, dtype=BF16)
        shift = 1 if name == which else 0
        inner = values.movedim(1, -1) if values.dim() > 2 and name != "w" else values
        inside = memory[shift : shift + values.numel()].view(inner.shape).copy_(inner)
        assert inside.data_ptr() % 16 == 2 * shift
        return inside.movedim(-1, 1) if inner is not values else inside

    x, w, b, gy = map(place, given)
    answer = oracle.expected(LAST, BF16)
    with sf.backend("cuda", "tile"):
        results = {
            "fprop": ops.fprop(x, w, b, *LAST.static),
            "dgrad": ops.dgrad(gy, w, list(LAST.input_shape), *LAST.static),
            "wgrad": ops.wgrad(gy, x, list(LAST.weight_shape), *LAST.static),
        }
    for op, result in results.items():
        torch.testing.assert_close(result.double(), answer[op].to(BF16).double(), atol=0, rtol=0)
    assert not any(place % 16 for places in fake.launches for place in places[:5])


# --- plans ---------------------------------------------------------------------------------------------------------


def run_once(
    case: Case, dtype: torch.dtype, op: str = "fprop", activation: str | None = None
) -> torch.Tensor:
    problem = oracle.problem_of(case, dtype, op)
    t = oracle.make_tensors(case, dtype)
    x, w, gy = (oracle.arrange(v, layout, dtype) for v, layout in zip((t.x, t.w, t.gy), case.layouts))
    b = None if t.b is None else t.b.to(dtype)
    tensors = {"fprop": (x, w, b), "dgrad": (gy, w), "wgrad": (gy, x)}[op]
    return run.bind(problem, op, "tile", activation)(*tensors)


def test_a_plan_is_made_once_for_each_kind_of_tensors(fake: cuda_fake.Fake) -> None:
    for _ in range(3):
        run_once(LAST, BF16)
    assert (fake.plans, len(fake.launches)) == (1, 3)
    run_once(replace(LAST, bias=False), BF16)  # without its bias
    run_once(LAST, FP16)  # another type
    run_once(LAST, BF16, "dgrad")
    run_once(LAST, BF16, activation="relu")
    run_once(replace(LAST, layouts=("channels_last", "transposed", "contiguous")), BF16)  # other strides
    assert fake.plans == 6
    for op in ("fprop", "dgrad"):
        run_once(LAST, BF16, op)
    assert fake.plans == 6


def test_plans_follow_the_switch_of_tf32(fake: cuda_fake.Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that was planned while TF32 was allowed is never multiplied in it afterwards."""
    run_once(LAST, FP32)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with pytest.raises(RuntimeError, match=r"TF32.*does not allow"):
        run_once(LAST, FP32)
    run_once(LAST, BF16)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run_once(LAST, FP32)
    assert fake.plans == 2


def test_plans_of_many_strides_do_not_pile_up(fake: cuda_fake.Fake) -> None:
    call = run.bind(oracle.problem_of(LAST, BF16, "fprop"), "fprop", "tile")
    w = torch.randn(8, 16, 3, 3).bfloat16()
    for wide in range(16, 16 + 8 * 2 * run._MAX_PLANS, 8):
        call(torch.zeros(2, 6, 7, wide, dtype=BF16)[..., :16].movedim(-1, 1), w)
    assert len(call.plans) <= run._MAX_PLANS


def test_working_memory_is_asked_for_and_aligned(fake: cuda_fake.Fake) -> None:
    fake.work = 1000
    run_once(LAST, BF16)
    assert fake.launches[0][4] > 0
    assert fake.launches[0][4] % 16 == 0
    assert [size for _, size, writable in fake.buffers if writable][1] == 1000
    assert [writable for *_, writable in fake.buffers] == [False, False, False, True, True]


def test_nothing_but_the_tensors_is_told_to_the_stand_in(fake: cuda_fake.Fake) -> None:
    run_once(LAST, BF16, "wgrad")
    sizes = [size for _, size, _ in fake.buffers]
    numbers = [torch.Size(s).numel() for s in (LAST.output_shape, LAST.input_shape, LAST.weight_shape)]
    assert sizes == [2 * n for n in numbers]


# --- activations, autograd, errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_come_before_the_rounding(fake: cuda_fake.Fake, name: str) -> None:
    t = oracle.make_tensors(LAST, BF16)
    assert t.b is not None
    x, w, b = (values.to(BF16) for values in (t.x, t.w, t.b))
    with sf.backend("cuda", "tile"):
        y = ops.fprop_activated(x, w, b, name, *LAST.static)
    assert len(fake.launches) == 1
    assert torch.equal(y, ACTIVATIONS[name][0](oracle.expected(LAST, BF16)["fprop"]).to(BF16))


def test_gradients_through_a_layer(fake: cuda_fake.Fake) -> None:
    layer = sf.SymmetricConv2d(16, 32, 3, padding=1, symmetry="hv")
    x = torch.randn(2, 16, 6, 7, requires_grad=True)
    grads = []
    for name in ("cuda", "reference"):
        with sf.backend(name):
            grads.append(torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()]))
    assert len(fake.launches) == 3
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_errors_of_the_module_name_problem_and_way_out(fake: cuda_fake.Fake) -> None:
    fake.error = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError) as caught:
        run_once(LAST, BF16, "dgrad")
    for part in ("cuda/tile, dgrad", fake.error, "in_channels=16", "SYMCONV_FAST_BACKEND=triton"):
        assert part in str(caught.value)
    fake.error, fake.wrong = "", "channels must be positive"
    with pytest.raises(RuntimeError, match="channels must be positive"):
        run_once(LAST, BF16, "wgrad")


# --- choice --------------------------------------------------------------------------------------------------------


def reason(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> str | None:
    return backend.can_run(oracle.problem_of(case, dtype, op), op, algorithm)


def test_refusals_before_a_family_is_asked(fake: cuda_fake.Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    transposed = replace(LAST, transposed=True)
    for op in OPS:
        assert reason(LAST, BF16, op, "tile") is None
        assert reason(transposed, BF16, op, "tile") == "a transposed layer runs on the Triton backend"
        assert reason(LAST, torch.float64, op, "tile") == "it has no kernels in float64"
        assert reason(LAST, FP32, op, "tile") is None
    for op in ("dgrad", "wgrad"):
        assert reason(LAST, BF16, op, "patch") == "it has the passes fprop alone"
    assert reason(LAST, BF16, "wgrad", "hopper") == "it has the passes fprop, dgrad alone"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "does not allow" in str(reason(LAST, FP32, "fprop", "tile"))
    assert reason(LAST, FP32, "fprop", "depthwise") is None
    monkeypatch.setattr(limits, "STAND_IN", replace(limits.STAND_IN, arch="sm_75", capability=(7, 5)))
    assert reason(LAST, BF16, "fprop", "tile") == "the GPU is older than compute capability 8.0"


def test_a_family_that_was_not_built_is_refused(fake: cuda_fake.Fake) -> None:
    fake.PatchParams = None  # type: ignore[assignment]
    assert "was built without these kernels" in str(reason(LAST, BF16, "fprop", "patch"))
    assert reason(LAST, BF16, "fprop", "tile") is None


def test_what_a_family_refuses_is_said(fake: cuda_fake.Fake) -> None:
    fake.planner.refuses = "of its own"
    problem = oracle.problem_of(LAST, BF16, "fprop")
    assert reason(LAST, BF16, "fprop", "tile") == "of its own"
    with pytest.raises(RuntimeError, match="of its own"):
        run.bind(problem, "fprop", "tile")(
            torch.zeros(LAST.input_shape).bfloat16(), torch.zeros(LAST.weight_shape)
        )


@pytest.mark.parametrize(
    ("built", "capability", "covered"),
    [
        ("8.0;9.0a;10.0+PTX", (8, 0), True),
        ("8.0;9.0a;10.0+PTX", (8, 9), True),
        ("8.0;9.0a;10.0+PTX", (9, 0), True),
        ("8.0;9.0a;10.0+PTX", (10, 3), True),
        ("8.0;9.0a;10.0+PTX", (12, 0), True),
        ("8.0 9.0a", (10, 0), False),
        ("8.6", (8, 0), False),
        ("9.0a", (8, 0), False),
        ("10.0a", (10, 3), False),
        ("8.0+PTX", (9, 0), True),
        ("", (9, 0), False),
    ],
)
def test_a_module_runs_where_it_was_built_for(built: str, capability: tuple[int, int], covered: bool) -> None:
    assert native.covers(built, capability) == covered


def test_without_a_gpu_there_is_one_line_more(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = sf.SymmetricConv2d(4, 8, 3, symmetry="h"), torch.zeros(1, 4, 5, 5)
    found = [c for c in sf.explain(layer, x).passes[0].candidates if c.backend == "cuda"]
    if torch.cuda.is_available():
        assert [c.reason for c in found] == ["the tensors are on the CPU"]
    else:
        assert len(found) == 1
        assert "is not available in this installation" in str(found[0].reason)
    with sf.backend("cuda"), pytest.raises(RuntimeError, match=r"backend\(\) pins backend='cuda'"):
        layer(x)


def test_devices_are_told_apart() -> None:
    assert cuda.misplaced("cuda") is None
    assert cuda.misplaced("cpu") == "the tensors are on the CPU"
    assert cuda.misplaced("xpu") == "the tensors are on xpu, not on a CUDA GPU"


@pytest.mark.parametrize(
    ("capability", "reported", "shared"),
    [
        ((9, 0), 232448, 232448),
        ((9, 0), None, 227 << 10),
        ((8, 9), None, 99 << 10),
        ((8, 0), None, 163 << 10),
    ],
)
def test_limits_are_those_of_the_device(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reported: int | None, shared: int
) -> None:
    """As torch reports them; shared memory by the programming guide where it does not."""
    found = SimpleNamespace(major=capability[0], minor=capability[1], multi_processor_count=132)
    if reported is not None:
        found.shared_memory_per_block_optin = reported
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: asked.append(index) or found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    limits._limits.cache_clear()
    arch = "sm_{}{}".format(*capability)
    assert limits.of() == limits.of(3) == limits.Limits(arch, capability, shared, 132, False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert limits.of(1).tf32
    assert asked == [3, 1]
    limits._limits.cache_clear()


def test_a_module_without_code_for_the_device_is_said(
    fake: cuda_fake.Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, and the package works without it."""
    device, problem = limits.STAND_IN, oracle.problem_of(LAST, BF16, "fprop")
    monkeypatch.setattr(fake, "info", lambda: {"architectures": "8.0"}, raising=False)
    monkeypatch.setattr(native, "_load", lambda: fake)
    monkeypatch.setattr(native, "STAND_IN", None)
    for arch, capability in (("sm_80", (8, 0)), ("sm_89", (8, 9))):
        assert (
            families.refusal(problem, "fprop", "tile", replace(device, arch=arch, capability=capability))
            is None
        )
    reason = families.refusal(problem, "fprop", "tile", device)
    assert reason is not None
    assert reason.startswith("the native CUDA module was not built for sm_90; build it")
    assert native.architectures() == "8.0"


def test_a_missing_module_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "the native CUDA module was not built")
    with pytest.raises(ImportError, match=r"was not built; build it"):
        cuda.load()


def test_kernels_have_names(fake: cuda_fake.Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = oracle.problem_of(LAST, BF16, "fprop")
    assert backend.kernels(problem, "fprop", "tile") == ("conv of fprop",)
    assert backend.kernels(problem, "wgrad", "tile") == ("wgrad of wgrad",)
    assert backend.config(problem, "fprop", "tile") == "conv of fprop"
    assert cuda.listing() == (("conv of fprop", "sm_80 and up"), ("hopper of fprop", "sm_90a"))
    monkeypatch.setattr(native, "STAND_IN", None)
    monkeypatch.setattr(native, "_load", lambda: "it is not there")
    assert cuda.listing() == ()
    assert native.architectures() is None


# Ratios to cuDNN that an H200 measured (docs/halo.md), filters expanded beforehand.
MEASURED = {(64, 512, 28, 1): 1.43, (64, 512, 28, 3): 2.20, (64, 256, 56, 1): 1.59, (256, 256, 14, 3): 1.78}


@pytest.mark.parametrize(("images", "channels", "size", "mask"), MEASURED)
def test_estimates_keep_to_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, images: int, channels: int, size: int, mask: int
) -> None:
    """Of Hopper's kernels against the reference, within a third: its expansion and our margin are in the estimates."""
    h200 = limits.Limits("sm_90", (9, 0), 232448, 132, True)
    monkeypatch.setattr(limits, "of", lambda device=None: h200)
    static = ([mask, channels >> mask.bit_count()], *[(1, 1)] * 3, (0, 0), False, 1, True)
    weight = (channels >> mask.bit_count(), channels, 3, 3)
    problem = Problem.create(((images, channels, size, size), weight), static, True, BF16, "cuda")
    ratio = reference.estimate(problem, "fprop", "expand") / backend.estimate(problem, "fprop", "hopper")
    assert 0.75 < ratio / MEASURED[images, channels, size, mask] < 1.33
    copied = replace(problem, input_channels_last=False, channels_last=False)
    assert backend.estimate(copied, "fprop", "hopper") > 1.2 * backend.estimate(problem, "fprop", "hopper")


def test_nothing_goes_to_the_stand_in_unasked(fake: cuda_fake.Fake) -> None:
    choice = dispatch.choose(oracle.problem_of(LAST, BF16, "fprop"), "fprop")
    assert choice.backend.NAME != "cuda"


# --- host time -----------------------------------------------------------------------------------------------------


def test_a_warm_launch_takes_microseconds(fake: cuda_fake.Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the host, all but the native call: the best of many, since others use the machine too."""
    problem = oracle.problem_of(LAST, BF16, "fprop")
    call = run.bind(problem, "fprop", "tile")
    x = torch.zeros(2, 6, 7, 16, dtype=BF16).movedim(-1, 1)
    w, b = torch.zeros(8, 16, 3, 3, dtype=BF16), torch.zeros(32, dtype=BF16)
    fake.work = 1 << 10
    call(x, w, b)
    (key, plan), *_ = call.plans.items()
    call.plans[key] = plan._replace(launch=lambda *places: "")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(native, "observe", lambda *tensors: None)
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(20):
            call(x, w, b)
        best = min(best, (time.perf_counter() - start) / 20)
    assert best < 15e-6, f"{best * 1e6:.1f} us"
