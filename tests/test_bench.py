# The benchmark itself: its statistics, what it asks of other packages, and that it refuses to time a wrong result.

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from fake_rows import run_python

from bench import device, peaks

ROOT = Path(__file__).resolve().parent.parent
# Passive: on a busy machine, threads that spin take the time from those that they wait for.
PINNED = {
    "OMP_NUM_THREADS": "2",
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
    "OMP_WAIT_POLICY": "passive",
}

# The benchmark pins threads before torch is loaded, so it measures in a process of its own.
MEASURE = """
import json
from bench import cases, measure, models, peaks
from bench.case import Case
from bench.device import device
from bench.shapes import Shape
import torch

peaks.SECONDS, peaks.COPY_BYTES = 0.01, {"cpu": 1 << 20}
small, deep = Shape("test", 8, (6, 7)), Shape("test", 8, (6, 7), depthwise=True)

def show(name, run):
    try:
        result = run()
    except Exception as error:
        result = {"error_type": type(error).__name__, "message": str(error)}
    print("RESULT", json.dumps({"name": name, **result}))

for direction in ("fwd", "dgrad", "wgrad", "step"):
    show(direction, lambda: cases.run(Case(small, "hv", direction), 0.01))
    show(f"depthwise {direction}", lambda: cases.run(Case(deep, "h", direction), 0.01))
    show(f"both sides {direction}", lambda: cases.run(Case(small, "hv", direction, input_tie="hv"), 0.01))
    show(f"odd {direction}", lambda: cases.run(Case(small, "h-", direction), 0.01))
show("even", lambda: cases.run(Case(Shape("test", 8, (6, 7), kernel=5), "h+"), 0.01))
show("even depthwise", lambda: cases.run(Case(deep, "h+"), 0.01))
show("other strand", lambda: cases.run(Case(Shape("test", 4, (20,), 8, kernel=7), "h", input_tie="rc"), 0.01))
show("bfloat16", lambda: cases.run(Case(small, "h", dtype=torch.bfloat16), 0.01))
show("rivals", lambda: cases.run(Case(small, "hv", "fwd"), 0.01, memory=False, rivals_only=True))
show("pinned", lambda: cases.run(Case(small, "h", algorithm="expand"), 0.01))
show("reference", lambda: cases.run(Case(small, "h", backend="reference"), 0.01))
show("cannot run", lambda: cases.run(Case(Shape("test", 8, (6, 7), kernel=5), "h", algorithm="winograd"), 0.01))
tiny = models.Model("tiny", lambda conv: models.networks.UNet(conv, 2, 3, 2, (8, 16)), 3, (8, 8))
for direction in ("fwd", "step"):
    bench = models.ModelBench(models.ModelCase(tiny, "hv", direction))
    show(f"model {direction}", lambda: measure.measure(bench.comparison(), 0.01))

right = cases.CONV[2]
cases.CONV[2] = lambda x, w, *a, **k: right(x, w, *a, **k) * (
    2 if x.dtype == torch.float32 and w.shape[0] == 8 and w.is_contiguous() else 1
)
show("wrong baseline", lambda: cases.run(Case(small, "h"), 0.01))
cases.CONV[2] = right

ours = cases.Bench.ours
def wrong(self):
    good = ours(self)
    spoiled = lambda x, *_: [y * (1 + 1e-3) for y in good.run(x)]
    return cases.Row(spoiled, good.input, good.parameters, good.upstream)
cases.Bench.ours = wrong
for direction in ("fwd", "dgrad", "wgrad", "step"):
    show(f"wrong {direction}", lambda: cases.run(Case(small, "hv", direction), 0.01))
    show(f"wrong odd {direction}", lambda: cases.run(Case(small, "h-", direction), 0.01))
bench = models.ModelBench(models.ModelCase(tiny, "hv", "fwd"))
with torch.no_grad():
    next(bench.ours.network.parameters()).mul_(1.01)
show("wrong model", lambda: measure.measure(bench.comparison(), 0.01))

taken = []
def once(call):
    taken.append(call())
    return 1_000_000
calls = {"a": lambda: "a", "b": lambda: "b"}
timing = measure.interleave(calls, seconds=0.06, once=once)
def mebibyte_for_a_kibibyte():
    held = torch.empty(1 << 18)
    return torch.empty(1 << 8)

show("memory", lambda: {"bytes": device("cpu").peak_extra_bytes(mebibyte_for_a_kibibyte)})
show("interleave", lambda: {"order": "".join(taken), "p50": timing["a"].p50})
taken.clear()
measure.interleave(calls, seconds=0.001, once=once)
show("interleave slow", lambda: {"order": "".join(taken)})
taken.clear()
counted = measure.Comparison(
    "x", {}, {"ours": lambda: taken.append("a"), "b": lambda: None}, ("b",), lambda: measure.Verdict(1.0), 1, 1, 1, 1, 1
)
show("rehearsal", lambda: measure.measure(counted, 10.0, memory=False, rehearsal=True) and {"calls": len(taken)})
"""


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, object]]:
    """What the script above found, by name."""
    done = run_python("-c", MEASURE, **PINNED)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {line["name"]: line for line in lines}


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["fwd", "dgrad", "wgrad", "step"])
@pytest.mark.parametrize("kind", ["", "depthwise "])
def test_measures_right_results(results, kind, direction):
    row = results[kind + direction]
    timings = row["timings"]
    rivals = [name for name in timings if name.startswith("expanded/") or name == "separate"]
    assert len(rivals) == (3 if kind else 2)
    assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ms_p50"])
    assert row["baseline_ms"] == min(timings[name][1] for name in rivals)
    assert row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
    assert row["gmacs_dense"] == pytest.approx(row["limit"] * row["gmacs_folded"])
    assert row["limit"] == (2 if kind else 4)
    assert row["peak_extra_bytes"] > 0  # at least the packed weight
    assert row["peak_gflops"] > 0
    assert row["waited"] is None or 0 <= row["waited"] <= 1
    assert {"expand inside", "ordinary", "ours"} <= set(timings)


