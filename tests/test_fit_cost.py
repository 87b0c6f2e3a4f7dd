# The fit of the CPU cost model: which rows it goes by, that it finds the rates that rows were made with, and its files.
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_rows import run_python

from symconv_fast import native

pytestmark = pytest.mark.skipif(native.module is None, reason="the native module was not built")
if native.module is not None:
    from symconv_fast.backends.cpu import rates

PINNED = {
    "OMP_NUM_THREADS": "2",
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
    "OMP_WAIT_POLICY": "passive",
}

# --- which rows ------------------------------------------------------------------------------------------------------

MERGE = """
import json, sys
from pathlib import Path
from bench import cost_rows

cost_rows.DATA, cost_rows.DATA_HELD = map(Path, sys.argv[1:3])
cost_rows.DATA_OF = {"AVX512 Intel": Path(sys.argv[3])}
print(json.dumps(cost_rows.merged()))
"""


def row(name: str, algorithm: str, ns: float, capability: str = "AVX512", threads: int = 2) -> dict[str, Any]:
    """A row of a pass, as far as merging goes."""
    return {
        "case": name, "op": "fprop", "algorithm": algorithm, "ns": ns, "capability": capability, "threads": threads,
    }  # fmt: skip


REAL = [
    row("common", "fold", 100), row("common", "expand", 300), row("common", "direct", 1000),
    row("whole", "fold", 7), row("whole", "expand", 9),
    row("alone", "fold", 5),
    row("threads", "fold", 40), row("threads", "fold", 60, threads=1),
    row("other vectors", "fold", 400, "AVX2"),
]  # fmt: skip
HELD = [
    row("common", "fold", 50), row("common", "expand", 100), row("common", "direct", 100), row("common", "scatter", 30),
    row("whole", "fold", 70),
    row("new", "fold", 10), row("new", "scatter", 20),
    row("threads", "fold", 10), row("threads", "direct", 1),
    row("other vectors", "fold", 1, "AVX2"), row("other vectors", "scatter", 3, "AVX2"),
    row("new to vectors", "fold", 1, "SVE"),
    row("common", "fold", 1, "AVX512 Intel"), row("common", "scatter", 3, "AVX512 Intel"),
]  # fmt: skip
OF_MAKER = [row("common", "fold", 4, "AVX512 Intel"), row("common", "expand", 12, "AVX512 Intel")]


def test_passes_of_which_another_machine_has_more_algorithms_are_its_own_scaled(tmp_path: Path) -> None:
    """By the median of what both measured of the pass, else of all passes with such vectors; no pass is of two."""
    for name, rows in (("real", REAL), ("held", HELD), ("of maker", OF_MAKER)):
        (tmp_path / name).write_text("".join(json.dumps(found) + "\n" for found in rows))
    done = run_python("-c", MERGE, *(str(tmp_path / name) for name in ("real", "held", "of maker")), **PINNED)
    assert done.returncode == 0, done.stderr
    merged: dict[tuple[object, ...], dict[str, float]] = {}
    for found in json.loads(done.stdout):
        of_pass = merged.setdefault((found["case"], found["capability"], found["threads"]), {})
        assert found["algorithm"] not in of_pass
        of_pass[found["algorithm"]] = pytest.approx(found["ns"])
    assert merged == {
        # Times 3, of 2, 3 and 10.
        ("common", "AVX512", 2): {"fold": 150, "expand": 300, "direct": 300, "scatter": 90},
        ("whole", "AVX512", 2): {"fold": 7, "expand": 9},  # nothing is new in a tenth of the time
        ("alone", "AVX512", 2): {"fold": 5},
        ("new", "AVX512", 2): {"fold": 30, "scatter": 60},  # the median of 2, 3, 10, 0.1 and 4
        ("threads", "AVX512", 2): {"fold": 40, "direct": 4},
        ("threads", "AVX512", 1): {"fold": 60},
        ("other vectors", "AVX2", 2): {"fold": 400, "scatter": 1200},
        ("common", "AVX512 Intel", 2): {"fold": 4, "scatter": 12},
    }


# --- what is fitted --------------------------------------------------------------------------------------------------

# Rows whose times are those of rates that are known; then what the fit says of each, over its time.
FIT = """
import json
import torch
from bench import cost_rows, fit_cost
from symconv_fast.backends.cpu import rates

def estimate(row):
    where, counts = cost_rows.counted(row)
    return 1e9 * rates.seconds(counts, where)

def rows(algorithm, op, **more):
    for shape in cost_rows.SHAPES_2D:
        for tie in ("h", "v", "hv"):
            case = cost_rows.stored_case(2, shape, tie, True)
            row = {"case": case, "op": op, "algorithm": algorithm, "capability": "AVX512", "threads": 2, **more}
            yield {**row, "ns": estimate(row)}

torch.set_num_threads(2)
single = [row for op in ("fprop", "dgrad") for algorithm in ("fold", "expand") for row in rows(algorithm, op)]
half = list(rows("fold", "fprop", dtype="float16"))[::2]  # of all it would have rates of its own
pairs = [row for op in ("fprop", "dgrad") for row in rows("fold", op, dtype="bfloat16")]
tables, factors = fit_cost.fitted(single, half + pairs)
known = dict(rates.FACTORS["AVX512"])
fit_cost.use(tables, factors)
by_kind = {}
for row in single + pairs:
    by_kind.setdefault(cost_rows.counted(row)[0].row, []).append(estimate(row) / row["ns"])
print("RESULT", json.dumps({
    "by_kind": by_kind,
    "factors": {name: [found, known.get(name)] for name, found in factors["AVX512"].items()},
}))
"""


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    """What `FIT` found."""
    pytest.importorskip("scipy", reason="needs scipy")
    done = run_python("-c", FIT, **PINNED)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line[7:])
    return found


