# Faults put on purpose into the patch and Hopper kernels, and what the stand-in for a GPU says of each.
"""Each copy of the sources has one text replaced, and is compiled and run by itself (tests/cuda_patch/main.cpp)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import cuda_patch_run
import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PAIRS, QUADRUPLES, GROUPS = "h32s", "hv16p", "whv32"
WRONG = "WRONG"

FAULTS = {  # name -> (tile, file, old text, new text, what is said)
    "no swizzle": (PAIRS, "patch/tile.h", "(column >> T::kKeyShift)", "(column * 0)", "bank conflict"),
    "halo a row off": (PAIRS, "patch/tile.h", "at.row + row - 1", "at.row + row", WRONG),
    "beyond the last column": (
        PAIRS,
        "patch/tile.h",
        "x < p.width;",
        "x <= p.width;",
        "copy outside of the registered buffers",
    ),
    "orbits in another order": (
        PAIRS,
        "patch/tile.h",
        "inside % T::kTogether / 2, e",
        "inside % T::kTogether % 2, e",
        "store where thread .* has written",
    ),
    "neighbouring rows in a fragment": (
        PAIRS,
        "patch/warp.h",
        "(matrix & 1) * (T::kRows / 2)",
        "(matrix & 1)",
        WRONG,
    ),
    "matrices of a fragment exchanged": (
        PAIRS,
        "patch/warp.h",
        "i + (at.column + kw), matrix >> 1",
        "i + (at.column + kw), matrix & 1",
        WRONG,
    ),
    "a sign of the butterfly": (PAIRS, "patch/sums.h", "even - odd", "odd - even", WRONG),
    "a slice of the epilogue": (
        PAIRS,
        "patch/sums.h",
        "g * p.orbits + r * run)",
        "g * p.orbits + (r + 1) * run)",
        "store outside of the registered buffers|store where thread",
    ),
    "a row of the epilogue": (
        PAIRS,
        "patch/sums.h",
        "if (row < rows)",
        "if (row <= rows)",
        "store outside of the registered buffers",
    ),
    "a tap of the weights": (
        QUADRUPLES,
        "patch/warp.h",
        "multiply_rows(weight, 3, 1, difference)",
        "multiply_rows(weight, 4, 1, difference)",
        WRONG,
    ),
    "a row of the fold": (QUADRUPLES, "patch/warp.h", "rows[q + 2][e]);", "rows[q + 1][e]);", WRONG),
    "a level of the fold of the weights": (QUADRUPLES, "patch/fold.h", "0.5f * kFold<E>", "kFold<E>", WRONG),
    "channels beyond the last": (
        PAIRS,
        "patch/kernels.cuh",
        "< p.chunks ? 16 : 0",
        "< p.chunks ? 16 : 16",
        "copy outside of the registered buffers",
    ),
    "no barrier": (
        PAIRS,
        "patch/kernels.cuh",
        "      barrier();\n",
        "",
        "read without a barrier after the write",
    ),
    "barrier behind the copies": (
        PAIRS,
        "patch/kernels.cuh",
        "      barrier();\n      loader.issue();",
        "      loader.issue();\n      barrier();",
        "write without a barrier after the read",
    ),
    "copies not waited for": (
        PAIRS,
        "patch/kernels.cuh",
        "copy_wait<T::kStages - 2>()",
        "copy_wait<T::kStages - 1>()",
        "read of a copy that was not waited for",
    ),
    "a group not committed": (
        PAIRS,
        "patch/kernels.cuh",
        "loader.issue();\n      copy_commit();",
        "loader.issue();",
        "read of a copy that was not waited for",
    ),
    "misaligned copy": (
        PAIRS,
        "patch/kernels.cuh",
        "copy16(to + copy.y,",
        "copy16(to + copy.y + 8,",
        "copy is not aligned",
    ),
    "copy beyond the weights": (
        PAIRS,
        "patch/kernels.cuh",
        "* p.steps + step)",
        "* p.steps + step + 1)",
        "copy outside of the registered buffers",
    ),
    "copy beyond shared memory": (
        PAIRS,
        "patch/kernels.cuh",
        "w_to = to + T::kHaloBytes",
        "w_to = to + T::kStageBytes",
        "copy outside of shared memory",
    ),
    "no zeros outside of the map": (PAIRS, "patch/kernels.cuh", "source < 0 ? 0 : bytes", "bytes", WRONG),
    "stages out of turn": (
        PAIRS,
        "patch/kernels.cuh",
        "stage + 1 == T::kStages ? 0",
        "stage + 2 == T::kStages ? 0",
        "read of a copy that was not waited for",
    ),
    "misaligned ldmatrix": (
        PAIRS,
        "patch/warp.h",
        "matrix & 1) + T::kHaloBytes",
        "matrix & 1) + T::kHaloBytes + 4",
        "ldmatrix is not aligned",
    ),
    "another swizzle": (
        GROUPS,
        "hopper/group.h",
        "(address >> 3) & 48",
        "(address >> 4) & 48",
        "ldmatrix: bank conflict",
    ),
    "a row of the fold of groups": (GROUPS, "hopper/group.h", "rows[q + 2][e]);", "rows[q + 1][e]);", WRONG),
    "stage let go of too early": (
        GROUPS,
        "hopper/pipeline.h",
        "      sums.multiply(stages",
        "      if (lane() == 0) arrive(empty + turn.stage * 8);\n      sums.multiply(stages",
        "write without a barrier after the read",
    ),
    "products in flight when it is let go of": (
        GROUPS,
        "hopper/group.h",
        "    product_wait<0>();\n",
        "",
        "write without a barrier after the read",
    ),
    "full not awaited": (
        GROUPS,
        "hopper/pipeline.h",
        "await(full + turn.stage * 8, turn.phase);",
        "",
        "read of what nobody wrote",
    ),
    "empty not awaited": (
        GROUPS,
        "hopper/pipeline.h",
        "await(empty + turn.stage * 8, turn.phase ^ 1);",
        "",
        "write without a barrier after the write of the copy engine",
    ),
    "wrong parity": (GROUPS, "hopper/pipeline.h", "turn.phase ^ 1", "turn.phase", "deadlock"),
    "bytes that never come": (
        GROUPS,
        "hopper/pipeline.h",
        "expect(barrier, T::kCopiedBytes)",
        "expect(barrier, T::kCopiedBytes + 16)",
        "deadlock",
    ),
    "bytes too few": (
        GROUPS,
        "hopper/pipeline.h",
        "expect(barrier, T::kCopiedBytes)",
        "expect(barrier, T::kCopiedBytes - T::kWeightBytes)",
        "deadlock",
    ),
    "box a column short": (
        GROUPS,
        "hopper/pipeline.h",
        "T::kWidth + 2, T::kHeight + 2, 1}",
        "T::kWidth + 1, T::kHeight + 2, 1}",
        "deadlock",
    ),
    "box not at its pixel": (GROUPS, "hopper/pipeline.h", "at.column - 1,", "at.column,", WRONG),
    "misaligned box": (
        GROUPS,
        "hopper/group.h",
        "+ 1023) / 1024 * 1024",
        "+ 63) / 64 * 64",
        WRONG,
    ),
    "another span of the swizzle": (
        GROUPS,
        "hopper/map.h",
        "span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B",
        "span == 64 ? CU_TENSOR_MAP_SWIZZLE_128B",
        WRONG,
    ),
    "rows and columns of the map": (
        GROUPS,
        "hopper/pipeline.h",
        "16} * l.x_column",
        "16} * l.x_row",
        "bulk copy outside of the registered buffers",
    ),
    "barriers not published": (
        GROUPS,
        "hopper/pipeline.h",
        "    publish_barriers();",
        "",
        "its barrier is not published",
    ),
    "no fence before products": (
        GROUPS,
        "hopper/group.h",
        "fold_rows(centre, sum[2], difference[2]);\n    product_fence();",
        "fold_rows(centre, sum[2], difference[2]);",
        "no fence after ldmatrix",
    ),
    "barriers used before they are started": (
        GROUPS,
        "hopper/pipeline.h",
        "  barrier();\n  if (thread() < 128)",
        "  if (thread() < 128)",
        "no barrier was started",
    ),
    "a channel of another stage": (
        GROUPS,
        "hopper/pipeline.h",
        "first + step * T",
        "first + (step ^ 1) * T",
        WRONG,
    ),
}
QUICK = (
    "no swizzle",
    "no barrier",
    "copies not waited for",
    "a slice of the epilogue",
    "stage let go of too early",
)


def quickly(names: Iterable[str]) -> list[object]:
    """Parameters, all but the quick ones left to the full suite."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in names]


@pytest.mark.parametrize(
    ("tile", "element"),
    [(PAIRS, "Bfloat16"), (GROUPS, "Float16"), pytest.param(QUADRUPLES, "Float16", marks=pytest.mark.full)],
)
def test_a_tile_without_a_fault_is_right(tmp_path: Path, tile: str, element: str) -> None:
    done = cuda_patch_run.program(tmp_path, tile, element)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("error 0.00") == len(done.stdout.splitlines()) > 10


@pytest.mark.parametrize("fault", quickly(FAULTS))
def test_a_fault_is_seen(tmp_path: Path, fault: str) -> None:
    tile, *change, says = FAULTS[fault]
    sources = cuda_patch_run.changed_sources(tmp_path / "sources", *change)
    done = cuda_patch_run.program(tmp_path, tile, sources=sources)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(says, done.stdout), done.stdout
