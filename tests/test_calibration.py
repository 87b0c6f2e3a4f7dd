# Rates of this machine: factors by row, the file, the command, and choices that rest on wrong rates.

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trials import FakeClock, clear, warned

import symconv_fast as sf
from symconv_fast import __main__ as package_main
from symconv_fast import binding, dispatch, machine, native, ops
from symconv_fast.calibration import apply, calibrated, factors, measure, shapes, use_stored
from symconv_fast.problem import OPS, Problem
from symconv_fast.trial import rates, small, timing

pytestmark = pytest.mark.skipif(native.module is None, reason="the native module was not built")
if native.module is not None:
    from symconv_fast.backends import cpu, reference
    from symconv_fast.calibration import rows

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_rates():
    """The package's own rates before and after, and nothing known of choices."""
    apply({})
    clear()
    yield
    apply({})
    clear()


def layers(*spatial: int, dtype: torch.dtype = torch.float32, last: bool = True, **more) -> Problem:
    layer = shapes.Layer(1, 16, 16, spatial, 3, "h")._replace(**more)
    return shapes.problem(layer, dtype, last)


# --- rows and factors ------------------------------------------------------------------------------------------------


def able(problem: Problem, op: str) -> list[str]:
    return [a for a in cpu.ALGORITHMS if cpu.can_run(problem, op, a) is None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_estimate_is_scaled_by_the_factor_of_its_row_alone(dtype):
    """For every algorithm of every kind of layer: the row is what the estimate rests on."""
    seen = set()
    for problem, op in [(p, op) for p, op in shapes.problems(dtype) if p.batch * math.prod(p.spatial) < 9999]:
        for algorithm in able(problem, op):
            name = rows.row(problem, op, algorithm)
            if name is None or name in seen or not math.isfinite(rows.seconds(problem, op, algorithm)):
                continue
            seen.add(name)
            others = dict.fromkeys(rows.names(), 1.0)
            apply(others)
            before = rows.seconds(problem, op, algorithm)
            apply({**others, name: 3.0})
            # What filtering and wider types add is not in the tables.
            assert 1.2 * before < rows.seconds(problem, op, algorithm) <= 3.001 * before, (name, problem, op)
            apply({other: 3.0 for other in others if other != name} | {name: 1.0})
            if rows.dtype_of(name) == "float32":
                assert rows.seconds(problem, op, algorithm) == pytest.approx(before), (name, problem, op)
            apply({})
            assert rows.seconds(problem, op, algorithm) == pytest.approx(before)
    assert len(seen) > 15


def test_rows_that_were_not_measured_have_the_mean_of_their_kind():
    found = factors.filled({"fold/fprop": 2.0, "fold/dgrad": 8.0, "torch2d/pixels/fprop": 3.0})
    assert found["fold/wgrad"] == pytest.approx(4.0)
    assert found["scatter/fprop"] == found["depthwise/pixels/fprop"] == pytest.approx(4.0)
    assert found["torch3d/planes/wgrad"] == pytest.approx(3.0)
    assert found["fold/fprop"] == 2.0
    assert {v for name, v in found.items() if rows.dtype_of(name) != "float32"} <= {1.0}


def test_the_layers_meet_every_family_of_rows():
    """A family that none of them meets would be scaled by others."""
    met = {
        name.partition("/")[0]
        for dtype in (torch.float32, torch.bfloat16)
        for problem, op in shapes.problems(dtype)
        for algorithm in able(problem, op)
        if (name := rows.row(problem, op, algorithm)) is not None
    }
    families = {name.partition("/")[0] for name in rows.names() if rows.dtype_of(name) != "float16"}
    # F(4,3) is opt-in, and bfloat16 in torch is asked in float32 for some gradients.
    assert {f for f in families - met if "f4" not in f} <= {"bfloat16 torch3d"}


def fake(problem: Problem, op: str, truth) -> measure.Measured:
    """What nothing is known of takes a second, far longer than all else."""
    seconds = {a: truth(problem, op, a) for a in able(problem, op) if a != "relayout"}
    return measure.Measured(problem, op, {a: s if math.isfinite(s) else 1.0 for a, s in seconds.items()})


def test_what_is_learnt_is_what_was_true():
    """Seconds that are the estimates by other rates give back these: both types, where 16 bits rest on float32 too."""
    wanted = {}
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for family in sorted({factors.families(name)[0] for name in rows.names()}):
        factor = math.exp(random.Random(family).uniform(-1, 1))  # whatever other families this CPU has
        wanted |= {name: factor for name in rows.names() if factors.families(name)[0] == family}
    # Groups of a few channels have rates of float32 alone, which too few layers meet to be learnt for 16 bits.
    asked = [
        (problem, op)
        for dtype in dtypes
        for problem, op in shapes.problems(dtype)
        if op != "wgrad" and (dtype == torch.float32 or problem.groups in (1, problem.in_channels))
    ]
    apply(wanted)
    measured = [fake(problem, op, rows.seconds) for problem, op in asked]
    apply({})
    learnt = measure.learn(measured, dtypes)
    assert [found.dtype for found in learnt] == list(dtypes)
    # Where the CPU widens bfloat16 torch is so slow in it that no factor changes what is chosen.
    widens = rows.rates.dtype_name(torch.bfloat16) != "bfloat16"
    for found in learnt[: 1 if widens else 2]:
        assert found.helps
        assert found.before > 0.02
        assert found.held_out < 0.2 * found.before
    kept = {name: f for found in learnt if found.helps for name, f in found.factors.items()}
    plain = [
        n
        for n in kept
        if n.startswith(("fold/", "torch2d/", "scatter/", "bfloat16 fold/", "bfloat16 scatter/"))
    ]
    assert len(plain) > 20
    for name in plain:
        assert kept[name] == pytest.approx(wanted[name], rel=0.35), name


def test_factors_that_do_not_help_are_not_kept():
    """Seconds without any pattern by rows."""
    draw = random.Random(2)

    def truth(problem, op, algorithm):
        return rows.seconds(problem, op, algorithm) * math.exp(draw.gauss(0, 1))

    (learnt,) = measure.learn(
        [fake(p, op, truth) for p, op in shapes.problems(torch.float32) if math.isfinite(p.batch)],
        [torch.float32],
    )
    assert learnt.regret == min(learnt.before, learnt.held_out)
    assert learnt.helps == (learnt.held_out < learnt.before)
    assert learnt.regret > 0.1


def test_all_algorithms_of_a_pass_are_measured_in_turns(monkeypatch):
    turns = []
    calls = {name: (lambda name=name: turns.append(name)) for name in ("a", "b")}
    with monkeypatch.context() as patch:
        patch.setattr(timing.HostClock, "seconds", lambda self, call, n: call() or float(len(turns)))
        assert measure.in_turns(calls, 20.0) == {"a": 3.0, "b": 4.0}
    assert turns[:8] == ["a", "b"] * 4
    found = measure.measure(layers(8, 8), "fprop", 0.0)
    assert set(found.seconds) == set(able(layers(8, 8), "fprop"))


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv(machine.ENV_CACHE, str(tmp_path))
    return tmp_path


def read(folder: Path) -> list[str]:
    """Warnings while the file is read anew."""
    import warnings

    apply({})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use_stored()
    return [str(w.message) for w in caught]


def test_what_is_stored_is_read(folder):
    problem = layers(28, 28)
    before = rows.seconds(problem, "fprop", "fold")
    assert read(folder) == []  # there is none
    assert factors.store({"fold/fprop": 2.0}, [torch.float32]) == folder / "calibration.json"
    assert rows.seconds(problem, "fprop", "fold") == before
    assert read(folder) == []
    assert rows.seconds(problem, "fprop", "fold") == pytest.approx(2 * before)
    assert calibrated() == {torch.float32}


@pytest.mark.parametrize("fact", ["symconv_fast", "torch", "cpu", "instructions", "torch's instructions"])
def test_a_file_of_another_machine_is_ignored_with_one_warning(folder, fact):
    path = factors.store({"fold/fprop": 2.0}, [torch.float32])
    stored = json.loads(path.read_text())
    stored["identity"][fact] = "another"
    path.write_text(json.dumps(stored))
    before = rows.seconds(layers(28, 28), "fprop", "fold")
    (message,) = read(folder)
    assert f"{fact} 'another', here" in message
    assert "is not used" in message
    assert rows.seconds(layers(28, 28), "fprop", "fold") == before
    assert calibrated() == frozenset()


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"factors": 1}', '{"factors": {"fold/fprop": -1}, "dtypes": []}',
                '{"factors": {"fold/fprop": "two"}, "dtypes": []}', '{"factors": {}, "dtypes": ["float31"]}',
                '{"factors": {"fold/fprop": NaN}, "dtypes": []}'],
)  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
def test_a_broken_file_is_ignored_with_one_warning(folder, content, whole):
    text = (
        content
        if whole
        else json.dumps({"identity": machine.identity(), "content": 1}).replace(" 1", content)
    )
    (folder / "calibration.json").write_text(text)
    before = rows.seconds(layers(28, 28), "fprop", "fold")
    (message,) = read(folder)
    assert "is not used" in message
    assert rows.seconds(layers(28, 28), "fprop", "fold") == before


