"""ONNX from both exporters, in onnxruntime; programs that are loaded without the package; what keeps the operator."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import symconv_fast as sf
from symconv_fast import export, ops
from symconv_fast import functional as SF

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters have many

LAYERS = {
    "1d": lambda: (sf.SymmetricConv1d(4, 8, 3, padding=1, symmetry="h"), (2, 4, 9)),
    "mixture": lambda: (sf.SymmetricConv2d(4, 16, 3, padding=1, symmetry={"h": 4, "v": 2, "hv": 8}), (2, 4, 6, 7)),
    "groups, shared bias": lambda: (
        sf.SymmetricConv2d(4, 16, 3, 2, groups=2, symmetry={"h": 4, "hv": 8}, share_bias=True), (2, 4, 9, 8),
    ),
    "depthwise": lambda: (sf.SymmetricConv2d(8, 8, 3, groups=4, symmetry="h", bias=False), (2, 8, 5, 5)),
    "3d": lambda: (sf.SymmetricConv3d(2, 16, 3, dilation=2, symmetry="hvz"), (2, 2, 5, 6, 7)),
    "transposed 1d": lambda: (sf.SymmetricConvTranspose1d(4, 8, 3, stride=2, symmetry="h"), (2, 4, 5)),
    "transposed 2d": lambda: (
        sf.SymmetricConvTranspose2d(4, 8, 3, 2, output_padding=1, groups=2, symmetry={"h": 4}, share_bias=True),
        (2, 4, 5, 4),
    ),
    "transposed 3d": lambda: (sf.SymmetricConvTranspose3d(2, 8, 3, symmetry="hvz", bias=False), (2, 2, 4, 5, 4)),
}  # fmt: skip


class Activated(nn.Module):
    """The function, with an activation and an unbatched input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SF.symmetric_conv2d(x[0], self.weight, padding="same", symmetry="hv", activation="silu")


