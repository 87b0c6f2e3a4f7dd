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


# What Python's layers check first, and the library by itself: arguments of each operator, and what is said of them.
ODD = """
import torch
torch.ops.load_library({library!r})
ops = torch.ops.symconv_fast

def layer(ties=(1, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1), more=(0, 0), transposed=False, groups=1):
    return [*ties], [*stride], [*padding], [*dilation], [*more], transposed, groups, False

def said(name, call):
    try:
        print(name, "|", call())
    except Exception as error:
        print(name, "|", type(error).__name__, str(error).splitlines()[0])

x, w, b = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.arange(6.0)
gy = torch.ones(1, 6, 3, 3)
said("channels", lambda: ops.fprop(x[:, :1], w, b, *layer()))
said("dims", lambda: ops.fprop(x[0], w, b, *layer()))
said("rows", lambda: ops.fprop(x, w[:2], b, *layer()))
said("groups", lambda: ops.fprop(x, w, b, *layer(groups=2)))
said("ties", lambda: ops.fprop(x, w, b, *layer(ties=(4, 3))))
said("type", lambda: ops.fprop(x.int(), w.int(), None, *layer()))
said("stride", lambda: ops.fprop(x, w, b, *layer(stride=(0, 1))))
said("far", lambda: ops.fprop(x, w, b, *layer(padding=(0, 16385))))
said("small", lambda: ops.fprop(x[:, :, :2], w, b, *layer()))
up = torch.ones(2, 3, 3, 3)
said("added", lambda: ops.fprop(x, up, b, *layer(more=(1, 0), transposed=True)))
said("upstream", lambda: ops.dgrad(gy[:, :, :2], w, [1, 2, 5, 5], *layer()))
said("upstream of the weight", lambda: ops.wgrad(gy[:, :4], x, [3, 2, 3, 3], *layer()))
said("tables", lambda: ops.fprop(x, w, b, *layer(ties=(-8, 0, 0, 2, 2, 1, 0, 0, 1, 3))))
said("no image", lambda: tuple(ops.fprop(x[:0], w, b, *layer()).shape))
said("no channel", lambda: ops.fprop(x[:, :0], w[:, :0], b, *layer())[0, :, 0, 0].tolist())
said("up", lambda: tuple(ops.fprop(x, up, b, *layer(stride=(2, 2), more=(1, 0), transposed=True)).shape))
passes = (
    lambda: ops.fprop(x, w, b, *layer()),
    lambda: ops.dgrad(gy, w, [1, 2, 5, 5], *layer()),
    lambda: ops.wgrad(gy, x, [3, 2, 3, 3], *layer()),
)
said("sums", lambda: [float(run().sum()) for run in passes])
"""
SAID = {
    "channels": "ValueError expected input of 4 dims with 2 channels, got shape [1, 1, 5, 5]",
    "dims": "ValueError expected input of 4 dims with 2 channels, got shape [2, 5, 5]",
    "rows": "ValueError symmetry needs 3 rows of weight, got weight of shape [2, 2, 3, 3]",
    "groups": "ValueError ties [1, 3] do not fit 2 dims and groups=2",
    "ties": "ValueError ties [4, 3] do not fit 2 dims and groups=1",
    "type": "TypeError dtype Int is not supported; supported dtypes: float16, bfloat16, float32, float64",
    "stride": "ValueError stride=[0, 1] must be 2 values from 1 to 16384",
    "far": "ValueError padding=[0, 16385] must be 2 values from 0 to 16384",
    "small": "ValueError input of shape [1, 2, 2, 5] is too small for weight of shape [3, 2, 3, 3]",
    "added": "ValueError output_padding=[1, 0] must be smaller than stride or dilation",
    "upstream": "ValueError expected grad_output of shape [1, 6, 3, 3], got [1, 6, 2, 3]",
    "upstream of the weight": "ValueError expected grad_output of shape [1, 6, 3, 3], got [1, 4, 3, 3]",
    "tables": "NotImplementedError no kernel runs this layer: its ties are not well formed; export",
    "no image": "(0, 6, 3, 3)",
    "no channel": "[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]",
    "up": "(1, 6, 12, 11)",
    "sums": "[1107.0, 972.0, 972.0]",
}


def test_without_python_the_library_checks_what_it_is_given() -> None:
    """The first of the tensors that do not fit is named, and nothing is read past them."""
    code = ODD.replace("{library!r}", repr(str(LIBRARY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert found.keys() == SAID.keys()
    for name, text in found.items():
        assert text.startswith(SAID[name]), name


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