@pytest.mark.parametrize("direction", ["fwd", "dgrad", "wgrad", "step"])
@pytest.mark.parametrize(("kind", "limit"), [("both sides", 4), ("odd", 3)])
def test_measures_equivariant_layers(results, kind, limit, direction):
    row = results[f"{kind} {direction}"]
    assert row["family"] == "equivariant"
    assert row["tie"] == {"both sides": "hv>hv", "odd": "h-"}[kind]
    assert row["limit"] == pytest.approx(limit)
    assert row["gmacs_dense"] == pytest.approx(limit * row["gmacs_folded"])
    assert row["baseline"].startswith("expanded/")


def test_the_limit_of_self_symmetric_filters_is_that_of_their_taps(results):
    assert results["even"]["limit"] == pytest.approx(5 / 3)
    assert results["even depthwise"]["limit"] == pytest.approx(3 / 2)
    assert (
        "separate" not in results["even depthwise"]["timings"]
    )  # torch is quick where each channel has one filter
    assert (results["other strand"]["tie"], results["other strand"]["limit"]) == ("rc>h", 2)


def test_extra_memory_is_what_is_held_beyond_the_result(results):
    assert results["memory"]["bytes"] == 1 << 20


def test_counts_multiplications_and_bytes(results):
    # 8 x 8 x 3 x 3 filters of one image of 6 x 7, a quarter of them free; float32.
    seconds = results["fwd"]["ms_p50"] * 1e-3
    assert results["fwd"]["gmacs_dense"] * 1e9 * seconds == pytest.approx(42 * 8 * 72)
    assert results["fwd"]["gbytes"] * 1e9 * seconds == pytest.approx(4 * (2 * 8 * 42 + 2 * 72))
    step = results["step"]["ms_p50"] * 1e-3
    assert results["step"]["gmacs_dense"] * 1e9 * step == pytest.approx(3 * 42 * 8 * 72)


@pytest.mark.parametrize("direction", ["fwd", "dgrad", "wgrad", "step"])
@pytest.mark.parametrize("kind", ["", "odd "])
def test_refuses_wrong_results(results, kind, direction):
    assert results[f"wrong {kind}{direction}"]["error_type"] == "AssertionError"
    assert "is not timed" in results[f"wrong {kind}{direction}"]["message"]


def test_a_wrong_baseline_does_not_count(results):
    row = results["wrong baseline"]
    assert row["wrong_baselines"] == ["expanded/contiguous"]
    assert row["baseline"] == "expanded/channels_last"


def test_pins_hold_and_are_part_of_the_row(results):
    assert results["pinned"]["algorithm"] == results["pinned"]["algorithm_pin"] == "expand"
    assert results["reference"]["backend"] == results["reference"]["backend_pin"] == "reference"
    assert results["cannot run"]["error_type"] == "CannotRunError"
    assert results["bfloat16"]["dtype"] == "bfloat16"


def test_onednn_is_timed_where_torch_leaves_it(results):
    # A map this small goes to a kernel of torch's own, in both runs; a gradient has no such comparison.
    assert "onednn" in results["fwd"]["timings"]
    assert results["fwd"]["baseline"] != "onednn"
    assert "onednn" not in results["step"]["timings"]


def test_nothing_but_rivals_is_timed_where_that_is_asked(results):
    assert set(results["rivals"]["timings"]) == {"ours", "expanded/contiguous", "expanded/channels_last"}


@pytest.mark.parametrize("direction", ["fwd", "step"])
def test_measures_networks(results, direction):
    row = results[f"model {direction}"]
    assert row["family"] == "model"
    assert row["parameters"] < row["baseline_parameters"] / 2
    assert row["baseline"] in ("torch/contiguous", "torch/channels_last")
    assert 1.5 < row["gmacs_dense"] / row["gmacs_folded"] < 4  # the 1 x 1 head and 2 classes are not tied


def test_refuses_wrong_networks(results):
    assert "is not timed" in results["wrong model"]["message"]


