# Reports of equivariance: what is refused, and the command.

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_equivariance import Function
from torch import Tensor, nn

from symconv_fast.analysis import equivariance_report
from symconv_fast.analysis.__main__ import main
from symconv_fast.nn import SpatiallyBalancedPool2d

NAN = nn.Conv2d(1, 1, 1)
nn.init.constant_(NAN.weight, math.nan)
HUGE = nn.Sequential(nn.Conv2d(1, 1, 1), Function(lambda x: x / 0), nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (3, {}, TypeError, "needs a torch.nn.Module, got int"),
        (NAN, {}, ValueError, "weight holds inf or NaN"),
        (HUGE, {}, ValueError, r"2 \(MaxPool2d\) gives inf or NaN"),
        (nn.LazyConv2d(3, 3), {}, ValueError, "weight is not initialised yet; run the model once"),
        (nn.Conv2d(1, 1, 1, device="meta"), {}, ValueError, "on the meta device"),
        (nn.Linear(8, 2), {}, ValueError, "no operation with 2 spatial dims at input_size=8"),
        (nn.Conv2d(1, 1, 9), {}, ValueError, "cannot run on input of shape"),
        (nn.MaxPool2d(2), {"input_size": 1}, ValueError, "give an input_size that it takes"),
        (nn.Conv2d(1, 1, 1), {"input_size": 0}, ValueError, "must be 1 to 3 positive ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": (8, 8, 8, 8)}, ValueError, "must be 1 to 3 positive ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": "8"}, TypeError, "must be an int or a tuple of ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": torch.zeros(3, 3)}, ValueError, r"tensor \(N, C, \*spatial\)"),
        (nn.Conv2d(1, 1, 1), {"transforms": ("h", "z")}, ValueError, "some of h, v, shift"),
        (nn.Conv2d(1, 1, 1), {"transforms": ()}, ValueError, "some of h, v, shift"),
        (nn.Conv2d(1, 1, 1), {"transforms": "hv"}, TypeError, "must be a sequence"),
        (nn.Conv2d(1, 1, 1), {"transforms": [["h"]]}, TypeError, "must be a sequence of names"),
        (nn.Conv2d(1, 1, 1), {"channels": 0}, ValueError, "channels=0 must be 1 to"),
        (nn.Conv2d(1, 1, 1), {"channels": (1, 2)}, TypeError, r"channels=\(1, 2\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"channels": 2**64}, ValueError, "channels=18446744073709551616 must be 1 to"),
        (nn.Conv2d(1, 1, 1), {"reach": -1}, ValueError, "reach=-1 must be at least 0"),
        (nn.Conv2d(1, 1, 1), {"reach": (5,)}, TypeError, r"reach=\(5,\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"seed": (1, 2)}, TypeError, r"seed=\(1, 2\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"seed": "a", "input_size": torch.randn(1, 1, 8, 8)}, TypeError, "seed='a'"),
        (nn.Conv2d(1, 1, 1), {"seed": 2**64}, ValueError, "must be 0 to 18446744073709551615"),
        (nn.Conv2d(1, 1, 1), {"input_size": np.zeros((1, 1, 8, 8))}, TypeError, "torch.as_tensor makes one"),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.zeros(1, 1, 8, 8)},
            ValueError,
            "unchanged by 'h'.*size alone",
        ),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.arange(8.0).expand(1, 1, 8, 8)},
            ValueError,
            "unchanged by 'v'",
        ),
        (nn.Conv2d(1, 1, 1), {"input_size": torch.randn(1, 1, 8, 8) / 0}, ValueError, "holds inf or NaN"),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.randn(1, 1, 8, 8).to("meta")},
            ValueError,
            "on the meta device",
        ),
    ],
)
def test_bad_input(model, options, error, message):
    with pytest.raises(error, match=message):
        equivariance_report(model, **{"input_size": 8, **options})


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (KeyError("k"), "KeyError: 'k'"),
        (AttributeError("no a"), "AttributeError: no a"),
        (ValueError("v"), ": v;"),
    ],
)
def test_whatever_a_model_raises_is_said(failure, said):
    def fails(x: Tensor) -> Tensor:
        raise failure

    with pytest.raises(ValueError, match=f"cannot run on input of shape .*{said}.*give an input_size"):
        equivariance_report(Function(fails), 8)


def test_sizes_that_a_model_refuses_are_passed_over():
    def fixed(x: Tensor) -> Tensor:
        if x.shape[-1] not in (8, 10):
            raise KeyError(x.shape[-1])
        return F.max_pool2d(x, 2)

    assert equivariance_report(Function(fixed), 8, reach=4).nearest == {"h": (None, 10), "v": (None, 10)}


