"""Tools that know nn.Conv2d, of torch and of others, on tied layers: the right numbers, or the name of the way out."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.nn.qat as qat
import torch.ao.nn.quantized as quantized
import torch.ao.nn.quantized.reference as quantized_reference
import torch.ao.quantization as quantization
import torch.nn.utils as utils
from torch import nn
from torch.fx.experimental import optimization
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.mkldnn import to_mkldnn

import symconv_fast as sf
from symconv_fast import integrations

pytestmark = pytest.mark.filterwarnings("ignore")  # most of these tools are deprecated, and say so

ROOT = Path(__file__).parents[1]


def model(symmetry: Any = "h", bias: bool = False) -> nn.Sequential:
    """Tied layer, batch norm with statistics of its own, ReLU, in eval mode."""
    norm = nn.BatchNorm2d(8)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2)
    return nn.Sequential(sf.SymmetricConv2d(4, 8, 3, bias=bias, symmetry=symmetry), norm, nn.ReLU()).eval()


def quantize(net: nn.Sequential) -> nn.Module:
    stubs = nn.Sequential(quantization.QuantStub(), *net, quantization.DeQuantStub()).eval()
    stubs.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(stubs)
    prepared(torch.randn(2, 4, 6, 6))
    return quantization.convert(prepared)


def with_qconfig(net: nn.Sequential, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layer = copy.deepcopy(net[0])
    layer.qconfig = quantization.get_default_qat_qconfig("x86")
    return nn.Sequential(convert(layer), *net[1:])


class Mkldnn(nn.Module):
    """A model with layers of oneDNN, between conversions."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = to_mkldnn(net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.to_mkldnn()).to_dense()


def pruned(net: nn.Sequential, amount: float) -> nn.Module:
    prune.l1_unstructured(net[0], "weight", amount=amount)
    return net


def normalised(net: nn.Sequential, how: Callable[..., nn.Module]) -> nn.Module:
    """The weight as direction and norm, which changes no number yet."""
    how(net[0])
    return net


WEIGHT_PARAMS = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 1.0, "zero_point": 0}

TOOLS: dict[str, tuple[Callable[[nn.Sequential], nn.Module], str]] = {
    "fuse_conv_bn_eval": (lambda net: nn.Sequential(utils.fuse_conv_bn_eval(net[0], net[1]), net[2]), "refuses"),
    "fusion.fuse_conv_bn_eval": (
        lambda net: nn.Sequential(utils.fusion.fuse_conv_bn_eval(bn=net[1], conv=net[0]), net[2]), "refuses",
    ),
    "fuse_modules": (lambda net: quantization.fuse_modules(net, [["0", "1", "2"]]), "refuses"),
    "fuse_modules without ReLU": (lambda net: quantization.fuse_modules(net, ["0", "1"]), "refuses"),
    "fuse_modules_qat": (lambda net: quantization.fuse_modules_qat(net.train(), ["0", "1", "2"]), "refuses"),
    "to_mkldnn": (lambda net: Mkldnn(net), "refuses"),
    "eager quantization": (quantize, "refuses"),
    "nn.quantized": (lambda net: with_qconfig(net, quantized.Conv2d.from_float), "refuses"),
    "nn.qat": (lambda net: with_qconfig(net, qat.Conv2d.from_float), "refuses"),
    "nn.quantized.reference": (
        lambda net: with_qconfig(net, lambda layer: quantized_reference.Conv2d.from_float(layer, WEIGHT_PARAMS)),
        "refuses",
    ),
    "jit.script": (torch.jit.script, "refuses"),
    "jit.trace": (lambda net: torch.jit.trace(net, torch.randn(2, 4, 6, 6)), "same"),
    "fx.experimental.optimization.fuse": (optimization.fuse, "same"),
    "quantize_dynamic": (lambda net: quantization.quantize_dynamic(net, {nn.Linear}), "same"),
    "prune": (lambda net: pruned(net, 0.0), "same"),
    "weight_norm": (lambda net: normalised(net, parametrizations.weight_norm), "same"),
    "old weight_norm": (lambda net: normalised(net, utils.weight_norm), "same"),
    "memory format": (
        lambda net: utils.convert_conv2d_weight_memory_format(net, torch.channels_last), "same",
    ),
    "to_mkldnn after to_torch": (lambda net: Mkldnn(sf.to_torch(net)), "same"),
    "fuse_modules after to_torch": (lambda net: quantization.fuse_modules(sf.to_torch(net), ["0", "1", "2"]), "same"),
    "fuse_conv_bn_weights": (
        lambda net: nn.Conv2d(*utils.fuse_conv_bn_weights(
            net[0].weight, None, net[1].running_mean, net[1].running_var, 0.0, None, None,
        )), "refuses",
    ),
    "fuse_conv_bn_eval after to_torch": (
        lambda net: nn.Sequential(utils.fuse_conv_bn_eval(*sf.to_torch(net)[:2]), net[2]), "same",
    ),
    "jit.script after to_torch": (lambda net: torch.jit.script(sf.to_torch(net)), "same"),
    "eager quantization after to_torch": (lambda net: quantize(sf.to_torch(net)), "near"),
}  # fmt: skip
"""Each tool, and what becomes of a model: it computes the same, nearly so, or is refused with the way out."""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tool", TOOLS)
def test_right_numbers_or_the_name_of_the_way_out(tool: str, bias: bool) -> None:
    use, outcome = TOOLS[tool]
    net, x = model(bias=bias), torch.randn(2, 4, 6, 6)
    expected = net(x)
    if outcome == "refuses":
        with pytest.raises(TypeError, match=r"symconv_fast\.to_torch\(model\)"):
            use(net)(x)
    else:
        allowed = {"same": 1e-5, "near": 0.1}[outcome] * expected.abs().max().item()
        assert (use(net)(x) - expected).abs().max().item() <= allowed