def test_calls_are_timed_in_turns(results):
    # Three warm-up runs of each, then rounds of three runs each in an order that is drawn anew.
    warm, rounds = results["interleave"]["order"][:6], results["interleave"]["order"][6:]
    assert warm == "aabbab"
    assert {rounds[i : i + 6] for i in range(0, len(rounds), 6)} == {"aaabbb", "bbbaaa"}
    assert results["interleave"]["order"].count("a") == 3 + 3 * 10
    assert results["interleave"]["p50"] == pytest.approx(1.0)
    warm, rounds = results["interleave slow"]["order"][:6], results["interleave slow"]["order"][6:]
    assert warm == "aabbab"
    assert len(rounds) == 12
    assert {rounds[i : i + 2] for i in range(0, 12, 2)} <= {"ab", "ba"}


def test_a_rehearsal_calls_twice(results):
    assert results["rehearsal"]["calls"] == 2  # to see how long a round takes, and the round


def test_refuses_threads_that_are_not_pinned():
    done = run_python("-c", "import torch, bench.threads")
    assert done.returncode != 0
    assert "OMP_PROC_BIND=close" in done.stderr


def test_the_profiler_that_watches_memory_says_nothing():
    code = (
        "import bench.threads; from bench import device; import torch; "
        "print(device.device('cpu').peak_extra_bytes(lambda: torch.ones(8)))"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_keeps_freed_memory():
    """Else a large result is new memory for every call, and each of its pages a fault."""
    count = (
        "import sys, resource\n"
        "if sys.argv[1:]: import bench.threads\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for i in range(4):\n"
        "    before = faults(); block = b'x' * (64 << 20); del block\n"
        "print(faults() - before)\n"
    )
    assert int(run_python("-c", count).stdout) > 1000 > int(run_python("-c", count, "kept").stdout)


def test_peaks_are_of_the_fastest_candidate(monkeypatch):
    monkeypatch.setattr(peaks, "SECONDS", 0.0)
    monkeypatch.setattr(peaks, "COPY_BYTES", {"cpu": 1 << 10})
    monkeypatch.setattr(
        peaks, "_candidates", lambda kind, dtype: iter([("slow", 1e9, None), ("fast", 3e9, None)])
    )
    monkeypatch.setattr(peaks, "_fastest", lambda kind, call: 0.5)
    found = peaks.peaks.__wrapped__("cpu", torch.float32)
    assert found == peaks.Peaks(6.0, "fast", 2 * 1024 / 0.5 * 1e-9)


class FakeCuda(device.Cuda):
    """CUDA's choice between events and graphs, without a device."""

    def __init__(self, times: dict[str, int], capturable: set[str]) -> None:
        self.times, self.capturable = times, capturable

    def once(self, call):
        return self.times[call()]

    def _graph(self, call):
        return (lambda: "graph of " + call()) if call() in self.capturable else None


@pytest.mark.parametrize(
    ("times", "capturable", "how"),
    [
        ({"a": 50_000, "b": 900_000}, {"a", "b"}, "graph"),
        ({"a": 50_000, "b": 900_000}, {"a"}, "events"),  # never a graph against plain calls
        ({"a": 500_000, "b": 900_000}, {"a", "b"}, "events"),
    ],
)
def test_cuda_replays_short_calls_all_or_none(times, capturable, how):
    calls, timer = FakeCuda(times, capturable).prepare({"a": lambda: "a", "b": lambda: "b"})
    assert timer == how
    assert calls["a"]() == ("graph of a" if how == "graph" else "a")


@pytest.mark.parametrize(("name", "error"), [("tpu", ValueError), ("cuda", RuntimeError)])
def test_devices_that_are_not_there(name, error):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(error, match=name):
        device.device(name)


# --- other packages --------------------------------------------------------------------------------------------------

PEERS = """
import sys, types
from bench import peers
import torch

sys.argv = "peers --size 9 --batch 1 --widths 8,16 --seconds 0.01 --symmetry hv --markdown".split()
for package in peers.SPACES:
    sys.modules[package + ".nn"] = None
peers.main()
print(peers.Peer.places(types.SimpleNamespace(symmetry="hv"), 8).tolist())
one = peers.tied("hv", [8, 16])
x = torch.randn(1, 3, 9, 9)
print(peers.difference(one, one, x), peers.difference(one, peers.tied("hv", [8, 16]), x) > 0.1)
"""


def test_peers_that_are_missing_are_named_and_the_others_measured():
    done = run_python("-c", PEERS, **PINNED)
    assert done.returncode == 0, done.stderr
    *_, places, difference = lines = done.stdout.splitlines()
    assert sum("does not run here: ModuleNotFoundError" in line for line in lines) == 2
    measured = {line.split(" | ")[0]: line.split(" | ")[1] for line in lines if line.startswith("| ")}
    linear, norm = 10 * 16 + 10, 2 * (8 + 16)
    assert measured["| ordinary"] == f"{9 * (3 * 8 + 8 * 16) + norm + linear:,}"
    assert measured["| symconv_fast"] == f"{(9 * (3 * 8 + 8 * 16) + norm + 10 * 16) // 4 + 10:,}"
    # No mirror, left to right, top to bottom, both; there the rotation is second, that left to right third.
    assert places == str([0, 4, 2, 6, 3, 7, 1, 5])
    assert difference == "0.0 True"