def test_a_size_that_runs_for_shapes_alone_is_not_named():
    def refuses(x: Tensor) -> Tensor:
        return F.max_pool2d(x if x.is_meta or x.shape[-1] == 8 else x / 0, 2)

    report = equivariance_report(Function(refuses), 8, reach=2)
    assert report.exact
    assert report.nearest == {"h": (None, None), "v": (None, None)}
    assert "it cannot be measured, (model) (max_pool2d) gives inf or NaN" in report.notes[0]


class Inferring(nn.Sequential):
    """It goes into inference mode by itself."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("inside", [False, True])
def test_inference_mode_hides_nothing(inside):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    plain = equivariance_report(net, 17, reach=2)
    with torch.inference_mode(not inside):
        found = equivariance_report(Inferring(*net) if inside else net, 17, reach=2)
    assert str(found) == str(plain)


def test_what_breaks_a_mirror_is_lost_though_zeros_hide_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    report = equivariance_report(net, 8, reach=1)
    assert not report.exact
    assert report.first_lost("h").layer == "0"
    assert "leave 1 over at the right end" in report.verdict()
    assert equivariance_report(net, 9, reach=1).exact


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm])
def test_weights_that_a_training_step_computed(norm):
    net = nn.Sequential(norm(nn.Conv2d(3, 4, 3, 2, 1)), nn.ReLU())
    fresh = equivariance_report(net, 9, reach=1)
    assert fresh.exact
    net[0].eval()
    net(torch.randn(1, 3, 9, 9)).sum().backward()
    weight = net[0].weight
    assert str(equivariance_report(net, 9, reach=1)) == str(fresh)
    assert net[0].weight is weight


def test_sizes_may_be_an_array():
    assert equivariance_report(nn.MaxPool2d(2), np.array([8, 6]), reach=0).input_size == (8, 6)


def test_what_was_not_measured():
    report = equivariance_report(nn.Conv2d(1, 1, 1), 8, transforms=["h"], reach=0)
    with pytest.raises(ValueError, match="transform='v' was not measured; give one of h"):
        report.first_lost("v")


# --- the command -----------------------------------------------------------------------------------------------------

MODELS = """
from torch import nn
def strided(): return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
def nothing(): return 3
def fails(): raise KeyError("weights")
def leaves(): raise SystemExit(0)
class Lost(nn.Module):
    def forward(self, x): return self.nothing
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "models_of_a_test.py").write_text(MODELS)
    (tmp_path / "script_of_a_test.py").write_text("import sys; sys.exit('usage')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_command_as_a_process(folder):
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "symconv_fast.analysis", "models_of_a_test:strided", "--size", "16x17"]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("not exact at 16x17 along v: first lost in 0 (16 positions")
    assert "Conv2d" in done.stdout


def test_the_command_says_exact(folder, capsys):
    assert main([" models_of_a_test: strided", "--size", "17", "--transforms", "h, v", "--reach", "2"]) == 0
    assert capsys.readouterr().out.startswith("exact at 17")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models_of_a_test", "--size", "8"], "is not MODULE:FUNCTION"),
        (["no_such_module:f", "--size", "8"], "no module no_such_module"),
        (["models_of_a_test:other", "--size", "8"], "has no other; it has Lost, fails, leaves, nothing"),
        (["models_of_a_test:nothing", "--size", "8"], "returns int; give a function that returns"),
        (["models_of_a_test:fails", "--size", "8"], "fails: KeyError"),
        (["models_of_a_test:leaves", "--size", "8"], "fails: SystemExit"),
        (["script_of_a_test:f", "--size", "8"], "importing script_of_a_test fails: SystemExit: usage"),
        (
            ["models_of_a_test:Lost", "--size", "8"],
            "cannot run on input of shape (1, 3, 8, 8): AttributeError",
        ),
        (["./models_of_a_test.py:strided", "--size", "8"], "give something like models_of_a_test:strided"),
        (["models of:strided", "--size", "8"], "is no name of a module"),
        (["models_of_a_test:strided", "--size", "8", "--seed", "-1"], "seed=-1 must be 0 to"),
        (["models_of_a_test:strided", "--size", "8", "--seed", str(2**64)], "must be 0 to"),
        (["models_of_a_test:strided", "--size", "8y"], "'8y' is no size; give something like 224 or 224x160"),
        (["models_of_a_test:strided"], "--size"),
        (["models_of_a_test:strided", "--size", "8", "--transforms", "q"], "some of h, v, shift"),
        (["models_of_a_test:strided", "--size", "8", "--channels", "5"], "cannot run on input of shape"),
    ],
)
def test_the_command_refuses(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(re.escape(message), capsys.readouterr().err)


def test_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "exit status" in text
    assert "--transforms" in text


def test_maxima_that_are_padded_with_minus_infinity() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), SpatiallyBalancedPool2d(3, 2, 1, index=1))
    report = equivariance_report(net, 32, transforms=("h",))
    assert not report.exact
    assert equivariance_report(net, 33, transforms=("h",)).exact
