# A fake backend beside the reference, for the tests of the choice and of what is said of it.

from __future__ import annotations

import types

import pytest
import torch

import symconv_fast as sf
from symconv_fast import dispatch
from symconv_fast.backends import reference
from symconv_fast.problem import OPS


def layer_and_input(batch: int = 2) -> tuple[sf.SymmetricConv2d, torch.Tensor]:
    layer = sf.SymmetricConv2d(4, 16, 3, padding=1, symmetry={"h": 4, "hv": 8})
    return layer, torch.randn(batch, 4, 6, 7, requires_grad=True)


class Fake(types.ModuleType):
    """A backend that is the reference in disguise and remembers what it ran."""

    NAME = "fake"
    ALGORITHMS = ("fold", "direct")

    def __init__(self, seconds: float = 1e-9) -> None:
        super().__init__("fake")
        self.seconds = seconds
        self.ran: list[tuple[str, str]] = []
        self.refused: dict[tuple[str, str], str] = {}

    def can_run(self, problem, op, algorithm):
        return self.refused.get((op, algorithm))

    def estimate(self, problem, op, algorithm):
        return self.seconds * (2 if algorithm == "direct" else 1)

    def __getattr__(self, op):
        if op not in OPS:
            raise AttributeError(op)

        def run(problem, algorithm, *tensors):
            self.ran.append((op, algorithm))
            return getattr(reference, op)(problem, "expand", *tensors)

        return run


@pytest.fixture
def fake(monkeypatch) -> Fake:
    """The fake beside the reference, with empty caches before and after."""
    module = Fake()
    modules = {"fake": module, "reference": reference}
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(modules))
    monkeypatch.setattr(dispatch, "load", modules.__getitem__)
    clear()
    yield module
    clear()


def clear() -> None:
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()
