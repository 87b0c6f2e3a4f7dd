# The Triton kernels compiled for GPUs that are not here, and the bytes that they move, counted from what they touch.
"""A representative few of `python -m tools.aot`, the checks of that tool themselves, and its other half: a kernel reads
and writes what the model of `tools/tile_bytes.py` says, to the byte. Nothing here needs a GPU."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
triton = pytest.importorskip("triton", reason="triton is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing can be compiled", allow_module_level=True)
aot = pytest.importorskip("tools.aot")
triton_version = pytest.importorskip("tools.triton_version")

QUICK = {f"{entry.arch} {entry.name} {entry.dtype}": entry for entry in aot.quick_entries()}


def report(**found: object) -> aot.Report:
    """A faultless report of a half-precision product on sm_90, but for what is given."""
    good = aot.Report(
        "x", "sm_90", "fprop_fold", "bfloat16", "", {"BM": 64, "warps": 8, "stages": 3}, 200, 0, 1000
    )
    good.products = {"wgmma.mma_async": 6}
    return replace(good, **found)


def _as_a_parameter(name: str) -> object:
    """Kernels of two and three tied axes are compiled for one GPU, and for the others by `make test-full`."""
    arch, _, order = name.split()[:3]
    return pytest.param(name, marks=[] if arch == "sm_90" or order == "1" else pytest.mark.full)


@pytest.mark.parametrize("name", map(_as_a_parameter, QUICK))
def test_compiles_without_spills_and_serialisation(name: str) -> None:
    made = aot.compile_entry(QUICK[name])
    tested = triton_version.TRITON_OF_TORCH.values()
    if triton.__version__ not in tested and made.failures:
        assert all("spilled" in failure for failure in made.failures), made.line
        pytest.skip(
            f"{made.line}; the tiles were chosen with Triton {', '.join(tested)}, this is {triton.__version__}"
        )
    assert not made.failures, made.line
    assert made.registers > 32
    assert made.shared > 0


def test_what_the_backend_refuses_is_not_compiled() -> None:
    """Only that: the forward fold of an octuple where no tile fits the registers, and it has no plan either."""
    problem = aot.table_problem(3, aot.torch.float64)
    for arch in aot.TARGETS:
        options = aot.Options(arch=arch)
        compiled = any(e.name.startswith("fprop_fold 3") and e.dtype == "float64" for e in aot.entries(arch))
        why = aot.refusal(problem, "fprop", "fold", options)
        assert compiled == (why is None), arch
        assert aot.refusal(problem, "fprop", "direct", options) is None
        if why is not None:
            with pytest.raises(ValueError, match="no tile of 3 tied axes in float64 fits the registers"):
                aot.plan(problem, "fprop", "fold", options=options)
            tile = aot.configs.Config(16, 16, 16, 4, 1)
            assert aot.plan(problem, "fprop", "fold", options=replace(options, config=tile)).launches


def test_the_quick_ones_are_of_every_architecture_and_pass() -> None:
    made = {(entry.arch, entry.launch.kernel, entry.dtype) for entry in QUICK.values()}
    passes, dtypes = ("fprop_fold", "dgrad", "wgrad"), ("bfloat16", "float32")
    assert made == set(itertools.product(aot.TARGETS, passes, dtypes))
    listed = {repr(entry) for arch in aot.TARGETS for entry in aot.entries(arch)}
    assert {repr(entry) for entry in QUICK.values()} <= listed


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"spill_bytes": 8}, "8 bytes spilled"),
        ({"messages": ["ptxas info : (C7510) Potential Performance Loss"]}, r"serialised \(C7510\)"),
        ({"shared": (227 << 10) + 1}, "of shared memory, more than 232448"),
        ({"arch": "gfx942", "shared": 65537}, "of shared memory, more than 65536"),
        (
            {"arch": "sm_100", "tensor_columns": 1024, "products": {"tcgen05.mma": 4}},
            "1024 columns of tensor memory",
        ),
        ({"products": {"wgmma.mma_async": 0, "mma.sync": 0}}, "no matrix product"),
        ({"products": {"wgmma.mma_async": 0, "mma.sync": 8}}, "no wgmma.mma_async"),
    ],
)
def test_what_must_not_be_is_found(found: dict[str, object], text: str) -> None:
    assert aot.find_failures(report()) == []
    (failure,) = aot.find_failures(report(**found))
    assert re.search(text, failure)


def test_products_are_expected_where_the_type_has_instructions_for_them() -> None:
    none = {"products": {}}
    assert aot.find_failures(report(dtype="float32", precision="tf32", **none)) == ["no matrix product"]
    assert not aot.find_failures(report(dtype="float32", precision="ieee", **none))
    assert not aot.find_failures(report(dtype="float64", **none))
    for dtype in ("float32", "float64"):  # AMD has instructions for all types
        assert aot.find_failures(report(arch="gfx942", dtype=dtype, precision="ieee", **none)) == [
            "no matrix product"
        ]
    assert not aot.find_failures(report(kernel="fold_weights", **none))


def test_reads_what_ptxas_prints() -> None:
    text = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
        "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
        "    64 bytes stack frame, 60 bytes spill stores, 80 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size\n"
    )
    made = report()
    aot.read_ptxas(made, text)
    assert (made.registers, made.spill_bytes, len(made.messages)) == (255, 60, 1)


def test_reads_amds_metadata_and_counts_memory_not_lanes() -> None:
    text = (
        "\tv_mfma_f32_32x32x8_f16 v[0:15], v[16:17], v[18:19], v[0:15]\n"
        "    .private_segment_fixed_size: {scratch}\n"
        "    .sgpr_spill_count: 51\n"
        "    .vgpr_count:     256\n"
        "    .vgpr_spill_count: {spilled}\n"
    )
    for scratch, spilled in ((0, 0), (540, 272)):
        made = report(arch="gfx942")
        aot._read_gcn(made, text.format(scratch=scratch, spilled=spilled), aot.TARGETS["gfx942"])
        assert (made.registers, made.spill_bytes, made.products) == (256, scratch, {"v_mfma": 1})


@triton.jit
def _hungry(x, y, N: triton.language.constexpr):
    """Holds N values across reductions: with one warp more than its threads have registers for."""
    at = triton.language.arange(0, N)
    value = triton.language.load(x + at)
    total = triton.language.sum(triton.language.exp(value), 0)
    for _ in range(4):
        value = value * total + 1.0
        total += triton.language.sum(value, 0)
    triton.language.store(y + at, value / total)


def test_a_kernel_that_spills_is_found() -> None:
    source = triton.compiler.ASTSource(
        _hungry, {"x": "*fp32", "y": "*fp32", "N": "constexpr"}, constexprs={(2,): 16384}
    )
    compiled = triton.compile(source, target=aot.TARGETS["sm_90"].gpu, options={"num_warps": 1})
    made = report(products={})
    aot._read_ptx(made, compiled.asm["ptx"], aot.TARGETS["sm_90"])
    assert made.spill_bytes > 0
    assert any("spilled" in failure for failure in aot.find_failures(made))


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_every_tile_of_the_table_is_compiled(arch: str) -> None:
    """Every type, every tile and every kernel that any plan launches has its entry."""
    from symconv_fast.backends.triton import configs, kernels

    entries = list(aot.entries(arch))
    assert {entry.launch.kernel for entry in entries} == set(kernels.__all__)
    for itemsize, table in configs.TILES.items():
        for dtype in (dtype for dtype in aot.PRECISIONS if dtype.itemsize == itemsize):
            for precision in aot.precisions(dtype, arch):
                name = str(dtype)[6:]
                product = configs.product_of(name, precision)
                made = {e.name for e in entries if e.dtype == name and e.precision in ("", precision)}
                for kernel, order in table:
                    for tile in configs.tiles(kernel, order, itemsize, arch, product):
                        assert f"{kernel} {order} {tile.m}x{tile.n}x{tile.k}" in made, product


def test_tiles_for_some_channels_are_compiled_with_these() -> None:
    """What `configs` has of its own for a number of channels is in the list, and the list is asked in all types."""
    for (arch, product), by_channels in aot.configs.CHANNEL_TILES.items():
        names = {e.name for e in aot.entries(arch) if product in (e.dtype, e.precision)}
        for channels, table in by_channels.items():
            for (kernel, order), found in table.items():
                for tile in found:
                    assert f"{kernel} {order} {tile.m}x{tile.n}x{tile.k} C={channels}" in names
                    assert tile in aot.configs.tiles(
                        kernel, order, 4 if "tf32" in product else 2, arch, product, channels=channels
                    )


def test_a_newer_triton_has_tiles_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the version that the table names on, and for launches of one tie alone."""
    arguments = ("fprop_fold", 3, 2, "sm_100", "bfloat16")
    found = {}
    for version in ((3, 6), (3, 7), (3, 9)):
        monkeypatch.setattr(aot.configs, "triton_version", lambda version=version: version)
        found[version] = aot.configs.tiles(*arguments)
        assert aot.configs.tiles(*arguments, mixed=True)[0] == aot.configs.Config(64, 32, 32, 8, 2)
    assert found[3, 6][0] == aot.configs.Config(64, 32, 32, 8, 2)
    own = aot.configs.NEWER_TILES[3, 7]["sm_100", "bfloat16"]["fprop_fold", 3]
    assert found[3, 7] == found[3, 9] == own


