"""The function of one way to run a problem: backend, algorithm and activation bound, only the tensors left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .activation import activate
from .problem import Problem


def bind(
    module: Any, problem: Problem, op: str, algorithm: str, activation: str | None = None
) -> Callable[..., Tensor]:
    """All but the tensors of an operator bound: (input, weight, bias) for fprop, two tensors else.

    A backend has a `bind` of its own where it can prepare more than the arguments. With ACTIVATES its kernels apply
    activations, whose name is then the last argument of its `bind`.
    """
    own: Callable[..., Callable[..., Tensor]] | None = getattr(module, "bind", None)
    if own is not None and activation is not None and getattr(module, "ACTIVATES", False):
        return own(problem, op, algorithm, activation)
    run = own(problem, op, algorithm) if own else partial(getattr(module, op), problem, algorithm)
    return run if activation is None else lambda *tensors: activate(run(*tensors), activation)
