# The demonstration: that it runs and prints nothing else, and what it says of ratios that are not to be believed.

from __future__ import annotations

import json

import pytest
from fake_rows import row, run_python

from bench import rows
from symconv_fast import dispatch

for module in ("sklearn", "tqdm", "matplotlib"):
    pytest.importorskip(module, reason=f"needs {module}")

# The demo pins threads before torch is loaded, so it runs in a process of its own. One small layer, few images.
RUN = """
import sys
sys.path.insert(0, "examples")
import demo
every = demo.digits
demo.digits = lambda: tuple(part[:192] for part in every())
demo.LAYERS = {"4x256@14": "hv"}
sys.argv = ["demo", "--seeds", "2", "--epochs", "1", "--seconds", "0.01", "--output", sys.argv[1]]
demo.main()
"""
SAY = """
import json, sys
sys.path.insert(0, "examples")
import demo
nets = demo.networks()
for net, right, weights in zip(nets.values(), (0.98, 0.99), (4000, 1000)):
    net.accuracy, net.epochs, net.parameters, net.macs = [right, right], [1.0], weights, 10 * weights
for networks, layers in json.loads(sys.argv[1]):
    parts = [demo.network_table(nets, networks), demo.layer_table(layers)]
    parts.append(demo.withheld([*networks.values(), *layers]))
    print(json.dumps([*parts, demo.closing(nets, networks, layers)]))
"""


def test_it_runs_and_prints_nothing_else(tmp_path):
    done = run_python("-c", RUN, str(tmp_path), OMP_WAIT_POLICY="passive")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "demo.txt").read_text()
    assert done.stdout.startswith(written)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    for words in (
        "4x64@56 is a batch of 4",
        "test digits read right (2 runs)",
        "4x256@14",
        "Shown: with its filters tied",
    ):
        assert words in written
    assert max(map(len, written.splitlines())) <= 105
    bars = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    noise = [line for line in bars if not line.startswith(("training:", "single layers:"))]
    assert not noise or "cpu" not in dispatch.available()


def layer(ratio: float, **other: object) -> rows.Row:
    return row("4x64@56", ratio, **{"config": {}, "waited": 0.0, **other})


def said(*measured: tuple[rows.Row, rows.Row, list[rows.Row]]) -> list[list[str]]:
    """Tables, the line on what is withheld and the closing one, for rows of epoch, batch and layers each."""
    given = json.dumps([[{"epoch": epoch, "batch": batch}, layers] for epoch, batch, layers in measured])
    done = run_python("-c", SAY, given)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def net(ratio: float, **other: object) -> rows.Row:
    timings = {"ours": [1000.0] * 3, "torch": [1000.0 * ratio] * 3}
    return layer(ratio, baseline="torch", timings=timings, limit=4, **other)


def test_ratios_in_doubt_are_withheld_with_a_reason_and_what_to_do():
    step = {"pass": "step"}
    quiet = net(1.8), net(1.7), [layer(1.9), layer(1.5, **step)]
    noisy = {"ours": [0.4, 1.0, 1.6], "expanded/contiguous": [1.0, 1.0, 1.0]}
    busy = (
        net(1.8, waited=0.4),
        net(1.7, waited=0.5),
        [layer(8.56, waited=0.6), layer(1.5, waited=0.1, **step)],
    )
    shared = net(1.8), net(1.7), [layer(1.9, timings=noisy), layer(9.59, **step)]
    little = net(1.8), net(1.7), [layer(1.9, waited=0.15), layer(1.5, **step)]
    found = said(quiet, busy, shared, little)

    networks, layers, why, closing = found[0]
    assert networks.splitlines()[1].split("  ")[-1] == "99.0 ± 0.0 %"
    assert "4.0 times fewer" in networks
    assert networks.splitlines()[4].split()[-6:] == ["1.80", "1.00", "1.80", "times", "as", "fast"]
    assert layers.splitlines()[1].split() == [
        "4x64@56",
        "ResNet",
        "h",
        "2",
        "1.90",
        "1.00",
        "1.90",
        "1.50",
        "1.00",
        "1.50",
    ]
    assert why == ""
    assert closing == (
        "Shown: with its filters tied in quadruples the network reads 99.0 % of new digits right (ordinary: 98.0 %) "
        "with 4.0 times fewer weights; it trains 1.8 times as fast and single layers run 1.9 to 1.9 times as fast as "
        "torch's."
    )

    networks, layers, why, closing = found[1]
    assert networks.count("withheld") == 2
    assert "8.56" not in layers
    assert layers.splitlines()[1].split() == [
        "4x64@56",
        "ResNet",
        "h",
        "2",
        "-",
        "-",
        "withheld",
        "1.50",
        "1.00",
        "1.50",
    ]
    assert why == (
        "3 of 4 ratios are withheld, because the machine is busy (this program waited for a core 60% of the time). "
        "Close other programs and run `make demo` again."
    )
    assert closing.endswith("; how much faster it is could not be measured on this busy machine.")

    why = found[2][2]
    assert why.startswith(
        "2 of 4 ratios are withheld, because the times varied too much and it came out larger than"
    )
    assert why.endswith("run `make demo` again at a quieter time.")
    assert found[3][2].startswith(
        "The machine is a little busy (this program waited for a core 15% of the time)"
    )