def test_the_fit_finds_the_rates_that_rows_were_made_with(fitted: dict[str, Any]) -> None:
    """Estimates for two threads, in the geometric mean of each kind of work, and of most rows by themselves."""
    assert len([kind for kind in fitted["by_kind"] if kind.startswith("bfloat16 ")]) > 1
    assert len(fitted["by_kind"]) > 8
    for kind, ratios in fitted["by_kind"].items():
        logs = torch.tensor(ratios, dtype=torch.float64).log()
        assert abs(float(logs.mean())) < 0.01, kind
        assert float(logs.abs().quantile(0.9)) < 0.25, kind


def test_the_fit_finds_the_factors_that_rows_were_made_with(fitted: dict[str, Any]) -> None:
    """Of the type of which there are few rows; that of which all were measured has rates of its own alone."""
    assert fitted["factors"]
    for name, (found, known) in fitted["factors"].items():
        assert name.startswith("float16 ")
        assert found[0] == pytest.approx(known[0], rel=0.1), name


# --- the files -------------------------------------------------------------------------------------------------------


def test_tables_are_written_as_they_are_read(tmp_path: Path) -> None:
    """Those of the package, byte by byte: every unit in its column, and what they rest on at the top."""
    for file, table, write in (
        (
            rates.RATES_FILE,
            rates.read_rates(),
            lambda *a: rates.write_rates(a[0], native.module.UNITS, *a[1:]),
        ),
        (rates.FACTORS_FILE, rates.read_factors(), rates.write_factors),
    ):
        text = file.read_text(encoding="utf-8")
        notes = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        assert notes
        write(table, notes, tmp_path / file.name)
        assert (tmp_path / file.name).read_text(encoding="utf-8") == text


RATES = """# a note, with commas
vectors,kind,call,activations,pixels/pass,pixels/multiply_adds
AVX2,fold/fprop,100.0,,20.0,0.5
AVX512,fold/fprop,,3.0,,0.25
"""
FACTORS = """# a note
vectors,kind,factor,call
AVX2,float16 fold/fprop/pixels,2.0,1000.0
"""


def test_seconds_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: threads share all but calls and passes; a type without rates has a factor, and a call's own time."""
    for name, text in (("rates", RATES), ("factors", FACTORS)):
        (tmp_path / name).write_text(text)
    table, factors = rates.read_rates(tmp_path / "rates"), rates.read_factors(tmp_path / "factors")
    assert table == {
        "AVX2": {"fold/fprop": {"call": 100.0, "pixels/pass": 20.0, "pixels/multiply_adds": 0.5}},
        "AVX512": {"fold/fprop": {"activations": 3.0, "pixels/multiply_adds": 0.25}},
    }
    assert factors == {"AVX2": {"float16 fold/fprop/pixels": (2.0, 1000.0)}}
    monkeypatch.setattr(rates, "RATES", table)
    monkeypatch.setattr(rates, "FACTORS", factors)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    work = {"call": 1, "activations": 8, "pixels/pass": 2, "pixels/multiply_adds": 800, "not measured": 9}
    for vectors, dtype, nanoseconds in (
        ("AVX2", torch.float32, 100 + 40 + 400 / 4),
        ("AVX2", torch.float16, 100 + 40 + 1000 + 2 * 400 / 4),
        ("AVX512", torch.float32, (24 + 200) / 4),
        ("NEON", torch.float32, 100 + 40 + 400 / 4),  # nothing was measured of them
    ):
        monkeypatch.setattr(rates, "capability", lambda vectors=vectors: vectors)
        place = rates.Place("fold/fprop", "float16 fold/fprop", "float16 fold/fprop/pixels", dtype)
        assert rates.seconds(work, place) == pytest.approx(1e-9 * nanoseconds), (vectors, dtype)


def test_rows_of_a_maker_come_before_those_of_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """For CPUs of this maker alone; kinds that were not measured there are as elsewhere."""
    table = {
        "AVX2": {"fold/fprop": {"call": 1.0}},
        "AVX512": {"fold/fprop": {"call": 2.0}, "scatter/fprop": {"call": 3.0}},
        "AVX512 Intel": {"fold/fprop": {"call": 4.0}, "fold/wgrad": {"call": 5.0}},
    }
    monkeypatch.setattr(rates, "RATES", table)
    for whose, calls in (
        ("AVX512 Intel", {"fold/fprop": 4, "scatter/fprop": 3, "fold/wgrad": 5}),
        ("AVX512 AMD", {"fold/fprop": 2, "scatter/fprop": 3, "fold/wgrad": 0}),
        ("AVX512", {"fold/fprop": 2, "scatter/fprop": 3, "fold/wgrad": 0}),
        ("AVX2 Intel", {"fold/fprop": 1, "scatter/fprop": 0, "fold/wgrad": 0}),
        ("DEFAULT Intel", {"fold/fprop": 1, "scatter/fprop": 0, "fold/wgrad": 0}),
    ):
        for name in ("_isa", "_maker", "_torchs", "_tiles_of_torch"):
            monkeypatch.setattr(rates, name, getattr(rates, name))
        rates.assume(whose)
        for kind, call in calls.items():
            place = rates.Place(kind, "", "", torch.float32)
            assert rates.seconds({"call": 1}, place) == pytest.approx(1e-9 * call), (whose, kind)
            assert rates.is_known(kind) == bool(call), (whose, kind)