@pytest.mark.parametrize(
    "tool", ["fuse_conv_bn_eval", "to_mkldnn", "fuse_modules", "fuse_modules without ReLU"]
)
def test_untied_layers_and_torchs_own_go_through(tool: str) -> None:
    for net in (model(None), sf.to_torch(model())):
        x = torch.randn(2, 4, 6, 6)
        expected = net(x)
        torch.testing.assert_close(TOOLS[tool][0](net)(x), expected)


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_normalisations_are_of_the_reduced_weight(how: Callable[..., nn.Module]) -> None:
    net, x = model("hv"), torch.randn(2, 4, 6, 6)
    how(net[0])
    conv = nn.functional.conv2d(x, net[0].ties.expand(net[0].weight))
    torch.testing.assert_close(net[0](x), conv)
    y = net(x)
    parametrize.remove_parametrizations(net[0], "weight")
    torch.testing.assert_close(net(x), y)


def test_modules_imported_later_are_guarded_too() -> None:
    """In a process of its own, where nothing else has imported them; and importing the package warns of nothing."""
    code = """
import sys, symconv_fast, torch
assert "torch.utils.mkldnn" not in sys.modules
from torch.utils.mkldnn import to_mkldnn
layer = symconv_fast.SymmetricConv2d(4, 8, 3, symmetry="h", bias=False)
try:
    to_mkldnn(layer)
except TypeError as error:
    assert "symconv_fast.to_torch(model)" in str(error), error
else:
    raise AssertionError("four channels for eight")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def in_a_process(code: str) -> None:
    """What happens at imports, where nothing else has imported anything."""
    refused = """
import importlib, importlib.util, sys, symconv_fast, torch
def refused(convert):
    try:
        convert(symconv_fast.SymmetricConv2d(4, 8, 3, symmetry="h", bias=False))
    except TypeError as error:
        assert "symconv_fast.to_torch(model)" in str(error), error
    else:
        raise AssertionError("four channels for eight")
assert "torch.utils.mkldnn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", refused + code], cwd=ROOT, check=True)


def test_modules_imported_after_a_mere_look_or_once_more_are_guarded() -> None:
    in_a_process("""
assert importlib.util.find_spec("torch.utils.mkldnn").name == "torch.utils.mkldnn"
import torch.utils.mkldnn
refused(torch.utils.mkldnn.to_mkldnn)
importlib.reload(torch.utils.mkldnn)
refused(torch.utils.mkldnn.to_mkldnn)
""")


