# The examples: each runs with --quick and says what it should; packages that are missing are named in one sentence.

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
from typing import Any

import pytest
from fake_rows import run_python

for module in ("mlxtend", "matplotlib", "rich", "tqdm"):
    pytest.importorskip(module, reason=f"needs {module}")

# Examples pin threads before torch is loaded, so each runs in a process of its own; the last line is what it returns.
RUN = """
import json, sys
sys.path.insert(0, "examples")
import {name} as example
result = example.main(sys.argv[1:])
print(json.dumps({told}))
"""
ERROR = """
import contextlib, io, sys
sys.path.insert(0, "examples")
import common, importlib.util
import approximate_equivariance, symmetry_profile
def said(example, *arguments):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            example.main(["--quick", *arguments])
    except SystemExit as end:
        print(repr(end.code), errors.getvalue().strip().splitlines()[-1:])
said(approximate_equivariance, "--epochs", "0")
importlib.util.find_spec = lambda name: None
said(symmetry_profile)
sys.modules["mlxtend"] = None
said(approximate_equivariance)
"""


def run(name: str, told: str, folder: Any, *options: str) -> tuple[str, Any]:
    """What an example prints with --quick, and what its `main` returns, as `told` says it."""
    code = RUN.format(name=name, told=told)
    done = _python(code, "--quick", "--output", str(folder), *options)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    text = "\n".join(lines)
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = (folder / f"{name}.txt").read_text()
    *shown, warning, last_line = [line for line in lines if line]
    assert [line for line in written.splitlines() if line] == shown
    assert warning.startswith("A quick run: ")
    assert last_line.startswith("Written: ")
    assert max(map(len, written.splitlines())) <= 160
    return text, json.loads(last)


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-c", code, *arguments, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")


def test_training_from_scratch(tmp_path):
    told = "{name: [net.parameters, net.macs, *net.accuracy] for name, net in result.items()}"
    text, nets = run("train_from_scratch", told, tmp_path, "--markdown")
    assert [name for name in nets if f"| {name} |" in text] == list(nets)
    assert "| filters | read right | weights |" in text
    # Channels 1 > 4 > 8 > 8 > 16 > 16 on maps of 14 × 14, and 7 × 7 after pooling.
    tied = 9 * (4 * 8 + 8 * 8), 9 * (8 * 16 + 16 * 16)
    rest = 25 * 4 + 2 * (4 + 8 + 8 + 16 + 16) + 16 * 10 + 10
    products = tied[0] * 14 * 14 + tied[1] * 7 * 7
    for name, divided in (("ordinary", 1), ("pairs, h", 2), ("quadruples, hv", 4)):
        parameters, macs, accuracy = nets[name]
        assert parameters == sum(tied) // divided + rest
        assert macs == products // divided + 25 * 4 * 14 * 14 + 16 * 10
        assert 0 < accuracy < 1


def test_a_network_that_is_mirror_invariant_but_for_its_strides(tmp_path):
    text, (broken, exact) = run("approximate_equivariance", "[vars(one) for one in result]", tmp_path)
    assert (broken["size"], exact["size"]) == (28, 29)
    assert "28 → 14 → 7         broken" in text
    assert "29 → 15 → 8         exact" in text
    assert max(exact["apart"]) < 1e-5 < 1e-4 < min(broken["apart"])
    assert min(*exact["loss"], *exact["test_loss"]) >= math.log(2) - 1e-6
    assert min(min(curve) for curve in exact["curves"]) >= math.log(2) - 1e-6


def test_digits_and_their_mirror_images(tmp_path):
    told = "{name: [net.parameters, *net.right, *net.mirrored, *net.agree] for name, net in result.items()}"
    text, nets = run("equivariant_digits", told, tmp_path)
    assert [name for name in nets if f"\n {name} " in text] == list(nets)
    assert list(nets)[4:] == ["tied, as long", "equivariant, as long"]
    parameters, right, mirrored, agree = zip(*nets.values())
    # Channels 1 > 4 > 8 > 8 > 16 > 16, each with a weight and a bias of batch norm, and a classifier.
    filters, norm, linear = (
        25 * 4 + 9 * (4 * 8 + 8 * 8 + 8 * 16 + 16 * 16),
        2 * (4 + 8 + 8 + 16 + 16),
        16 * 10,
    )
    whole = filters + norm + linear + 10
    tied = filters // 2 + norm + linear + 10, (whole - 10) // 2 + 10
    assert parameters == (whole, whole, *tied, *tied)
    assert 0 < min(right) <= max(right) < 1
    for equivariant in (3, 5):
        assert agree[equivariant] == 1
        assert right[equivariant] == mirrored[equivariant]


