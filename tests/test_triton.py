# The Triton backend without a GPU: numbers from the interpreter, offsets from the compiler, plans and choice.
"""What runs on the kernels themselves is in triton_grid.py, a process of its own with TRITON_INTERPRET=1."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace

import background
import pytest
import torch
from triton_problems import PROBLEMS, problem

from symconv_fast import binding, dispatch
from symconv_fast.problem import OPERANDS, OPS, Problem

triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton_grid  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from symconv_fast.backends import gpu_cost  # noqa: E402
from symconv_fast.backends.triton import (  # noqa: E402
    backend,
    configs,
    interpreted,
    kernels,
    launch,
    letters,
    model,
    run,
)
from symconv_fast.backends.triton.launch import Launch  # noqa: E402

ALGORITHMS = ("fold", "direct")


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = background.environment(**environment)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def interpreted_checks(pytestconfig: pytest.Config) -> dict[str, str]:
    """Title and verdict of every check that ran under the interpreter, meanwhile (conftest.py)."""
    return background.results(pytestconfig)


def test_interpreted_kernels_equal_the_oracle(interpreted_checks: dict[str, str]) -> None:
    """All geometries, ties, dtypes, passes and algorithms; determinism, tiles, activations, overflow."""
    right = ("ok", "skipped: ")
    wrong = {title: verdict for title, verdict in interpreted_checks.items() if not verdict.startswith(right)}
    assert not wrong, "\n".join(f"{title}: {verdict}" for title, verdict in wrong.items())


@pytest.mark.parametrize("name", triton_grid.problems())
def test_every_problem_was_interpreted(interpreted_checks: dict[str, str], name: str) -> None:
    """All three passes of it; what is too expensive is listed as skipped."""
    left_out = interpreted_checks.get(f"every pass, {name}", "")
    if left_out.startswith("skipped: "):
        pytest.skip(f"too expensive in the interpreter: {left_out.removeprefix('skipped: ')}")
    for op in OPS:
        assert any(title.endswith(f", {op}, {name}") and v == "ok" for title, v in interpreted_checks.items())


def test_all_seven_ties_meet_in_both_layouts() -> None:
    """Of all problems those are the easiest to lose to their cost."""
    kept = [case for case in triton_grid.problems().values() if triton_grid.why_not(case) is None]
    layouts = {case.result_last for case in kept if {mask for mask, _ in case.ties} >= set(range(1, 8))}
    assert layouts == {False, True}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_every_dtype_and_pass_was_interpreted(
    interpreted_checks: dict[str, str], op: str, dtype: str
) -> None:
    for algorithm in ALGORITHMS:
        assert sum(title.startswith(f"{algorithm}, {dtype}, {op}, ") for title in interpreted_checks) >= 3


# --- plans ---------------------------------------------------------------------------------------------------------


def launches() -> dict[str, Launch]:
    """Every launch of the problems, by title."""
    found = {}
    for name, p in PROBLEMS.items():
        for op in OPS:
            for algorithm in ALGORITHMS:
                if (algorithm == "fold" and name == "depthwise") or letters.refusal(p, algorithm):
                    continue
                plan = launch.plan(p, op, algorithm)
                for i, step in enumerate(plan.launches):
                    found[f"{name}, {op}, {algorithm}, {i} {step.kernel}"] = step
    return found


def test_plans_name_every_parameter_once() -> None:
    for title, step in launches().items():
        given = [*step.pointers, *step.scalars, *step.constants]
        assert sorted(given) == sorted(step.names), title
        assert list(step.signature) == list(step.names), title
        assert all(v == "constexpr" for n, v in step.signature.items() if n in step.constexprs), title
        assert 0 < step.grid < 2**31, title


def test_every_kernel_is_planned() -> None:
    assert {step.kernel for step in launches().values()} == set(kernels.__all__)


def test_members_of_an_orbit_need_no_launches_of_their_own() -> None:
    """A mixed layer: at most one launch for each number of tied axes beside the fold of the weights."""
    mixed = PROBLEMS["mixed"]
    assert len(launch.plan(mixed, "fprop", "fold").launches) <= 1 + 3
    assert len(launch.plan(replace(mixed, batch=1), "fprop", "fold").launches) == 2
    assert len(launch.plan(mixed, "fprop", "direct").launches) == 1
    assert len(launch.plan(mixed, "dgrad", "fold").launches) == 1
    assert len(launch.plan(mixed, "wgrad", "fold").launches) <= 2


def test_positions_beyond_32_bits_are_counted_in_64() -> None:
    large = problem(((1, 2),), channels=2, spatial=(2**16, 2**15), batch=3)
    small = PROBLEMS["h"]
    for op in OPS:
        for algorithm in ALGORITHMS:
            if op == "wgrad":  # counts blocks, of 16 positions at least
                assert math.prod(launch.plan(large, op, algorithm).launches[0].constants["SIZES"]) >= 16
                continue
            assert launch.plan(large, op, algorithm).launches[-1].constants["WIDE"]
            assert not launch.plan(small, op, algorithm).launches[-1].constants["WIDE"]
    assert launch.plan(large, "dgrad", "fold").launches[0].signature["total"] == "i64"


# --- launches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cuda:1", "cuda:0", "cpu"])
def test_kernels_are_launched_on_the_device_of_their_tensors(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Triton launches on the current device, cuda:0 here; the interpreter has none."""
    current, launched, left = ["cuda:0"], [], []

    @contextlib.contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], str(wanted)
        yield
        current[0] = before
        left.append(str(wanted))

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda **arguments: launched.append((grid, current[0], sorted(arguments)))

    step = types.SimpleNamespace(
        function=Kernel(), grid=5, pointers={"x": ("x", torch.float32)}, scalars={"n": 3}, constants={}, warps=4,
        stages=2,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device", device)
    tensors = {"x": types.SimpleNamespace(device=torch.device(where))}
    run.execute(types.SimpleNamespace(buffers=(), launches=(step, step)), tensors)
    on = "cuda:0" if where == "cpu" else where
    assert launched == [((5,), on, ["n", "num_stages", "num_warps", "x"])] * 2
    assert current == ["cuda:0"]
    assert left == ([] if where == "cpu" else [where])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("op", OPS)
def test_a_call_that_was_seen_before_plans_nothing(
    monkeypatch: pytest.MonkeyPatch, op: str, algorithm: str
) -> None:
    """Tensors of the same strides go to the launches of the first call; others, or another switch, are planned for."""
    planned: list[str] = []
    started: list[list[tuple[str, int]]] = []

    def start(step: Launch, tensors: dict[str, torch.Tensor]) -> None:
        started[-1].append((step.kernel, step.grid))
        assert {name for name, _ in step.pointers.values()} <= set(tensors)

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *args, **options: (planned.append(function.__name__), function(*args, **options))[1]

    for module, name in ((launch, "plan"), (launch, "refusal"), (run, "options_for"), (run, "geometry")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(run, "_start", start)
    p = replace(problem(((1, 24),), channels=24, spatial=(6, 7), dtype=torch.float32, batch=2), device="cpu")
    last = torch.channels_last
    shapes = {"x": p.input_shape, "w": p.weight_shape, "y": p.output_shape}
    first, second, _ = (torch.zeros(shapes[name]).to(memory_format=last) for name in OPERANDS[op])
    bias = (torch.zeros(p.out_channels),) if op == "fprop" else ()
    call = binding.bind(backend, p, op, algorithm)

    def run_once(*tensors: torch.Tensor) -> int:
        """How often something was planned."""
        planned.clear()
        started.append([])
        result = call(*tensors, *bias)
        assert (result.shape, result.stride()) == (
            p.result_shape(op), p.empty_result(op, torch.empty(0, device="meta")).stride()
        )  # fmt: skip
        return len(planned)

    assert run_once(first, second) > 0
    assert run_once(first.clone(), second.clone()) == 0
    assert binding.bind(backend, p, op, algorithm) is call
    assert run_once(first.contiguous(), second) > 0
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    assert run_once(first, second) > 0
    monkeypatch.undo()
    assert started[0]
    assert started == [started[0]] * 4


# --- the compiler, as far as it goes without a GPU ------------------------------------------------------------------


@pytest.mark.skipif(interpreted.ACTIVE, reason="TRITON_INTERPRET is set, so nothing can be compiled")
@pytest.mark.parametrize("kernel", kernels.__all__)
def test_offsets_are_64_bits(kernel: str) -> None:
    """No pointer is moved by 32 bits, which would end at 2^31 elements: read off Triton's own intermediate code."""
    step = next(step for step in launches().values() if step.kernel == kernel)
    index = {name: (i,) for i, name in enumerate(step.names)}
    source = ASTSource(step.function, step.signature, {index[n]: v for n, v in step.constexprs.items()})
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"]
    moves = re.findall(r"tt\.addptr .*? : (.*)", code)
    assert len(moves) >= 2
    assert all(re.search(r", (tensor<[\dx]*i64>|i64)( |$)", move) for move in moves), moves


# --- choice --------------------------------------------------------------------------------------------------------


def _wins(p: Problem, op: str = "fprop", algorithm: str = "fold") -> bool:
    ours = model.seconds(p, op, algorithm, "sm_90", "tf32")
    return ours < gpu_cost.expand_seconds(p) + gpu_cost.torch_seconds(p, "sm_90", "tf32")


def test_the_model_leaves_to_torch_what_cannot_pay() -> None:
    """As an H200 has it (docs/gpu.md): quadruples forward and for the input, pairs and weight gradients hardly ever."""
    for op in OPS:
        quadruples = problem(((3, 128),), channels=512, spatial=(28, 28), batch=64)
        assert _wins(quadruples, op) == (op != "wgrad")
        assert not _wins(problem(((0, 256),), channels=256, spatial=(56, 56), batch=256), op)
        stem = problem(((3, 16),), channels=3, spatial=(224, 224), batch=64)
        assert _wins(stem, op) == (op == "fprop")
        few = problem(((1, 4),), channels=64, spatial=(56, 56), batch=256)
        assert _wins(few, op) == (op == "dgrad")  # which fills its tiles with channels
        assert not _wins(problem(((1, 256),), channels=256, dtype=torch.float64, spatial=(56, 56)), op)


def test_all_estimates_on_gpus_have_one_time_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's convolution is one launch, the fold as many as its plan has, copies are as many as they say."""
    p, depthwise = PROBLEMS["h"], PROBLEMS["depthwise"]

    def times() -> list[float]:
        return [
            gpu_cost.torch_seconds(p, "sm_90", "ieee"),
            gpu_cost.torch_seconds(depthwise, "sm_90", "ieee"),
            gpu_cost.copy_seconds(1e9, 3, "sm_90"),
            model.seconds(p, "fprop", "fold", "sm_90", "ieee") / model.MARGIN,
            model.seconds(depthwise, "fprop", "direct", "sm_90", "ieee") / model.MARGIN,
        ]

    before, number = times(), len(launch.plan(p, "fprop", "fold").launches)
    monkeypatch.setattr(gpu_cost, "LAUNCH_SECONDS", 1 + gpu_cost.LAUNCH_SECONDS)
    assert [round(b - a, 9) for a, b in zip(before, times())] == [1, 1, 3, number, 1]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_choice_on_a_gpu_is_the_lower_of_the_two_models(name: str) -> None:
    """What backends estimate there is on one scale: seconds, beside those of torch's convolution."""
    p, reference = PROBLEMS[name], dispatch.load("reference")
    assert reference.torch_seconds(p, "fprop") == gpu_cost.torch_seconds(p, gpu_cost.architecture())
    expanded = reference.estimate(p, "fprop", "expand")
    assert expanded == gpu_cost.expand_seconds(p) + gpu_cost.torch_seconds(p)


@pytest.mark.parametrize(
    ("hip", "allowed", "wanted"),
    [(None, True, "tf32"), (None, False, "ieee"), ("7.0", True, "ieee"), ("7.0", False, "ieee")],
)
def test_float32_is_rounded_only_where_torch_rounds_it(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, allowed: bool, wanted: str
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert gpu_cost.precision() == wanted
    p = replace(PROBLEMS["h"], dtype=torch.float32)
    assert gpu_cost.torch_seconds(p, "gfx942") == gpu_cost.torch_seconds(p, "gfx942", wanted)
    assert gpu_cost.torch_seconds(p, "gfx942", "tf32") < gpu_cost.torch_seconds(p, "gfx942", "ieee")


def test_nothing_is_claimed_without_a_gpu() -> None:
    """Without a GPU the backend gives its reason; with TRITON_INTERPRET=1 it is there, and chosen only if pinned."""
    code = (
        "import torch, symconv_fast as sf; from symconv_fast import dispatch; "
        "layer = sf.SymmetricConv2d(4, 8, 3, symmetry='h'); "
        "print(dispatch.load('triton')); print(sf.explain(layer, torch.zeros(1, 4, 5, 5)).details())"
    )
    plain, active = _python("-c", code, CUDA_VISIBLE_DEVICES=""), _python("-c", code, TRITON_INTERPRET="1")
    assert plain.returncode == 0, plain.stderr
    assert re.search(
        "the triton backend is not available in this installation .*(GPU|without CUDA)", plain.stdout
    )
    assert active.returncode == 0, active.stderr
    assert "triton     fold" in active.stdout
    assert not re.search("triton .* chosen", active.stdout)


def test_import_survives_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; from symconv_fast import dispatch; "
        "print(dispatch.load('triton')); print(sorted(dispatch.available()))"
    )
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "the triton backend is not available" in done.stdout
    assert "'reference'" in done.stdout


def test_tables_are_legal() -> None:
    """Every architecture has tiles for every kernel, tie and type: powers of two of at least 16, or 8 columns."""
    products = {2: ("bfloat16", "float16"), 4: ("tf32", "ieee", "tf32x3"), 8: ("float64",)}
    every, tied = range(4), range(1, 4)
    named = {
        "fprop_fold": every, "fprop_direct": range(1), "dgrad": every, "wgrad": every, "wgrad_both": tied,
        "dgrad_direct": every, "wgrad_direct": every,
    }  # fmt: skip
    none = set()
    for arch in configs.ARCHITECTURES:
        for itemsize, names in products.items():
            for kernel, orders in named.items():
                for order, product, mixed in itertools.product(orders, names, (False, True)):
                    found = configs.tiles(kernel, order, itemsize, arch, product, mixed)
                    for c in found:
                        assert min(c.m, 2 * c.n, c.k) >= 16, (arch, kernel, c)
                        assert all(v & (v - 1) == 0 for v in (c.m, c.n, c.k)), (arch, kernel, c)
                        assert c.warps in (4, 8)
                    if not found:
                        none.add((arch, kernel, order, product))
    assert none == {
        (arch, "fprop_fold", 3, product) for arch in ("sm_80", "sm_90") for product in ("float64", "tf32x3")
    } | {("sm_90", "wgrad_both", 3, "float64")}
