# What is around the CUDA kernels: layouts, alignment, plans that are kept, memory, errors, host time.
"""The kernels are a fake in torch (cuda_fake.py); what the kernels themselves compute is tested by test_cuda.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import cuda_fake
import oracle
import pytest
import torch
from cuda_fake import LAST, PLAIN
from oracle import Case

import symconv_fast as sf
from symconv_fast import ops
from symconv_fast.activation import ACTIVATIONS
from symconv_fast.backends.cuda import families, native, run
from symconv_fast.problem import OPS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def fake() -> Iterator[cuda_fake.Fake]:
    with cuda_fake.fake_family() as module:
        yield module


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

            def watch(call: families.Request, wrapped: Any = wrapped, seen: Any = seen) -> Any:
                seen.append(call.strides)
                return wrapped(call)

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