def test_motifs_on_either_strand(tmp_path):
    told = "{name: [net.parameters, *net.right, *net.agree, *net.apart, net.reading] for name, net in result.items()}"
    text, nets = run("equivariant_motifs", told, tmp_path)
    assert [name for name in nets if f"\n {name} " in text] == list(nets)
    parameters, right, agree, apart, reading = zip(*nets.values())
    whole = 4 * 8 * 21 + 3 * 8 * 8 * 3 + 4 * 8 + 8 * 8 + 8  # the last 8 are biases of answers
    assert parameters == (whole, whole, whole, (whole - 8) // 2 + 8)
    assert 0 < min(right) <= max(right) < 1
    assert agree[2:] == (1, 1)
    assert max(apart[2:]) < 1e-5 < 1e-3 < min(apart[:2])
    assert min(reading) > 0


@pytest.mark.skipif(
    importlib.util.find_spec("facenet_pytorch") is None,
    reason="needs facenet-pytorch (pip install --no-deps)",
)
def test_symmetry_profile(tmp_path):
    told = (
        "[[len(run) for layer in result[0] for run in layer.history], "
        "{name: one.value for name, (_, one) in result[1].items()}]"
    )
    text, (measured, shipped) = run("symmetry_profile", told, tmp_path)
    assert measured == [3] * 5  # two epochs
    assert len(shipped) == 10
    assert all(f"\n {name} " in text for name in shipped)
    assert shipped["O-Net conv2"] > 0.8 > 0.4 > shipped["O-Net conv1"]  # 0.889 and 0.298


def test_conversion_of_a_trained_network(tmp_path):
    pytest.importorskip("rustworkx", reason="needs rustworkx")
    told = (
        "{name: [way.parameters, *[layer.lost for report in way.reports for layer in report.tied]] "
        "for name, way in result.items()}"
    )
    text, ways = run("convert_trained", told, tmp_path)
    assert all(f" {name} " in text for name in ways)
    for tie, divided in (("pairs", 2), ("quadruples", 4)):
        matched, given, *scratch = (numbers for name, numbers in ways.items() if name.startswith(tie))
        assert matched[0] == given[0] == scratch[0][0] == scratch[1][0]
        assert len(matched) == len(given) == 5  # four layers are tied
        assert sum(matched[1:]) < sum(given[1:]) == pytest.approx(4 * (1 - 1 / divided), abs=0.2)


def test_the_picture_of_equivariance(tmp_path):
    code = (
        'import json, sys; sys.path.insert(0, "examples"); import equivariance_picture as example; example.main(); '
        "found = example.maps(example.letter()); "
        "print(json.dumps({name: float((a - b).abs().max()) for name, (a, b) in found.items()}))"
    )
    done = _python(code, str(tmp_path / "picture.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    apart = json.loads(done.stdout.splitlines()[-1])
    assert apart["equivariant"] < 1e-5 < 0.1 < apart["tied"]


def test_what_is_missing_or_wrong_is_said_in_one_sentence():
    done = _python(ERROR)
    assert done.returncode == 0, done.stderr
    few, facenet, mlxtend = done.stdout.splitlines()
    assert few.startswith("2 [")
    assert few.endswith("error: --epochs 0 is too few; give 1 or more']")
    assert facenet == (
        "'The face detectors of this example need facenet-pytorch: pip install --no-deps facenet-pytorch' []"
    )
    assert mlxtend == (
        "'This example needs the package mlxtend: pip install mlxtend (all that is optional is the extra [demo] of "
        "this package)' []"
    )
    assert os.sep not in mlxtend
