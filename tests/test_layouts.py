# The fragments and swizzles of the halo kernels' host stand-in, held against Triton's compiler and nvcc's PTX.
"""The stand-in and the kernels are written from one manual; here others say what it means. Nothing needs a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.micro import halo_build, wgmma_rate

gl = pytest.importorskip("triton.experimental.gluon.language", reason="needs Triton with Gluon")
triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing can be compiled", allow_module_level=True)

import gluon_kernels  # noqa: E402
from layouts import (  # noqa: E402
    StandIn,
    copy_sources,
    halves,
    in_registers,
    to_bf16,
    triton_offsets,
    triton_table,
)
from ptx_warp import Threads  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

MMA = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
WGMMA = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
SPANS = (64, 128)  # bytes of a swizzle


def box_layout(span: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=span, element_bitwidth=16, rank=2)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn(halo_build.HERE, tmp_path_factory.mktemp("standin"))


# What each fragment is to Triton: the stand-in's name, registers, halves; layout and shape.
FRAGMENTS = {
    "mma.sync A": ("A", 4, 2, gl.DotOperandLayout(0, MMA, 2), [16, 16]),
    "mma.sync B": ("B", 2, 2, gl.DotOperandLayout(1, MMA, 2), [16, 8]),
    "mma.sync sums": ("sums", 4, 1, MMA, [16, 8]),
    "wgmma A": ("A", 4, 2, gl.DotOperandLayout(0, WGMMA, 2), [64, 16]),
    "wgmma sums": ("sums", 4, 1, WGMMA, [64, 64]),
}


def check_fragment(standin: StandIn, name: str) -> int:
    """The same row and column in every half of every register of every lane of every warp; returns how many."""
    kind, registers, split, layout, shape = FRAGMENTS[name]
    ours, theirs = standin.table(kind, registers, split), triton_table(layout, shape)
    blocks = theirs.shape[1] // len(ours)  # of 8 columns of sums, four registers each
    for warp, of_warp in enumerate(theirs):
        for block, part in enumerate(np.split(of_warp, blocks)):
            np.testing.assert_array_equal(
                ours + np.array([16 * warp, 8 * block]), part, f"{name}, warp {warp}, block {block}"
            )
    return theirs[..., 0].size


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment(standin: StandIn, name: str) -> None:
    rows, columns = FRAGMENTS[name][4]
    assert check_fragment(standin, name) == rows * columns


def check_product(standin: StandIn) -> None:
    """Registers filled by Triton's tables, multiplied by the stand-in, read by Triton's table."""
    a, b = (np.random.default_rng(0).integers(-8, 8, shape) for shape in ((16, 16), (16, 8)))
    left = in_registers(to_bf16(a), triton_table(gl.DotOperandLayout(0, MMA, 2), [16, 16])[0])
    right = in_registers(to_bf16(b), triton_table(gl.DotOperandLayout(1, MMA, 2), [16, 8])[0])
    at = triton_table(MMA, [16, 8])[0]
    before = np.arange(4 * 32, dtype=np.float32).reshape(4, 32)
    np.testing.assert_array_equal(standin.mma(before, left, right) - before, (a @ b)[at[..., 0], at[..., 1]])


def test_product_of_mma_sync(standin: StandIn) -> None:
    check_product(standin)


def check_wgmma(standin: StandIn, span: int) -> None:
    """All steps of 16 channels of a box of weights that lies in shared memory as Triton's layout says."""
    channels = span // 2
    a, b = (np.random.default_rng(0).integers(-8, 8, (64, channels)) for _ in range(2))
    shared = np.zeros(64 * span, np.uint8)
    shared.view(np.uint16)[triton_offsets(box_layout(span), [64, channels])] = to_bf16(b)
    table, at = triton_table(gl.DotOperandLayout(0, WGMMA, 2), [64, 16]), triton_table(WGMMA, [64, 64])
    for step in range(channels // 16):
        k = slice(16 * step, 16 * step + 16)
        product = a[:, k] @ b[:, k].T
        for warp in range(4):
            sums = standin.wgmma(span, in_registers(to_bf16(a[:, k]), table[warp]), 32 * step, shared)
            np.testing.assert_array_equal(
                sums, product[at[warp, ..., 0], at[warp, ..., 1]], f"{step}, {warp}"
            )


@pytest.mark.parametrize("span", SPANS)
def test_product_of_wgmma_with_swizzled_weights(standin: StandIn, span: int) -> None:
    check_wgmma(standin, span)


def check_swizzle(standin: StandIn, what: str, span: int) -> None:
    """The first element of each chunk of 128 rows, and with it the chunk: elements of a chunk are consecutive."""
    offsets = triton_offsets(box_layout(span), [128, span // 2])
    assert (np.diff(offsets.reshape(128, -1, 8)) == 1).all()
    np.testing.assert_array_equal(standin.chunks(what, span, 128), 2 * offsets[:, ::8])


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("what", ["engine", "window", "weights"])
def test_swizzle(standin: StandIn, what: str, span: int) -> None:
    """As the copy engine and wgmma have it, as windows of pixels are read, as the pre-pass packs weights."""
    check_swizzle(standin, what, span)


def expected_window(
    table: np.ndarray, pitch: int, rows: int, row: int, column: int, channels: int
) -> np.ndarray:
    """Ids (pixel * channels + channel) of A's fragment: its first 8 rows are pixels of image row `row`."""
    m, k = table[..., 0], table[..., 1]
    return ((row + m // 8 * (rows // 2)) * pitch + column + m % 8) * channels + k


A_OF_A_WARP = triton_table(gl.DotOperandLayout(0, MMA, 2), [16, 16])[0]
WINDOWS = [(warp, step, kw, t) for warp in (0, 1, 5) for step in (0, 1) for kw in (0, 2) for t in (0, 2)]


@pytest.mark.parametrize("span", SPANS)
def test_windows_of_a_box(standin: StandIn, span: int) -> None:
    """A box of 10 x 18 pixels lies as Triton's layout says; the kernel's own addresses find A's fragments in it."""
    channels, pitch = span // 2, 18
    shared = np.full(256 * span, 0xFF, np.uint8)
    ids = np.arange(256 * channels).reshape(256, channels).astype(np.uint16)
    shared.view(np.uint16)[triton_offsets(box_layout(span), [256, channels])] = ids
    for warp, step, kw, t in WINDOWS:  # whv64 and whv64k: a warp has 2 rows of 8 pixels, two warps a row
        found = halves(standin.box_window(span, warp, step, kw, t, shared))
        wanted = expected_window(A_OF_A_WARP, pitch, 2, warp // 2 * 2 + t, warp % 2 * 8 + kw, channels)
        np.testing.assert_array_equal(found, wanted + 16 * step, f"{warp}, {step}, {kw}, {t}")


def test_windows_and_weights_of_a_tile(standin: StandIn) -> None:
    """h32s, filled by the addresses of its copies: a warp has 4 rows of 8 pixels, its 32 orbits are 4 blocks of B."""
    b = triton_table(gl.DotOperandLayout(1, MMA, 2), [16, 8])[0]
    for warp, step, kw, t in ((warp % 4, step, kw, t) for warp, step, kw, t in WINDOWS):
        window, weights = standin.tile_window(warp, step, kw, t)
        wanted = expected_window(A_OF_A_WARP, 18, 4, warp // 2 * 4 + t, warp % 2 * 8 + kw, 32) + 16 * step
        np.testing.assert_array_equal(halves(window), wanted, f"{warp}, {step}, {kw}, {t}")
        for block, found in enumerate(np.split(weights.reshape(-1, 32), 4)):
            np.testing.assert_array_equal(halves(found), 32 * (b[..., 1] + 8 * block) + b[..., 0] + 16 * step)


@cache
def ptx_of_a_warp(x_transposed: bool, w_transposed: bool) -> str:
    return gluon_kernels.compile_for(
        gluon_kernels.product_of_a_warp, 80, 1, X_TRANSPOSED=x_transposed, W_TRANSPOSED=w_transposed
    )


def run_product(
    standin: StandIn, ptx: str, x: np.ndarray, w: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, Threads]:
    """Run Triton's code on the stand-in: global memory holds x, w and y; returns y and the threads."""
    at_w, at_y = 2 * x.size, 2 * x.size + 2 * w.size
    memory = np.full(at_y + 4 * shape[0] * shape[1], 0xFF, np.uint8)
    memory[:at_y].view(np.uint16)[:] = np.concatenate([to_bf16(x).ravel(), to_bf16(w).ravel()])
    threads = Threads(standin, 4 if "wgmma" in ptx else 1, [0, at_w, at_y], memory)
    threads.run(ptx)
    return memory[at_y:].view(np.float32).reshape(shape), threads


def check_ldmatrix(standin: StandIn, x_transposed: bool, w_transposed: bool) -> None:
    ptx = ptx_of_a_warp(x_transposed, w_transposed)
    x, w = np.random.default_rng(1).integers(-8, 8, (2, 16, 16))
    y, threads = run_product(standin, ptx, x, w, (16, 16))
    loads = [op for op in threads.executed if "ldmatrix" in op]
    assert [".trans" in op for op in loads] == [x_transposed, not w_transposed]
    np.testing.assert_array_equal(y, (x.T if x_transposed else x) @ (w.T if w_transposed else w))


@pytest.mark.parametrize("x_transposed", [False, True])
@pytest.mark.parametrize("w_transposed", [False, True])
def test_ldmatrix_in_code_of_triton(standin: StandIn, x_transposed: bool, w_transposed: bool) -> None:
    """Which lanes give which rows, and what arrives: Triton's own addresses only work if both are right."""
    check_ldmatrix(standin, x_transposed, w_transposed)


@cache
def ptx_of_a_group(span: int) -> str:
    return gluon_kernels.compile_for(gluon_kernels.product_of_a_group, 90, 4, SPAN=span, K=span // 2)


@pytest.mark.parametrize("span", SPANS)
def test_wgmma_in_code_of_triton(standin: StandIn, span: int) -> None:
    """The same of a warp group: descriptors, the step from one k16 to the next, the swizzle, all from Triton."""
    x, w = np.random.default_rng(2).integers(-8, 8, (2, 64, span // 2))
    y, threads = run_product(standin, ptx_of_a_group(span), x, w, (64, 64))
    assert sum("wgmma.mma_async" in op for op in threads.executed) == span // 32
    np.testing.assert_array_equal(y, x @ w.T)


# Faults put into a copy of the stand-in, and what must see them.
FAULTS = {
    "rows of A's registers": (
        "lane / 4 + e % 2 * 8, lane % 4",
        "lane / 4 + e / 2 * 8, lane % 4",
        "mma.sync A",
    ),
    "columns of A's registers": ("half + e / 2 * 8}", "half + e % 2 * 8}", "wgmma A"),
    "lanes of B": (
        "{lane % 4 * 2 + half + e * 8, lane / 4}",
        "{lane % 8 + half + e * 8, lane / 4}",
        "mma.sync B",
    ),
    "halves of the sums": (
        "{lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2}",
        "{lane / 4 + e % 2 * 8, lane % 4 * 2 + e / 2}",
        "wgmma sums",
    ),
    "lanes of ldmatrix": (
        "const int row = lane / 4, column = lane % 4 * 2",
        "const int row = lane % 8, column = lane / 8 * 2",
        "ldmatrix",
    ),
    "rows that lanes give": ("address.v[m * 8 + at.row]", "address.v[at.row * 4 + m]", "ldmatrix"),
    "ldmatrix never transposed": (
        "transposed ? Place{column, row}",
        "transposed ? Place{row, column}",
        "transposed",
    ),
    "registers of the product": (
        "left[at.row][at.column] = to_float(a[e]",
        "left[at.row][at.column] = to_float(a[3 - e]",
        "product",
    ),
    "B in the product": ("(e ? b1 : b0)", "(e ? b0 : b1)", "product"),
    "rows of wgmma's weights": ("(j * 8 + at.column)", "(j + at.column * 8)", "wgmma"),
    "key of the windows": ("(address >> 3) & 112", "(address >> 4) & 112", "window"),
    "key of the copy engine": ("(address >> 3 & 0x70)", "(address >> 4 & 0x70)", "engine"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if i % 3 == 0 else pytest.mark.full) for i, name in enumerate(FAULTS)],
)
def test_a_wrong_bit_in_the_stand_in_is_seen(tmp_path: Path, fault: str) -> None:
    old, new, seen_by = FAULTS[fault]
    file = "halo_group.h" if seen_by == "window" else "halo_host.h"
    wrong = StandIn(copy_sources(tmp_path / "sources", {file: (old, new)}), tmp_path)
    checks = {
        "ldmatrix": lambda: check_ldmatrix(wrong, False, True),
        "transposed": lambda: check_ldmatrix(wrong, True, True),
        "product": lambda: check_product(wrong),
        "wgmma": lambda: check_wgmma(wrong, 128),
        "window": lambda: check_swizzle(wrong, "window", 128),
        "engine": lambda: check_swizzle(wrong, "engine", 128),
    }
    with pytest.raises((AssertionError, ValueError)):
        checks[seen_by]() if seen_by in checks else check_fragment(wrong, seen_by)


# What nvcc makes of the wrappers. The arguments of a tile, as halo_variants.h gives them.
TILE = (
    "tie",
    "rows",
    "warp_orbits",
    "height",
    "width",
    "patches",
    "groups",
    "channels",
    "stages",
    "resident",
)


def tile_of(variant: str) -> dict[str, int]:
    """A variant's numbers and what follows from them: fragments and windows of a warp, folded taps."""
    text = (halo_build.HERE / "halo_variants.h").read_text()
    (found,) = re.findall(rf"using {variant} = (?:Boxes<)?Tile<Tie::([^>]*)>", text)
    tie, *numbers = found.split(", ")
    tile = dict(zip(TILE[1:], map(int, numbers), strict=True))
    fragments = tile["rows"] // 2
    return tile | {"members": 2 if tie == "h" else 4, "fragments": fragments, "windows": fragments + 2}


def instructions(text: str, name: str) -> list[tuple[str, list[list[str]]]]:
    """Each instruction of that name: in full, and its operands in groups."""
    found = re.findall(rf"^\s*(?:@!?%?\w+ )?({re.escape(name)}[\w.:]*)\s*([^;]*);", text, re.M)
    groups = r"\{([^{}]*)\}|\[([^\[\]]*)\]|([^,{}\[\]]+)"
    split = [
        [[x.strip() for x in "".join(g).split(",")] for g in re.findall(groups, rest)] for _, rest in found
    ]
    return [
        (full, [g for g in operands if g != [""]]) for (full, _), operands in zip(found, split, strict=True)
    ]


def counts(groups: list[list[str]]) -> list[int]:
    return [len(group) for group in groups]


@cache
def ptx_of(variant: str, folder: Path) -> str:
    """PTX of a variant's kernel, without the one that folds weights."""
    kernel = halo_build.VARIANTS[variant]
    arch = "sm_90a" if "wgmma" in kernel.source else "sm_80"
    (folder / "halo_wgmma_ops.inc").write_text(wgmma_rate.operations(halo_build.WGMMA_WIDTHS))
    command = ["nvcc", "-std=c++17", "-ptx", f"-arch={arch}", f"-I{folder}", f"-DHALO_VARIANT={variant}"]
    made = folder / f"{variant}.ptx"
    subprocess.run([*command, str(halo_build.HERE / kernel.source), "-o", str(made)], check=True)
    (entry,) = (part for part in made.read_text().split(".entry ")[1:] if "forward" in part.split("(")[0])
    return entry


@needs_nvcc
def test_instructions_of_the_mma_sync_kernel(tmp_path: Path) -> None:
    tile, text = tile_of("h32s"), ptx_of("h32s", tmp_path)
    steps, blocks = tile["channels"] // 16, tile["warp_orbits"] // 8
    loads = instructions(text, "ldmatrix")
    assert {full for full, _ in loads} == {"ldmatrix.sync.aligned.m8n8.x4.shared.b16"}
    assert all(counts(groups) == [4, 1] for _, groups in loads)
    assert len(loads) == steps * (3 * tile["windows"] + 9 * blocks // 2)
    products = instructions(text, "mma")
    assert {full for full, _ in products} == {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"}
    assert all(counts(groups) == [4, 4, 2, 4] and groups[0] == groups[3] for _, groups in products)
    assert len(products) == steps * 9 * tile["fragments"] * blocks
    ((wait, groups),) = instructions(text, "cp.async.wait_group")
    assert groups == [[str(tile["stages"] - 2)]], wait
    copies = instructions(text, "cp.async.cg")
    assert {full for full, _ in copies} == {"cp.async.cg.shared.global"}
    assert all(counts(groups) == [1, 1, 1, 1] and groups[2] == ["16"] for _, groups in copies)
    kinds = Counter(full.split(".")[0] for full, _ in instructions(text, "bar"))
    assert kinds == {"bar": 1}  # one barrier a stage, and none besides


@needs_nvcc
def test_instructions_of_the_wgmma_kernel(tmp_path: Path, standin: StandIn) -> None:
    """Names and operands; and the descriptor of the weights has the bits that Triton gives its own."""
    for variant, span in (("whv32", 64), ("whv64k", 128)):
        tile, text = tile_of(variant), ptx_of(variant, tmp_path)
        orbits, steps = tile["warp_orbits"], tile["channels"] // 16
        products = instructions(text, "wgmma.mma_async")
        assert {full for full, _ in products} == {
            f"wgmma.mma_async.sync.aligned.m64n{orbits}k16.f32.bf16.bf16"
        }
        assert all(counts(groups) == [orbits // 2, 4, 1, 1, 1, 1, 1] for _, groups in products)
        assert all(groups[3:] == [["1"], ["1"], ["1"], ["0"]] for _, groups in products)  # adds; B is K-major
        assert len(products) == steps * 9 * tile["fragments"]
        assert (
            len(instructions(text, "wgmma.commit_group"))
            == len(instructions(text, "wgmma.fence"))
            == 2 * steps
        )
        loads = instructions(text, "ldmatrix")
        assert {full for full, _ in loads} == {"ldmatrix.sync.aligned.m8n8.x4.shared.b16"}
        assert len(loads) == steps * 3 * tile["windows"]
        four = r"\[%r\d+\], \[%rd\d+, \{%r\d+, %r\d+, %r\d+, %r\d+\}\], \[%r\d+\];"
        assert len(re.findall(rf"cp\.async\.bulk\.tensor\.4d\.[\w:.]*complete_tx::bytes {four}", text)) == 1
        ours = {int(c) & (1 << 64) - 1 for c in re.findall(r"or\.b64\s+%rd\d+, %rd\d+, (-?\d{12,});", text)}
        x = np.zeros((64, span // 2))
        theirs = run_product(standin, ptx_of_a_group(span), x, x, (64, 64))[1].descriptors
        assert len(ours) == len(theirs) == 1, (ours, theirs)
        unused = 0x3FFF << 16  # the leading dimension's offset, which a K-major layout with a swizzle has not
        assert {d & ~unused for d in ours} == {d & ~unused for d in theirs}
