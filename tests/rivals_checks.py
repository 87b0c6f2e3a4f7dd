# Checks of bench.rivals, which test_cuda_answers.py runs in a process whose threads are pinned.

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from bench import rivals
from symconv_fast.backends import cuda


@pytest.fixture
def rival(tmp_path) -> tuple[rivals.Run, Path]:
    """A run whose rows say that one contestant was lost and one job was done, and whose answers that a kernel fails."""
    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text('{"row": "lost", "contestant": "cuda tile"}\n{"row": "rivals", "name": "a job"}\n')
    answers.write_text(
        '{"row": "answer", "kernel": "patch h64", "verdict": "FAIL"}\n'
        '{"row": "answer", "kernel": "patch h32", "verdict": "PASS"}\n'
    )
    return rivals.Run(argparse.Namespace(rows=rows, answers=answers)), rows


def test_what_failed_or_is_wrong_does_not_take_part(rival, monkeypatch, capsys):
    run, path = rival
    (job,) = (job for job in rivals.jobs(tiny=True) if job.op == "fprop")
    layer = rivals.Layer(job)
    calls = {
        "cuda tile": layer.library,
        "cuda patch": layer.library,
        "cuda hopper": lambda: layer.library() + 1,
        "triton fold": layer.library,
        "cuda depthwise": lambda: 1 / 0,
    }
    monkeypatch.setattr(rivals.Layer, "ways", lambda self: [tuple(name.split()) for name in calls])
    monkeypatch.setattr(rivals.Layer, "ours", lambda self, b, a: calls[f"{b} {a}"])
    monkeypatch.setattr(rivals.Layer, "kernels", lambda self, b, a: ("patch h64",) if a == "patch" else ())
    run.measure(job)
    row = json.loads(path.read_text().splitlines()[-1])
    assert set(row["ms"]) == {"cuDNN", "triton fold"}
    assert row["notes"]["cuda tile"] == row["notes"]["cuda patch"] == "left out: it failed before"
    assert row["notes"]["cuda hopper"].startswith("wrong: it differs by")
    assert row["notes"]["cuda depthwise"].startswith("ZeroDivisionError")
    assert row["ratio"]["cuDNN"] == 1
    assert "triton fold" in capsys.readouterr().out


def test_it_starts_again_without_the_one_that_broke_the_gpu(rival, monkeypatch):
    run, path = rival
    again = []
    monkeypatch.setattr(rivals.os, "execv", lambda program, arguments: again.append(arguments))

    def broken() -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    run._wrong("cuda hopper", broken, torch.ones(1))
    assert again == [[sys.executable, "-m", "bench.rivals", *sys.argv[1:]]]
    known = rivals.Run(argparse.Namespace(rows=path, answers=None))
    assert known.lost == {"cuda tile", "cuda hopper"}
    assert known.done == {"a job"}


def test_jobs_have_names_of_their_own_and_the_layouts_that_they_say():
    names = [job.name for job in rivals.jobs(tiny=False)]
    assert len(names) == len(set(names))
    assert names[0] == "64x512@28 h fprop"
    for job in rivals.jobs(tiny=True):
        layer = rivals.Layer(job)
        answer = layer.answer()
        wanted = {
            "fprop": layer.problem.output_shape,
            "dgrad": layer.problem.input_shape,
            "wgrad": layer.problem.weight_shape,
        }
        assert tuple(answer.shape) == tuple(wanted[job.op])
        assert layer.x.is_contiguous(memory_format=torch.channels_last)
    assert cuda.misplaced("cpu") is not None  # nothing of the stand-in is left behind