@pytest.mark.parametrize(
    ("version", "requires", "wanted"),
    [
        ("2.13.0+cu130", ["numpy", "triton==3.7.1; platform_system == 'Linux'"], "triton==3.7.1"),
        (
            "2.13.0+rocm7",
            ["pytorch-triton-rocm==3.7.1 ; platform_system == 'Linux'"],
            "pytorch-triton-rocm==3.7.1",
        ),
        ("2.13.0+cpu", ["numpy", "triton==9.9; extra == 'more'"], "triton==3.7.1"),
        ("2.11.0", [], "triton==3.6.0"),
        ("2.11.0", ["triton (==3.6.1)"], "triton==3.6.1"),
        ("2.99.0", ["networkx"], ""),
    ],
)
def test_the_environment_gets_the_triton_that_torch_wants(
    version: str, requires: list[str], wanted: str
) -> None:
    assert triton_version.requirement(version, requires) == wanted


def test_command_line_names_what_is_wrong() -> None:
    with pytest.raises(SystemExit):
        aot.parse(["--arch", "sm_70"])
    assert aot.parse(["--arch", "sm_80,gfx942"]).arch == "sm_80,gfx942"


def test_bytes_moved_are_those_of_the_model() -> None:
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.tile_bytes", "mixed"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(", as the model says") == 12, done.stdout
