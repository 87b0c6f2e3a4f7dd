# The programs that a GPU is needed for, without one: known answers whose process dies, and backends against cuDNN.

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import cuda_answers

# Stands for a process of known answers: runs a, b, c in turn; at b it dies, unless b was skipped.
WORKER = """
import json, sys
skip = sys.argv[sys.argv.index("--skip") + 1].split(",")
done = sys.argv[sys.argv.index("--done") + 1].split(",")
for name in "abc":
    if name in skip or f"problem {name}" in done:
        continue
    print(json.dumps({"at": f"problem {name}", "kernels": [name]}), flush=True)
    if name == "b":
        print("an illegal memory access", flush=True)
        sys.exit(7)
    error = "wrong" if name == "c" else ""
    print(json.dumps({"problem": f"problem {name}", "kernels": [name], "error": error}), flush=True)
"""


def test_a_process_that_dies_takes_only_its_kernel_with_it(tmp_path, monkeypatch):
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    monkeypatch.setenv("COMMAND", f"{sys.executable} {program}")
    options = argparse.Namespace(few=0, stand_in=False)
    rows = cuda_answers.Group("tile,fprop,bfloat16", options, time.monotonic() + 60).run()
    table = cuda_answers.verdicts(rows, ["a", "b", "c", "d"])
    assert {name: verdict for name, (verdict, _, _) in table.items()} == {
        "a": "PASS",
        "b": "FAIL",
        "c": "FAIL",
        "d": "not met",
    }
    assert "illegal memory access" in table["b"][2]
    assert table["c"] == ("FAIL", 1, "wrong")


def test_a_process_that_does_not_begin_is_a_failure(tmp_path, monkeypatch):
    program = tmp_path / "worker.py"
    program.write_text("raise SystemExit('no module')")
    monkeypatch.setenv("COMMAND", f"{sys.executable} {program}")
    options = argparse.Namespace(few=0, stand_in=False)
    (row,) = cuda_answers.Group("tile,fprop,bfloat16", options, time.monotonic() + 60).run()
    assert row["kernels"] == []
    assert "tile,fprop,bfloat16: no module" in row["error"]


def test_one_failure_is_enough():
    rows = [{"problem": str(i), "kernels": ["k"], "error": "no" if i == 1 else ""} for i in range(3)]
    assert cuda_answers.verdicts(rows, []) == {"k": ("FAIL", 3, "no")}


def test_backends_against_cudnn():
    """In a process of its own: the benchmark pins threads before torch is loaded."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/rivals_checks.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