def test_a_reload_adds_nothing_and_an_import_from_anew_works() -> None:
    in_a_process("""
finders, wrapped = len(sys.meta_path), torch.nn.utils.fuse_conv_bn_weights
importlib.reload(symconv_fast)
assert len(sys.meta_path) == finders
assert torch.nn.utils.fuse_conv_bn_weights is wrapped
del sys.modules["symconv_fast"], sys.modules["symconv_fast.guards"]
import symconv_fast
from torch.utils.mkldnn import to_mkldnn
refused(to_mkldnn)
""")


def test_what_is_wrapped_is_one_object_that_pickles() -> None:
    function = utils.fuse_conv_bn_weights
    assert function is utils.fusion.fuse_conv_bn_weights
    assert pickle.loads(pickle.dumps(function)) is function
    assert "torch" in function.__module__
    assert getattr(function.__wrapped__, "__wrapped__", None) is None


def test_an_untied_layer_is_fused_for_training_with_its_own_parameters() -> None:
    net = model(None, bias=True).train()
    net[0].qconfig = net[1].qconfig = net[2].qconfig = quantization.get_default_qat_qconfig("x86")
    weight = net[0].weight
    fused = quantization.fuse_modules_qat(net, ["0", "1", "2"], inplace=True)
    assert any(parameter is weight for parameter in fused.parameters())
    assert not any(isinstance(module, sf.SymmetricConv2d) for module in fused.modules())


# --- counters of multiply-adds ---------------------------------------------------------------------------------------


def count_torch(net: nn.Module, x: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() / 2


def count_thop(net: nn.Module, x: torch.Tensor) -> float:
    thop = pytest.importorskip("thop", reason="thop is not installed")
    return thop.profile(copy.deepcopy(net), (x,), custom_ops=integrations.thop_ops(), verbose=False)[0]


def count_ptflops(net: nn.Module, x: torch.Tensor, backend: str) -> float:
    """For one image; less the additions of biases, which it counts."""
    ptflops = pytest.importorskip("ptflops", reason="ptflops is not installed")
    with contextlib.redirect_stdout(io.StringIO()):
        count = ptflops.get_model_complexity_info(
            copy.deepcopy(net), tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False, backend=backend,
            custom_modules_hooks=integrations.ptflops_hooks(),
        )[0]  # fmt: skip
    additions = sum(m(x[:1]).numel() for m in net if getattr(m, "bias", None) is not None)
    return (count - additions) * len(x)


def count_fvcore(net: nn.Module, x: torch.Tensor) -> float:
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    return fvcore.FlopCountAnalysis(net, x).set_op_handle(**integrations.fvcore_handles()).total()


def count_fvcore_handle(net: nn.Module, x: torch.Tensor) -> float:
    """The handle on the nodes that fvcore would give it, without fvcore."""
    graph, _ = torch.jit._get_trace_graph(net, (x,))
    handles = integrations.fvcore_handles()
    nodes = [node for node in graph.nodes() if node.kind() in handles]
    return sum(sum(handles[n.kind()](list(n.inputs()), list(n.outputs())).values()) for n in nodes)


COUNTERS = {
    "torch": count_torch,
    "thop": count_thop,
    "ptflops pytorch": lambda net, x: count_ptflops(net, x, "pytorch"),
    "ptflops aten": lambda net, x: count_ptflops(net, x, "aten"),
    "fvcore": count_fvcore,
    "handle of fvcore": count_fvcore_handle,
}


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize(("symmetry", "rows"), [("hv", 2), ({"h": 4}, 6), (None, 8)])
def test_counters_count_what_the_fold_computes(counter: str, symmetry: Any, rows: int) -> None:
    x, count = torch.randn(2, 4, 9, 8), COUNTERS[counter]
    conv = nn.Sequential(sf.SymmetricConv2d(4, 8, 3, stride=2, symmetry=symmetry), nn.Identity())
    assert count(conv, x) == 2 * (4 * 3) * rows * 4 * 9
    up = nn.Sequential(sf.SymmetricConvTranspose2d(4, 8, 3, stride=2, symmetry=symmetry, bias=False))
    assert count(up, x) == 2 * (9 * 8) * rows * 4 * 9
    line = nn.Sequential(sf.SymmetricConv1d(4, 8, 3, groups=2, symmetry="h" if symmetry else None))
    assert count(line, torch.randn(2, 4, 9)) == 2 * 7 * (4 if symmetry else 8) * 2 * 3
