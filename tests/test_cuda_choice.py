# Where the CUDA backend runs, and what it refuses, estimates and says: choice, devices, module, names of kernels.
"""The native module is a fake (cuda_fake.py); what real planners refuse is in test_cuda.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import cuda_fake
import oracle
import pytest
import torch
from cuda_fake import LAST
from oracle import Case

import symconv_fast as sf
from symconv_fast import dispatch
from symconv_fast.backends import cuda, reference
from symconv_fast.backends.cuda import backend, families, limits, native, run
from symconv_fast.problem import OPS, Problem

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def fake() -> Iterator[cuda_fake.Fake]:
    with cuda_fake.fake_family() as module:
        yield module


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


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({}, "is not the native CUDA module of this version: AttributeError"),
        ({"info": dict}, "is not the native CUDA module of this version: KeyError"),
        ({"info": lambda: {"version": "0.0.1"}}, "is of version 0.0.1"),
        (ImportError("file too short"), "cannot be loaded: file too short"),
        (OSError("undefined symbol"), "is not the native CUDA module of this version: OSError"),
        ({"info": lambda: {"version": sf.__version__}}, ""),
    ],
)
def test_what_is_not_the_module_is_not_used(
    monkeypatch: pytest.MonkeyPatch, what: dict[str, object] | Exception, said: str
) -> None:
    """A file that cannot be loaded, another module, one of another version: layers run without it, and it is said."""
    found: object = what if isinstance(what, Exception) else SimpleNamespace(**what)

    def import_module(name: str) -> object:
        assert name == "symconv_fast._cuda"
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(native, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(native.Path, "glob", lambda folder, name: [native.Path("_cuda.so")])
    native._load.cache_clear()
    loaded = native._load()
    native._load.cache_clear()
    assert loaded is found if not said else str(loaded).startswith(f"_cuda.so {said}")


def test_a_module_with_other_fields_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are newer than a module that was built in place: the choice goes on without it."""

    class Params:
        def __init__(self, **fields: int) -> None:
            raise TypeError("WgradParams: unknown groups")

    case = replace(LAST, channels=16, ties=((1, 8),))
    with cuda_fake.stand_in(SimpleNamespace(ConvParams=Params, WgradParams=Params)):
        said = str(reason(case, BF16, "wgrad", "tile"))
    assert said.startswith(
        "the native CUDA module is not of this version (WgradParams: unknown groups); build it"
    )
