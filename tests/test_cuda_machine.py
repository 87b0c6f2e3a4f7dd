# The stand-in for a GPU: each rule that it knows, broken by a small kernel, is named; what keeps them all runs.
"""csrc/cuda/host by itself; what it finds in the kernels of the package is in test_cuda_faults.py."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import pytest
from cuda_instructions import COMPILER, CUDA, HERE, machine_objects

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SAYS = {
    "nothing of the engine": "^$",
    "barriers not published": "bulk copy: its barrier is not published",
    "barriers not started": "no barrier was started at shared address",
    "bytes that are not expected": "read of a copy that was not waited for|deadlock|more arrivals|write",
    "full not awaited": "read of a copy that was not waited for|nobody wrote|without a barrier",
    "empty not awaited": "write over a copy|write without a barrier after the read|more arrivals",
    "wrong parity": r"deadlock in CTA \d: .* wait for a barrier in shared memory",
    "stage let go of too early": "read of a copy that was not waited for|without a barrier",
    "no fence": "product: no fence after ldmatrix",
    "released to its own CTA": "write over a copy|write without a barrier|more arrivals|read of a copy|deadlock",
    "a CTA is gone": "a CTA that has ended",
    "bulk alignment": "bulk copy is not aligned",
    "nothing": "^$",
    "nothing of lanes": "^$",
    "nothing of matrices": "^$",
    "shared memory above": r"store outside of shared memory at shared address 4096 .*warp 1, lane 0",
    "shared memory below": r"store outside of shared memory .*warp 0, lane 5",
    "shared alignment": "store is not aligned",
    "not written": r"read of what nobody wrote at shared address [048]|read of what nobody wrote .* 12",
    "read after write": "read without a barrier after the write of warp 0, lane 0|read of what nobody wrote",
    "read after write of a lane": "read without a barrier after the write|read of what nobody wrote",
    "matrix after write of a lane": "read without a barrier after the write of warp [01], lane 0",
    "write after read": "write without a barrier after the read of warp 1|read without a barrier after the write",
    "write after read of a lane": r"write without a barrier after the read|read without a barrier after the write",
    "write after write": "write without a barrier after the write of warp [01], lane 0",
    "write after write of a lane": "write without a barrier after the write of warp 0, lane [01]",
    "copy not waited for": "read of a copy that was not waited for",
    "copy over what is read": "write without a barrier after the read of warp|read of a copy that was not waited",
    "copy waited for by another": "read of a copy that was not waited for at shared address 0",
    "copy seen without a barrier": "read without a barrier after the write of warp 0, lane 0|nobody wrote",
    "copy over a copy": "write over a copy that was not waited for",
    "group not committed": "read of a copy that was not waited for",
    "copy alignment": "copy from an address that is not aligned",
    "copy too long": "copy of 8 bytes",
    "copy from outside": r"copy outside of the registered buffers: 1024 bytes from the start of one of 1024",
    "bank conflict": "ldmatrix: bank conflict, 2 accesses for matrix 0",
    "lanes apart": r"lanes of a warp at (shuffle_xor|warp_barrier\(\)) \(.*\) and at (warp_barrier\(\)|shuffle_xor)",
    "lanes at two places": r"lanes of a warp at warp_barrier\(\) \(.*\) and at warp_barrier\(\)",
    "a lane missing": r"deadlock in CTA \d: 62 threads wait for warp_barrier\(\) .*; 2 have ended",
    "a barrier that some miss": r"deadlock in CTA \d: 40 threads wait for barrier\(\) .*; 24 have ended",
    "load from outside": "load outside of the registered buffers",
    "load from nowhere": r"load outside of the registered buffers \(",
    "load alignment": "load of 8 bytes is not aligned",
    "store outside": "store outside of the registered buffers: -4 bytes from the start of one of 1024",
    "store alignment": "store of 16 bytes is not aligned",
    "store to what is read": "store to a buffer that is only read",
    "store where a thread has": r"store where thread \d+ of CTA \d has written, byte \d+ of the buffer",
    "store where a CTA has": r"store where thread (\d+) of CTA \d has written, .*CTA \d",
    "load of what is written": "load of what the same launch writes",
    "load of what nobody wrote": "load of what no kernel wrote",
    "work of another CTA": "work_load of what another CTA of the same launch wrote|no kernel wrote",
    "work of nobody": "work_load of what no kernel wrote",
    "not TF32": "multiply: an operand is not rounded to TF32",
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("rules")
    library, source = folder / "rules.so", HERE / "cuda_rules.cpp"
    command = [*COMPILER, "-O1", "-shared", f"-I{CUDA}", str(source), *map(str, machine_objects())]
    subprocess.run([*command, "-o", str(library)], check=True)
    c = ctypes.CDLL(str(library))
    for function in (c.name_of, c.broken, c.shaped, c.counts):
        function.restype = ctypes.c_char_p
    return c


def test_every_rule_is_named_however_the_warps_run(rules: ctypes.CDLL) -> None:
    names = {}
    while (name := rules.name_of(len(names))) is not None:
        names[name.decode()] = len(names)
    assert names.keys() == SAYS.keys()
    for name, number in names.items():
        for seed in range(8):
            said = rules.broken(number, ctypes.c_uint64(seed)).decode()
            assert re.search(SAYS[name], said), f"{name}, seed {seed}: {said!r}"
            assert not said or re.search(r"\(cuda_rules\.cpp:\d+|has ended \(CTA", said), f"{name}: {said}"


@pytest.mark.parametrize(
    "rule", ["nothing", "nothing of lanes", "nothing of the engine", "not written", "work of nobody"]
)
def test_clocks_begin_anew(rules: ctypes.CDLL, rule: str) -> None:
    """So late that no test gets there by itself."""
    number = list(SAYS).index(rule)
    assert rules.name_of(number).decode() == rule
    rules.age()
    for seed in range(12):
        said = rules.broken(number, ctypes.c_uint64(seed)).decode()
        assert re.search(SAYS[rule], said), f"seed {seed}: {said!r}"


def test_shapes_that_no_gpu_takes_are_refused(rules: ctypes.CDLL) -> None:
    def said(*shape: int) -> str:
        return str(rules.shaped(*map(ctypes.c_int64, shape)).decode())

    assert said(1, 32, 0) == said(2, 1024, 227 << 10) == ""
    assert said(0, 32, 0) == "bad grid 0"
    assert said(1 << 31, 32, 0) == f"bad grid {1 << 31}"
    assert said(1, 48, 0) == "bad number of threads 48"
    assert said(1, 1056, 0) == "bad number of threads 1056"
    assert said(1, 32, (227 << 10) + 1) == f"bad size of shared memory {(227 << 10) + 1}"
    assert said(1 << 30, 32, 0) == "a grid too large for the stand-in"


def counts(rules: ctypes.CDLL, tracing: bool) -> dict[str, int]:
    lines = rules.counts(int(tracing)).decode().splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines)}


def test_what_is_counted(rules: ctypes.CDLL) -> None:
    """Bytes always; with tracing also wavefronts, by banks of four bytes, and sectors of 32 bytes."""
    plain, traced = counts(rules, False), counts(rules, True)
    assert {name for name in plain if plain[name] != traced[name]} == {
        *("shared_loads", "shared_stores", "shared_load_wavefronts", "shared_store_wavefronts"),
        *(
            "copy_wavefronts",
            "load_sectors",
            "store_sectors",
            "copy_sectors",
            "global_loads",
            "global_stores",
        ),
    }
    assert traced["shared_load_bytes"] == 5 * 128 + 512 + 128
    assert traced["shared_loads"] == 7
    assert traced["shared_load_wavefronts"] == 1 + 2 + 4 + 32 + 1 + 4 + 1
    assert (traced["shared_stores"], traced["shared_store_wavefronts"]) == (32, 32)
    assert (traced["global_load_bytes"], traced["global_store_bytes"]) == (256, 512)
    assert (traced["load_sectors"], traced["store_sectors"]) == (4 + 32, 16)
    assert (traced["copies"], traced["copy_bytes"], traced["copy_sectors"]) == (32, 31 * 16, 16)
    assert traced["copy_wavefronts"] == 4
    assert (traced["barriers"], traced["ctas"], traced["launches"]) == (2, 1, 1)
