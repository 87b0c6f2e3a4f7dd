# Where the patch and Hopper kernels find what they multiply, held against Triton's layouts and nvcc's PTX.
"""Swizzles, windows and weights as the kernels' own addresses have them; the instructions that nvcc makes of them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gl = pytest.importorskip("triton.experimental.gluon.language", reason="needs Triton with Gluon")
triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing can be compiled", allow_module_level=True)

import gluon_kernels  # noqa: E402
from cuda_instructions import COMPILER, Instructions, machine_objects  # noqa: E402
from cuda_patch_run import MAIN, SOURCES, changed_sources  # noqa: E402
from layouts import LANES, halves, triton_offsets, triton_table  # noqa: E402
from ptx_warp import Threads  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

MMA = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
SPANS = (32, 64, 128)  # bytes of a swizzle
PLACES = ("engine", "window", "weights")


def box_layout(span: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=span, element_bitwidth=16, rank=2)


class Kernels:
    """tests/cuda_patch/layouts.cpp; registers are arrays [register, lane] of uint32."""

    def __init__(self, build: Path, sources: Path = SOURCES) -> None:
        library = build / "layouts.so"
        source = str(MAIN.with_name("layouts.cpp"))
        command = [*COMPILER, "-shared", f"-I{sources}", source, *map(str, machine_objects())]
        subprocess.run([*command, "-o", str(library)], check=True)
        self.c = ctypes.CDLL(str(library))

    def _call(self, name: str, *arguments: Any) -> None:
        call = getattr(self.c, name)
        call.restype = ctypes.c_char_p
        given = (a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
        wrong = call(*given)
        assert not wrong, f"{name}: {wrong.decode()}"

    def chunks(self, what: str, span: int, rows: int) -> np.ndarray:
        """Bytes of the 16-byte chunks [row, chunk], as the copy engine, a window or the weights have them."""
        kind, chunks = PLACES.index(what), range(span // 16)
        return np.array([[self.c.chunk_at(kind, span, row, c) for c in chunks] for row in range(rows)])

    def box_window(self, span: int, warp: int, step: int, kw: int, t: int, shared: np.ndarray) -> np.ndarray:
        """What a warp of the Hopper kernels loads of a box: A [4, lane]."""
        a = np.empty((4, LANES), np.uint32)
        self._call("window_of_a_box", span, a, warp, step, kw, t, shared, shared.size)
        return a

    def tile_window(self, warp: int, step: int, kw: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """What a warp of h32s loads: A [4, lane] of ids, and B [2 blocks of 16 orbits, 4, lane]."""
        registers = np.empty((3, 4, LANES), np.uint32)
        self._call("window_of_a_tile", registers, warp, step, kw, t)
        return registers[0], registers[1:]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("layouts"))


def check_swizzle(kernels: Kernels, what: str, span: int) -> None:
    """The first element of each chunk of 128 rows, and with it the chunk: elements of a chunk are consecutive."""
    offsets = triton_offsets(box_layout(span), [128, span // 2])
    assert (np.diff(offsets.reshape(128, -1, 8)) == 1).all()
    np.testing.assert_array_equal(kernels.chunks(what, span, 128), 2 * offsets[:, ::8])


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("what", PLACES)
def test_swizzle(kernels: Kernels, what: str, span: int) -> None:
    """As the copy engine and products have it, as windows of pixels are read, as the pre-pass packs weights."""
    check_swizzle(kernels, what, span)


def expected_window(
    table: np.ndarray, pitch: int, rows: int, row: int, column: int, channels: int
) -> np.ndarray:
    """Ids (pixel * channels + channel) of A's fragment: its first 8 rows are pixels of image row `row`."""
    m, k = table[..., 0], table[..., 1]
    return ((row + m // 8 * (rows // 2)) * pitch + column + m % 8) * channels + k


A_OF_A_WARP = triton_table(gl.DotOperandLayout(0, MMA, 2), [16, 16])[0]
WINDOWS = [(warp, step, kw, t) for warp in (0, 1, 5) for step in (0, 1) for kw in (0, 2) for t in (0, 2)]


def check_boxes(kernels: Kernels, span: int) -> None:
    channels, pitch = span // 2, 18
    shared = np.full(256 * span, 0xFF, np.uint8)
    ids = np.arange(256 * channels).reshape(256, channels).astype(np.uint16)
    shared.view(np.uint16)[triton_offsets(box_layout(span), [256, channels])] = ids
    for warp, step, kw, t in WINDOWS:  # a warp has 2 rows of 8 pixels, two warps a row
        found = halves(kernels.box_window(span, warp, step, kw, t, shared))
        wanted = expected_window(A_OF_A_WARP, pitch, 2, warp // 2 * 2 + t, warp % 2 * 8 + kw, channels)
        np.testing.assert_array_equal(found, wanted + 16 * step, f"{warp}, {step}, {kw}, {t}")


@pytest.mark.parametrize("span", [64, 128])
def test_windows_of_a_box(kernels: Kernels, span: int) -> None:
    """A box of 10 x 18 pixels lies as Triton's layout says; the kernel's own addresses find A's fragments in it."""
    check_boxes(kernels, span)


def check_slices(kernels: Kernels) -> None:
    """gh128p: boxes of 10 x 10 pixels and 16 rows u, a patch for two warps of 4 rows."""
    pitch, patch = 10, 104  # pixels of a patch, whole repeats of the swizzle
    shared = np.full(4 * patch * 32, 0xFF, np.uint8)
    ids = np.arange(4 * patch * 16).reshape(4 * patch, 16).astype(np.uint16)
    whole = -(-4 * patch // 128) * 128
    offsets = triton_offsets(box_layout(32), [whole, 16])[: 4 * patch]
    shared.view(np.uint16)[offsets] = ids
    for warp in (0, 1, 5):
        for kw, t in ((0, 0), (1, 3), (2, 1), (2, 2)):
            found = halves(kernels.box_window(32, warp, 0, kw, t, shared))
            wanted = expected_window(A_OF_A_WARP, pitch, 4, warp % 2 * 4 + t, kw, 16)
            np.testing.assert_array_equal(found, wanted + warp // 2 * patch * 16, f"{warp}, {kw}, {t}")


def test_windows_of_a_slice(kernels: Kernels) -> None:
    """The boxes of the gradient of the input lie as Triton's layout says, and its fragments are found in them."""
    check_slices(kernels)


def check_tile(kernels: Kernels) -> None:
    b = triton_table(gl.DotOperandLayout(1, MMA, 2), [16, 8])[0]
    for warp, step, kw, t in ((warp % 4, step, kw, t) for warp, step, kw, t in WINDOWS):
        window, weights = kernels.tile_window(warp, step, kw, t)
        wanted = expected_window(A_OF_A_WARP, 18, 4, warp // 2 * 4 + t, warp % 2 * 8 + kw, 32) + 16 * step
        np.testing.assert_array_equal(halves(window), wanted, f"{warp}, {step}, {kw}, {t}")
        for block, found in enumerate(np.split(weights.reshape(-1, 32), 4)):
            np.testing.assert_array_equal(halves(found), 32 * (b[..., 1] + 8 * block) + b[..., 0] + 16 * step)


def test_windows_and_weights_of_a_tile(kernels: Kernels) -> None:
    """h32s, filled by the addresses of its copies: a warp has 4 rows of 8 pixels, its 32 orbits are 4 blocks of B."""
    check_tile(kernels)


FAULTS = {  # of the kernels' addresses: file, old and new text
    "key of the windows": ("hopper/group.h", "(address >> 3) & 112", "(address >> 4) & 112"),
    "key of the slices": ("hopper/group.h", "(address >> 3) & 16", "(address >> 4) & 16"),
    "key of the weights": ("patch/tile.h", "(orbit >> T::kKeyShift)", "(orbit >> (T::kKeyShift + 1))"),
    "rows of a window": ("hopper/group.h", "(matrix & 1) * (T::kRows / 2)", "(matrix >> 1) * (T::kRows / 2)"),
    "weights of a block": ("patch/warp.h", "(matrix >> 1) * 8 + i + warp", "(matrix & 1) * 8 + i + warp"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if i % 3 == 0 else pytest.mark.full) for i, name in enumerate(FAULTS)],
)
def test_a_wrong_address_is_seen(tmp_path: Path, fault: str) -> None:
    wrong = Kernels(tmp_path, changed_sources(tmp_path / "sources", *FAULTS[fault]))
    checks = {
        "key of the windows": lambda: check_swizzle(wrong, "window", 128),
        "key of the slices": lambda: check_slices(wrong),
        "key of the weights": lambda: check_swizzle(wrong, "weights", 128),
        "rows of a window": lambda: check_boxes(wrong, 128),
        "weights of a block": lambda: check_tile(wrong),
    }
    with pytest.raises(AssertionError):
        checks[fault]()


# What nvcc makes of the kernels. The arguments of a tile, as tiles.h gives them.
TILE = (
    "members",
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


def tile_of(family: str, name: str) -> dict[str, int]:
    """A tile's numbers and what follows from them: fragments and windows of a warp."""
    text = (SOURCES / family / "tiles.h").read_text()
    (found,) = re.findall(rf"using {name} = (?:Boxes<|Gather<., )?Tile<([^>]*)>", text)
    tile = dict(zip(TILE, map(int, found.split(", ")), strict=True))
    return tile | {"fragments": tile["rows"] // 2, "windows": tile["rows"] // 2 + 2}


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
def ptx_of(family: str, name: str, folder: Path, element: str = "Bfloat16") -> str:
    """PTX of a tile's kernel, without the one that folds weights."""
    instance = f"symconv::{family}_run<symconv::{name}, symconv::{element}>"
    params = f"symconv::{family.capitalize()}Params"
    pointers = "const symconv::Pointers&, const symconv::Queue&"
    source, made = folder / f"{name}.cu", folder / f"{name}.ptx"
    source.write_text(
        f'#include "{family}/kernels.cuh"\ntemplate std::string {instance}(const {params}&, {pointers});\n'
    )
    arch = "sm_80" if family == "patch" else "sm_90a"
    command = ["nvcc", "-std=c++17", "-ptx", f"-arch={arch}", f"-I{SOURCES}", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    entries = made.read_text().split(".entry ")[1:]
    (entry,) = (part for part in entries if "fold_filters" not in part.split("(")[0])
    return entry


@needs_nvcc
@pytest.mark.parametrize(("element", "kind"), [("Bfloat16", "bf16"), ("Float16", "f16")])
def test_instructions_of_the_mma_sync_kernel(tmp_path: Path, element: str, kind: str) -> None:
    tile, text = tile_of("patch", "h32s"), ptx_of("patch", "h32s", tmp_path, element)
    steps, blocks = tile["channels"] // 16, tile["warp_orbits"] // 8
    loads = instructions(text, "ldmatrix")
    assert {full for full, _ in loads} == {"ldmatrix.sync.aligned.m8n8.x4.shared.b16"}
    assert all(counts(groups) == [4, 1] for _, groups in loads)
    assert len(loads) == steps * (3 * tile["windows"] + 9 * blocks // 2)
    products = instructions(text, "mma")
    assert {full for full, _ in products} == {f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"}
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
@pytest.mark.parametrize(
    ("name", "span", "element", "kind"),
    [("whv32", 64, "Float16", "f16"), ("whv64k", 128, "Bfloat16", "bf16")],
)
def test_instructions_of_the_wgmma_kernel(
    tmp_path: Path, name: str, span: int, element: str, kind: str
) -> None:
    """Names and operands; and the descriptor of the weights has the bits that Triton gives its own."""
    tile, text = tile_of("hopper", name), ptx_of("hopper", name, tmp_path, element)
    orbits, steps = tile["warp_orbits"], tile["channels"] // 16
    products = instructions(text, "wgmma.mma_async")
    assert {full for full, _ in products} == {
        f"wgmma.mma_async.sync.aligned.m64n{orbits}k16.f32.{kind}.{kind}"
    }
    assert all(counts(groups) == [orbits // 2, 4, 1, 1, 1, 1, 1] for _, groups in products)
    assert all(groups[3:] == [["1"], ["1"], ["1"], ["0"]] for _, groups in products)  # adds; B is K-major
    assert len(products) == steps * 9 * tile["fragments"]
    for other in ("wgmma.commit_group", "wgmma.fence"):
        assert len(instructions(text, other)) == 2 * steps
    loads = instructions(text, "ldmatrix")
    assert {full for full, _ in loads} == {"ldmatrix.sync.aligned.m8n8.x4.shared.b16"}
    assert len(loads) == steps * 3 * tile["windows"]
    check_boxes_and_descriptors(text, span, tmp_path)


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "element", "kind"), [("gh128p", "Bfloat16", "bf16"), ("ghv64p", "Float16", "f16")]
)
def test_instructions_of_the_gradient(tmp_path: Path, name: str, element: str, kind: str) -> None:
    """One product a tap and fragment, whatever the members are, each of which has windows of its own."""
    tile, text = tile_of("hopperdgrad", name), ptx_of("hopperdgrad", name, tmp_path, element)
    products = instructions(text, "wgmma.mma_async")
    channels = tile["warp_orbits"]
    assert {full for full, _ in products} == {
        f"wgmma.mma_async.sync.aligned.m64n{channels}k16.f32.{kind}.{kind}"
    }
    assert len(products) == 9 * tile["fragments"]
    for other in ("wgmma.commit_group", "wgmma.fence"):
        assert len(instructions(text, other)) == 3
    assert len(instructions(text, "ldmatrix")) == 3 * tile["windows"] * tile["members"]
    check_boxes_and_descriptors(text, 32, tmp_path)


def check_boxes_and_descriptors(text: str, span: int, folder: Path) -> None:
    """One copy of a box of four axes; and descriptors of the weights have the bits that Triton gives its own."""
    four = r"\[%r\d+\], \[%rd\d+, \{%r\d+, %r\d+, %r\d+, %r\d+\}\], \[%r\d+\];"
    assert len(re.findall(rf"cp\.async\.bulk\.tensor\.4d\.[\w:.]*complete_tx::bytes {four}", text)) == 1
    ours = {int(c) & (1 << 64) - 1 for c in re.findall(r"or\.b64\s+%rd\d+, %rd\d+, (-?\d{12,});", text)}
    theirs = descriptors_of_triton(span, folder)
    assert len(ours) == len(theirs) == 1, (ours, theirs)
    unused = 0x3FFF << 16  # the leading dimension's offset, which a K-major layout with a swizzle has not
    assert {d & ~unused for d in ours} == {d & ~unused for d in theirs}


def descriptors_of_triton(span: int, folder: Path) -> set[int]:
    """Descriptors in Triton's code of a product of a warp group, without the address."""
    ptx = gluon_kernels.compile_for(gluon_kernels.product_of_a_group, 90, 4, SPAN=span, K=span // 2)
    operands = 2 * 64 * span
    memory = np.zeros(operands + 4 * 64 * 64, np.uint8)
    threads = Threads(Instructions(machine_objects(), folder), 4, [0, operands // 2, operands], memory)
    threads.run(ptx)
    return threads.descriptors
