"""The native library without Python: what it links to, and a C++ program that runs an exported model with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import symconv_fast as sf

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")

LIBRARY = Path(sf.__file__).parent / "libsymconv_fast.so"
TORCH = Path(torch.__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_the_library_needs_no_python() -> None:
    symbols = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert any("Dispatcher" in symbol for symbol in symbols)
    assert not [symbol for symbol in symbols if symbol.startswith(("Py", "_Py", "THP"))]


def test_torch_loads_the_library_by_itself() -> None:
    code = f"""
import torch
torch.ops.load_library({str(LIBRARY)!r})
x, w = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3, requires_grad=True)
y = torch.ops.symconv_fast.fprop(x, w, None, [1, 3], [1, 1], [0, 0], [1, 1], [0, 0], False, 1, False)
y.sum().backward()
print(tuple(y.shape), float(y.detach().max()), float(w.grad.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(") ") == ["(1, 6, 3, 3", "18.0 972.0\n"]


class Net(nn.Module):
    """Layers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = sf.SymmetricConv2d(3, 16, 3, 2, padding=1, symmetry={"h": 8, "hv": 8})
        self.depthwise = sf.SymmetricConv2d(16, 16, 5, padding=2, groups=16, symmetry=None)
        self.up = sf.SymmetricConvTranspose2d(16, 8, 3, stride=2, symmetry="v")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.relu(self.depthwise(torch.relu(self.stem(x)))))


@pytest.mark.full
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_program_runs_an_exported_model(tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(2, 3, 16, 15)
    with torch.no_grad():
        expected = net(x)
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(net, (x,)), package_path=str(tmp_path / "net.pt2")
        )
    source, program = Path(__file__).with_name("cpp_program.cpp"), tmp_path / "program"
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    link = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = [str(COMPILER), "-std=c++20", "-O0", *include, str(source), "-o", str(program), *link]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    x.numpy().tofile(tmp_path / "x")
    arguments = [str(LIBRARY), package, str(tmp_path / "x"), str(tmp_path / "y"), *map(str, x.shape)]
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = torch.frombuffer(bytearray((tmp_path / "y").read_bytes()), dtype=torch.float32)
    torch.testing.assert_close(output.view(expected.shape), expected, rtol=1e-4, atol=1e-5)
    assert done.stdout.splitlines() == [
        "[1, 6, 3, 3] 972",
        "expected input of 4 dims with 2 channels, got shape [1, 4, 5, 5]",
    ]