def run_onnx(model: bytes, x: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


def to_onnx(model: nn.Module | torch.export.ExportedProgram, x: torch.Tensor, **options) -> bytes:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    buffer = io.BytesIO()
    program = torch.onnx.export(model, (x,), verbose=False, **options)
    program.save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_with_any_batch_and_size(name: str) -> None:
    layer, shape = LAYERS[name]()
    dims = {d: torch.export.Dim.DYNAMIC for d in range(len(shape)) if d != 1}
    model = to_onnx(layer.eval(), torch.randn(shape), dynamic_shapes=(dims,))
    for extra in (0, 3):
        x = torch.randn(shape[0] + extra, shape[1], *(size + extra for size in shape[2:]))
        torch.testing.assert_close(run_onnx(model, x), layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_program_that_was_exported_before() -> None:
    """It holds our operator, which the exporter takes apart with the table."""
    net, x = nn.Sequential(LAYERS["mixture"]()[0], nn.ReLU()).eval(), torch.randn(2, 4, 6, 7)
    program = torch.export.export(net, (x,))
    assert any(node.target is ops.fprop for node in program.graph.nodes)
    torch.testing.assert_close(run_onnx(to_onnx(program, x), x), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_function_with_an_activation() -> None:
    net, x = Activated(), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(run_onnx(to_onnx(net, x), x), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_from_the_torchscript_exporter(name: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    layer, shape = LAYERS[name]()
    x, buffer = torch.randn(shape), io.BytesIO()
    torch.onnx.export(layer.eval(), (x,), buffer, dynamo=False)
    torch.testing.assert_close(run_onnx(buffer.getvalue(), x), layer(x).detach(), rtol=1e-4, atol=1e-5)


# --- the decompositions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_program_can_be_taken_apart(name: str) -> None:
    """Without any exporter: torch's operators are left, and the reduced weight."""
    layer, shape = LAYERS[name]()
    x = torch.randn(shape)
    program = torch.export.export(layer, (x,)).run_decompositions(export.DECOMPOSITIONS)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("convolution" in target for target in targets)
    assert not any("symconv_fast" in target for target in targets)
    assert program.state_dict["weight"].shape == layer.weight.shape
    torch.testing.assert_close(program.module()(x), layer(x))


def test_activations_are_taken_apart_too() -> None:
    x, w = torch.randn(1, 4, 6, 6), torch.randn(2, 4, 3, 3)
    static = ([3, 2], [1, 1], [0, 0], [1, 1], [0, 0], False, 1, False)
    for name in ("relu", "silu", "gelu"):
        expected = ops.fprop_activated(x, w, None, name, *static)
        torch.testing.assert_close(
            export.DECOMPOSITIONS[ops.fprop_activated](x, w, None, name, *static), expected
        )


def test_compilers_leave_the_operator_whole() -> None:
    for table in (select_decomp_table(), torch.export.default_decompositions()):
        assert not {ops.fprop, ops.fprop_activated} & set(table)


@pytest.mark.parametrize("continuous_integration", [False, True])
def test_inductor_calls_the_operator(continuous_integration: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI in the environment, inductor is strict about operators that have a decomposition."""
    if continuous_integration:
        monkeypatch.setenv("CI", "true")
    else:
        monkeypatch.delenv("CI", raising=False)
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    layer, x = LAYERS["mixture"]()[0], torch.randn(2, 4, 6, 7)
    with torch.no_grad():
        _, (code, *_) = run_and_get_code(torch.compile(layer), x)
    assert "symconv_fast.fprop" in code
    assert "convolution" not in code


def test_fake_tensors_of_symbolic_size_have_our_strides() -> None:
    """Not those of the decomposition: torch's own 3-D convolution of float64 is contiguous for any layout."""
    layer = sf.SymmetricConv3d(2, 8, 3, symmetry="h", dtype=torch.float64)
    x = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64).to(memory_format=torch.channels_last_3d)
    real = layer(x)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(x)  # with symbols for its sizes
        assert isinstance(fake.shape[2], torch.SymInt)
        y = layer(fake)
    assert [int(s) for s in y.shape] == list(real.shape)
    assert [int(s) for s in y.stride()] == list(real.stride())


# --- where the package is not ----------------------------------------------------------------------------------------

LOADS = """
import sys
import torch
x = torch.load("x.pt")
assert "symconv_fast" not in sys.modules
def attempt(name, load):
    try:
        y = load()(x)
    except Exception as error:
        print(name, "says", "symconv_fast" in str(error), type(error).__name__)
    else:
        print(name, torch.allclose(y, torch.load("y.pt"), atol=1e-5))
for name in ("whole", "apart", "plain"):
    attempt("program " + name, lambda: torch.export.load(f"{name}.pt2").module())
    attempt("trace " + name, lambda: torch.jit.load(f"{name}.ts"))
import symconv_fast
attempt("program imported", lambda: torch.export.load("whole.pt2").module())
attempt("trace imported", lambda: torch.jit.load("whole.ts"))
"""


def test_programs_where_the_package_is_not_imported(tmp_path: Path) -> None:
    """Those with our operator name it; those without it load: docs/saving.md."""
    net, x = nn.Sequential(LAYERS["mixture"]()[0], nn.ReLU()).eval(), torch.randn(2, 4, 6, 7)
    with torch.no_grad():
        torch.save(x, tmp_path / "x.pt")
        torch.save(net(x), tmp_path / "y.pt")
        program, plain = torch.export.export(net, (x,)), sf.to_torch(net)
        torch.export.save(program, tmp_path / "whole.pt2")
        torch.export.save(program.run_decompositions(export.DECOMPOSITIONS), tmp_path / "apart.pt2")
        torch.export.save(torch.export.export(plain, (x,)), tmp_path / "plain.pt2")
        for name, model in (("whole", net), ("plain", plain)):
            torch.jit.trace(model, x).save(str(tmp_path / f"{name}.ts"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "program whole says False RuntimeError",  # the warning above it says so
        "trace whole says True RuntimeError",
        "program apart True",
        "trace apart says False ValueError",
        "program plain True",
        "trace plain True",
        "program imported True",
        "trace imported True",
    ]
    assert "failed to resolve torch.ops.symconv_fast.fprop" in done.stderr
