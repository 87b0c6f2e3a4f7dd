# What is made of the benchmark's rows: tables, targets, plots, and what became slower.

from __future__ import annotations

import json
import re

import pytest
import torch
from fake_rows import ROOT, row, run_python, some_rows

from bench import case, compare, plan, regions, report, rows, targets

# --- rows and targets ------------------------------------------------------------------------------------------------


def test_rows_are_stored_and_the_last_one_counts(tmp_path):
    path = tmp_path / "results" / "a.jsonl"
    for ratio in (1.0, 3.0):
        rows.append(path, row("4x64@56", ratio))
    rows.append(path, row("4x64@56", 2.0, tie="v"))
    assert [r["ratio"] for r in rows.latest(rows.load(path))] == [3.0, 2.0]


@pytest.mark.parametrize("line", ["{", '{"shape": "4x64@56"}', "[1]"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row("4x64@56", 1.0)) + f"\n{line}\n")
    with pytest.raises(ValueError, match="line 2: not a row"):
        rows.load(path)


def test_targets_are_means_over_their_cases():
    first = targets.CPU[0]
    measured = [
        case.facts() | {"ratio": ratio} for case, ratio in zip(first.cases, (2, 4, 2, 4, 2.83), strict=True)
    ]
    found = targets.achieved(measured)[0]
    assert (found.mean, found.worst) == (pytest.approx(2.83, abs=0.01), 2)
    assert found.verdict == "must"
    assert targets.achieved(measured[:2])[0].verdict == "2 of 5 cases"
    assert targets.achieved([row("9x9@9", 1.0)])[0].verdict == "not measured"
    for factor, verdict in ((0.5, "MISSED"), (2.0, "goal")):
        scaled = [r | {"ratio": r["ratio"] * factor} for r in measured]
        assert targets.achieved(scaled)[0].verdict == verdict


def test_pinned_rows_do_not_stand_for_free_ones():
    pinned = [c.facts() | {"ratio": 9.0} for c in targets.CPU[0].cases]
    pinned = [r | {"algorithm_pin": "scatter"} for r in pinned]
    verdicts = {a.target.name: a.measured for a in targets.achieved(pinned)}
    assert verdicts["forward, h"] == 0
    assert verdicts["forward without Winograd, h"] == 5


def test_case_names_are_distinct():
    names = [wanted.name for kind in plan.KINDS for wanted in plan.cases(kind, plan.Options(full=True))]
    assert len(set(names)) == len(names)
    assert case.dtype_name(torch.bfloat16) == "bfloat16"


# --- reports ---------------------------------------------------------------------------------------------------------


def test_summary_has_mean_over_its_shapes_and_worst_over_all():
    (group,) = report.summary(some_rows())
    assert group["mean"] == pytest.approx(2.0)
    assert group["shapes"] == 2
    assert (group["worst"], group["worst_shape"]) == (0.5, "1x512@7")


def test_text_lists_what_is_slower():
    slow = "0.50  1x512@7 h forward channels_last float32"
    assert f"below 1.00: \n  {slow}\n" in report.text(some_rows())
    assert "below 1.00: nothing" in report.text(some_rows()[:2])
    assert f"below 0.97:\n  {slow}\n" in report.targets_text(some_rows())
    assert "below" not in report.targets_text(some_rows()[:2])


def test_what_users_read_does_not_speak_of_targets():
    measured = [r | {"peak_extra_bytes": 1 << 40} for r in some_rows()]
    text = report.text(measured)
    assert not re.search("(?i)target|must|goal|missed|allowed", text)
    assert re.search("1.00 +50% ", text)  # of the limit
    for word in ("must", "goal", "MISSED"):
        assert word in report.targets_text(measured)


def test_what_is_less_exact_and_what_takes_memory_is_listed():
    inexact, *rest = some_rows()
    assert "2.5  4x64@56 h forward channels_last" in report.text([inexact | {"error": 2.5}, *rest])
    limit = int(targets.memory_limit(inexact))
    large = report.targets_text([inexact | {"peak_extra_bytes": limit + 1}, *rest])
    assert f"more extra memory than allowed:\n  {limit >> 10} KiB  4x64@56 h" in large
    network = {"family": "model", "error": 2.5, "peak_extra_bytes": limit + 1}
    for fine in ([*some_rows(), inexact | network], [inexact | {"peak_extra_bytes": limit}, *rest]):
        plain = report.text(fine) + report.targets_text(fine)
        assert "less exact" not in plain
        assert "more extra memory" not in plain


def test_memory_may_be_a_tenth_of_the_activations_or_torchs_or_caches_and_weights():
    row = some_rows()[0] | {"threads": 3, "activation_bytes": 100 << 20, "baseline_peak_extra_bytes": None}
    row |= {"filter_bytes": 3 << 20, "limit": 4}
    assert targets.memory_limit(row) == 10 << 20
    assert targets.memory_limit(row | {"baseline_peak_extra_bytes": 11 << 20}) == 11 << 20
    expanding = {"baseline_peak_extra_bytes": 11 << 20, "algorithm": "expand+fold"}
    assert targets.memory_limit(row | expanding) == 17 << 20  # the filters, and their gradient
    assert (
        targets.memory_limit(row | {"activation_bytes": 1 << 20}) == 4 << 20
    )  # a third of the filters, packed


