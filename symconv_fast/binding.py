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

    A backend may have a `bind` of its own, where it can prepare more than the arguments, and an `fprop_activated` of
    its own, where its kernels can apply an activation.
    """
    if activation is not None and hasattr(module, "fprop_activated"):
        return partial(module.fprop_activated, problem, algorithm, activation)
    own = getattr(module, "bind", None)
    run: Callable[..., Tensor] = (
        own(problem, op, algorithm) if own else partial(getattr(module, op), problem, algorithm)
    )
    return run if activation is None else lambda *tensors: activate(run(*tensors), activation)