def test_files_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(machine.ENV_CACHE)
    assert sys.platform != "linux" or machine.directory() == tmp_path / "symconv_fast"
    assert not machine.is_directory_named()
    monkeypatch.setenv(machine.ENV_CACHE, "0")
    assert machine.directory() is None
    with pytest.raises(RuntimeError, match="SYMCONV_FAST_CACHE switches files off"):
        factors.store({}, [])
    use_stored()
    assert calibrated() == frozenset()


@pytest.mark.parametrize(
    ("system", "place"),
    [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")],
)
def test_the_folder_is_in_the_cache_of_the_user(monkeypatch, system, place):
    for name in (machine.ENV_CACHE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    assert machine.directory() == Path(os.path.expanduser("~")) / place / "symconv_fast"


SCRIPT = """
import torch, symconv_fast as sf
conv = sf.SymmetricConv2d(16, 16, 3, padding=1, symmetry="h")
report = sf.explain(conv, torch.randn(1, 16, 28, 28)).passes[0]
print(*(c.seconds for c in report.candidates if (c.backend, c.algorithm) == ("cpu", "fold")))
"""


def test_a_new_process_estimates_by_the_file(folder):
    def seconds(cache: str) -> float:
        environment = {**os.environ, "SYMCONV_FAST_CACHE": cache, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-c", SCRIPT]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        return float(done.stdout)

    factors.store({"fold/fprop": 4.0}, [torch.float32])
    assert seconds(str(folder)) > 3 * seconds("0")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch) -> None:
    """Two small layers, measured once."""
    layer = shapes.Layer(1, 16, 16, (8, 8), 3, "h")
    monkeypatch.setattr(shapes, "LAYERS", (layer, layer._replace(channels=4, spatial=(9,))))


def test_calibrate_measures_stores_and_tells(few, folder, capsys):
    assert package_main.main(["calibrate", "--seconds", "0", "--dtypes", "float32", "bfloat16"]) == 0
    out = capsys.readouterr().out
    path = folder / "calibration.json"
    assert f"stored in {path}" in out
    assert "float32: measured over estimated seconds" in out
    assert out.count("longer than the quickest, these") == 2
    content = json.loads(path.read_text())["content"]
    assert set(content) == {"dtypes", "factors"}
    assert read(folder) == []
    assert package_main.main(["calibrate", "--forget"]) == 0
    assert not path.exists()
    assert package_main.main(["calibrate", "--forget"]) == 0


def test_calibrate_says_why_it_cannot(few, monkeypatch, capsys):
    assert package_main.main(["calibrate"]) == 1  # the suite switches files off
    assert "SYMCONV_FAST_CACHE" in capsys.readouterr().out
    monkeypatch.setenv(machine.ENV_CACHE, "somewhere")
    monkeypatch.setattr(native, "missing", lambda: "it was not built")
    assert package_main.main(["calibrate"]) == 1
    assert "it was not built" in capsys.readouterr().out


def test_a_type_that_is_calibrated_well_counts_as_measured(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    apply({})
    unknown = rates.why_none(torch.bfloat16)
    apply({}, [torch.bfloat16])
    assert rates.why_none(torch.bfloat16) is None
    apply({})
    assert rates.why_none(torch.bfloat16) == unknown


# --- choices by wrong rates ------------------------------------------------------------------------------------------


SMALL = tuple(
    layer
    for layer in (
        shapes.Layer(2, 16, 32, (14, 14), 3, "h"),
        shapes.Layer(1, 32, 32, (9, 9), 3, "hv"),
        shapes.Layer(1, 3, 16, (20, 20), 5, "h", stride=2),
        shapes.Layer(1, 64, 64, (7, 7), 3, "v"),
        shapes.Layer(2, 8, 16, (50,), 3, "h"),
        shapes.Layer(1, 8, 16, (6, 6, 6), 3, "hvz"),
        shapes.Layer(1, 12, 24, (14, 14), 3, "h", group_width=1),
    )
)


@pytest.fixture
def truth(monkeypatch):
    """Seconds by the package's own rates are what the fake clock says that each algorithm takes."""
    clock = FakeClock()
    asked = [
        (dataclasses.replace(shapes.problem(layer, torch.float32, last)), op)
        for layer in SMALL
        for last in ((True, False) if len(layer.spatial) > 1 else (False,))
        for op in OPS
    ]
    costs = {
        (problem, op): {a: min(cpu.estimate(problem, op, a), 1.0) for a in able(problem, op)}
        for problem, op in asked
    }
    plain = binding.bind

    def bind(module, problem, op, algorithm, activation=None):
        if module is not cpu:
            return plain(module, problem, op, algorithm, activation)

        def run(*tensors):
            clock.now += costs[problem, op][algorithm]
            return getattr(reference, op)(problem, "expand", *tensors)

        return run

    monkeypatch.setattr(binding, "bind", bind)
    monkeypatch.setattr("symconv_fast.trial.bound.bind", bind)
    monkeypatch.setattr(timing, "clock_of", lambda device: clock)
    monkeypatch.setattr(dispatch, "BACKENDS", ("cpu", "reference"))
    return costs


def regret(costs) -> list[float]:
    """Of what the dispatch chooses."""
    lost = []
    for (problem, op), seconds in costs.items():
        choice = dispatch.choose(problem, op)
        assert choice.backend.NAME == "cpu"
        lost.append(seconds[choice.algorithm] / min(seconds.values()) - 1)
    return lost


@contextlib.contextmanager
def not_deterministic():
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


def apply_wrong_rates(truth, number: int) -> None:
    """Each row off by up to 3 either way: by the `number`-th of such rates by which the choice loses much."""
    for seed in range(30):
        draw = random.Random(seed)
        apply({name: 3 ** draw.uniform(-1, 1) for name in rows.names()})
        number -= measure.mean_loss(regret(truth)) > 0.05
        if number < 0:
            return
    raise AssertionError("by estimates the choice hardly ever loses much")


@pytest.mark.parametrize("number", range(3))
def test_benchmark_mode_makes_up_for_wrong_rates(truth, number):
    """By estimates the choice loses much, after the first calls nothing."""
    assert measure.mean_loss(regret(truth)) < 1e-9
    apply_wrong_rates(truth, number)
    with not_deterministic(), sf.benchmarking():
        for problem, op in truth:
            tensors = small.make(problem, False).of(op, False)
            p = problem
            static = (tuple(n for tie in p.ties for n in tie), p.stride, p.padding, p.dilation, p.output_padding,
                      False, p.groups, p.channels_last)  # fmt: skip
            third = {"fprop": None, "dgrad": p.input_shape, "wgrad": p.weight_shape}[op]
            assert warned(lambda: ops.plan(op, *tensors[:2], third, static)(*tensors)) == []  # noqa: B023
        assert measure.mean_loss(regret(truth)) <= 0.01
        assert max(regret(truth)) <= 0.01