def test_equivariant_layers_have_a_table_of_their_own():
    both = row("4x64@56", 1.9, family="equivariant", tie="h>h")
    even = [
        row(f"4x{c}@56", 1.4, family="equivariant", tie="h+", limit=limit)
        for c, limit in ((8, 1.5), (9, 251 / 126))
    ]
    text = regions.shapes_region([*some_rows(), both, *even])
    assert "\nForward, float32: ratio" in text
    title, table = text.partition("\nForward, float32, equivariant layers: ratio")[1:]
    assert title
    assert "| shape | layout | h+ | h>h |" in table
    assert "| 4x64@56 | channels_last |  | 1.90 (1.00, fold) |" in table
    means = regions.means_region([both, *even])
    assert (
        "| equivariant | forward | h>h | channels_last | float32 | - | 1.90 | 1 | 2 | 1.90 | 4x64@56 |"
        in means
    )
    assert "| equivariant | forward | h+ | channels_last | float32 | - | 1.40 | 2 | 1.5 to 1.99 |" in means


def test_memory_table_has_what_exceeds_a_tenth_of_the_activations_and_torchs():
    one, two, three = (row | {"peak_extra_bytes": extra} for row, extra in zip(some_rows(), (10, 40, 60)))
    text = regions.memory_region([one, two, three | {"baseline_peak_extra_bytes": 70}])
    assert "1 of 3 cases hold at most 10% of their activations beside them, 1 more at most what torch" in text
    assert "Of the others, below, 0 hold more than 1 MiB a thread and the packed weight" in text
    table = text.split("\n\n")[2]
    assert "4x128@28" in table  # 40 of 100 bytes
    assert "1x512@7" not in table
    assert "4x64@56" not in table
    assert "extra memory of a layer, of its limit | 100% | - | 0% | must" in regions.targets_region(
        [one, two]
    )
    over = two | {"peak_extra_bytes": int(2 * targets.memory_limit(two))}
    assert "| 100% | - | 200% | MISSED" in regions.targets_region([one, over])
    unknown = [row | {"peak_extra_bytes": None} for row in some_rows()]
    assert "not measured" in regions.memory_region(unknown)


def test_text_says_when_the_machine_was_busy():
    first, *rest = some_rows()
    assert "BUSY" in report.text([first, *rest, row("9x9@9", 1.0, load=3.1)])
    assert "BUSY" not in report.text([first, *rest, row("9x9@9", 1.0, load=2.9)])


def test_text_says_when_the_machine_was_busy_by_the_time_that_threads_waited():
    """Where a row tells it, that counts and not the load: it lags, and a build just before is in it."""
    first, *rest = some_rows()
    assert "BUSY" in report.text([first, *rest, row("9x9@9", 1.0, waited=0.11)])
    assert "BUSY" not in report.text([first, *rest, row("9x9@9", 1.0, load=9.0, waited=0.09)])


def test_text_lists_what_varied():
    first, *rest = some_rows()
    noisy = {"ours": [0.4, 1.0, 1.6], "expanded/contiguous": [1.0, 1.0, 1.0]}
    text = report.text([first | {"timings": noisy}, *rest])
    assert re.search(r"varied while they were measured:\n +±30%  4x64@56 h forward", text)
    assert "varied" not in report.text(some_rows())


def test_text_tells_the_ratio_to_onednn():
    first, *rest = some_rows()
    timings = first["timings"] | {"onednn": [0.4, 0.5, 0.6]}
    assert "0.50 instead of 1.00" in report.text([first | {"timings": timings}, *rest])
    assert "oneDNN" not in report.text(rest)


def test_regions_are_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    stale = "".join("{}\nstale\n{}\nbetween\n".format(*regions.markers(name)) for name in regions.REGIONS)
    readme.write_text(f"before\n{stale}after\n")
    network = row("1x3@224x224", 2.0, family="model", model="VGG-16", parameters=2e6, baseline_parameters=4e6)
    regions.into(readme, [*some_rows(), network])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("between\nafter\n")
    assert "stale" not in text
    assert "| 2-D | forward | h | channels_last | float32 | - | 2.00 | 2 | 2 | 0.50 | 1x512@7 |" in text
    assert "| forward, h | 2.2 | 3.2 | 2.00 | 2 of 5 cases | 1.00 | 4x64@56 |" in text
    assert "| any single case | 0.97 | 1.0 | 0.50 | MISSED |" in text
    assert "1 of 4 cases are below 1.00" in text
    assert "| 4x128@28 | channels_last | 4.00 (1.00, fold) |" in text
    assert (
        "| VGG-16 | 1x3@224x224 | h | forward | float32 | 1.0 | 2.0 | 2.00 | 2.00 of 4.00 million |" in text
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing\n", "has no region"),
        (
            "<!-- bench:other:begin -->\n<!-- bench:other:end -->\n",
            "no region 'other'; there are short, means",
        ),
        ("<!-- bench:means:begin -->\n", "exactly one region"),
    ],
)
def test_regions_that_do_not_fit_are_errors(tmp_path, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        regions.into(readme, some_rows())
    assert readme.read_text() == text


def test_project_has_every_region_once():
    readme, docs = (ROOT / "README.md").read_text(), (ROOT / "docs/benchmark.md").read_text()
    for name in regions.REGIONS:
        home, other = (readme, docs) if name == "short" else (docs, readme)
        for marker in regions.markers(name):
            assert home.count(marker) == 1
            assert marker not in other


def test_the_short_table_has_the_means_that_matter_and_a_network():
    groups = [("2-D", "fwd", "h"), ("2-D", "fwd", "hv"), ("3-D", "fwd", "hvz"), ("2-D", "step", "hv")]
    groups += [
        ("depthwise", "fwd", "hv"),
        ("2-D", "fwd", "v"),
        ("small", "fwd", "hv"),
        ("depthwise", "step", "hv"),
    ]
    measured = [
        row(
            "9x9@9",
            2.0 + i,
            family=family,
            tie=tie,
            limit=2 ** len(tie),
            capability="AVX512",
            **{"pass": direction},
        )
        for i, (family, direction, tie) in enumerate(groups)
    ]
    measured += [row("9x9@9", 9.0, layout="contiguous"), row("9x9@9", 9.0, algorithm_pin="fold")]
    network = {"family": "model", "model": "ResNet-18", "tie": "hv", "limit": 4, "capability": "AVX512"}
    measured += [row("1x3@9", 7.0, **network, **{"pass": "step"}), row("1x3@9", 8.0, **network)]
    about, table = regions.short_region(measured).split("\n\n")
    assert about == "Geometric means, float32, channels_last; a CPU (AVX512), 2 threads, torch 2, 2026-01-02."
    assert table.splitlines()[2:] == [
        "| forward, 2-D | `h` | 2.00 | 2 | 2.00 |",
        "| forward, 2-D | `hv` | 3.00 | 4 | 3.00 |",
        "| forward, 3-D | `hvz` | 4.00 | 8 | 4.00 |",
        "| training step, 2-D | `hv` | 5.00 | 4 | 5.00 |",
        "| training step, ResNet-18 | `hv` | 7.00 | 4 |  |",
    ]


# --- comparing two runs ----------------------------------------------------------------------------------------------


def many(factor: float = 1.0, **other: object) -> list[rows.Row]:
    return [row(f"4x{c}@56", 2.0 * factor, **other) for c in (16, 32, 64, 128)]


def test_compare_tells_slower_and_faster_from_noise():
    ratios = {"4x16@56": 1.8, "4x32@56": 1.99, "4x64@56": 2.3, "4x128@56": 2.0}
    after = [row(shape, ratio, baseline_ms=2.0) for shape, ratio in ratios.items()]
    changes = compare.compare(many(), after)
    assert [c.row["shape"] for c in changes if c.slower] == ["4x16@56"]
    assert [c.row["shape"] for c in changes if c.faster] == ["4x64@56"]
    assert "-10.0%  ±3.0%  2.00" in compare.text(changes)


def test_compare_does_not_take_noise_for_a_change():
    noisy = {"timings": {"ours": [0.8, 1.0, 1.4], "expanded/contiguous": [1.8, 2.0, 2.2]}}
    assert any(c.slower for c in compare.compare(many(), many(0.9)))
    assert not any(c.slower for c in compare.compare(many(**noisy), many(0.9)))


def test_compare_takes_the_scatter_of_repeated_rows_and_of_baselines_for_noise():
    repeated = [*many(), *many(0.7)]
    assert not any(c.slower for c in compare.compare(repeated, many(0.8)))
    moved = [
        r | {"baseline_ms": r["baseline_ms"] * f} for r, f in zip(many(0.9), (1, 1.4, 0.7, 2), strict=True)
    ]
    assert not any(c.slower for c in compare.compare(many(), moved))


def test_compare_is_not_fooled_by_a_slower_machine():
    slow = {"timings": {"ours": [2.97, 3.0, 3.03], "expanded/contiguous": [5.94, 6.0, 6.06]}}
    after = many(ms_p50=3.0, **slow)
    after = [r | {"baseline_ms": 6.0} for r in after]
    assert not any(c.slower or c.faster for c in compare.compare(many(), after))


def test_compare_from_the_command_line(tmp_path):
    files = [tmp_path / name for name in ("before.jsonl", "after.jsonl", "other.jsonl")]
    for path, measured in zip(
        files, (many(), [*many(0.5), row("1x1@1", 1.0)], [row("9x9@9", 1.0)]), strict=True
    ):
        for r in measured:
            rows.append(path, r)
    worse = run_python("-m", "bench.compare", str(files[0]), str(files[1]))
    assert worse.returncode == 1
    assert "slower: 4 of 4" in worse.stdout
    assert "0 cases only in the first file, 1 only in the second" in worse.stdout
    assert run_python("-m", "bench.compare", str(files[0]), str(files[0])).returncode == 0
    none = run_python("-m", "bench.compare", str(files[0]), str(files[2]))
    assert "no case in common" in none.stderr
