# What is measured, as data: one shape with its tie, pass, layout, dtype, pins and device.
"""A case of the benchmark. Building and measuring it is the work of `bench.cases`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.shapes import Shape

STEPS = ("step", "step_of_sum", "step_contiguous")


@dataclass(frozen=True)
class Case:
    """A shape with a tie, dtype, memory format and pass (fwd, dgrad, wgrad, or step: forward and all gradients).

    In step_of_sum the gradient of the output is an expanded scalar, in step_contiguous it is contiguous although the
    output is not.
    `backend` and `algorithm` pin ours; "" leaves the choice to the dispatch.
    `input_tie` is the tie of the input channels, "rc" that of one-hot DNA read from its other strand, and "" says that
    no mirror moves them.
    """

    shape: Shape
    tie: str
    direction: str = "fwd"
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    backend: str = ""
    algorithm: str = ""
    device: str = "cpu"
    input_tie: str = ""

    @property
    def ties(self) -> str:
        """Both ties as one word: `hv`, `h>h`, `rc>h`."""
        return tie_name(self.input_tie, self.tie)

    @property
    def family(self) -> str:
        """What the report keeps apart: that of the shape, or "equivariant"."""
        return "equivariant" if self.input_tie or self.is_self_symmetric else self.shape.family

    @property
    def is_self_symmetric(self) -> bool:
        """Are there no orbits, but filters that are their own mirror images, or the negatives of these?"""
        return not self.tie.isalpha()

    @property
    def orbit(self) -> int:
        """Filters of an orbit."""
        return 1 if self.is_self_symmetric else 2 ** len(self.tie)

    @property
    def name(self) -> str:
        """Name of the case, as pytest shows it."""
        parts = [self.shape.name, self.ties, self.direction]
        parts += [] if self.channels_last else ["nchw"]
        parts += [] if self.dtype == torch.float32 else [dtype_name(self.dtype)]
        return "-".join([*parts, *filter(None, (self.backend, self.algorithm))]).replace(" ", "_")

    @property
    def layout(self) -> str:
        """Memory format of input, weight and output; there is only one for 1-D."""
        return "channels_last" if self.channels_last and len(self.shape.spatial) > 1 else "contiguous"

    def facts(self) -> dict[str, object]:
        """The columns that say what is measured, and by which `bench.rows.key` finds a case again."""
        return {
            "family": self.family, "shape": self.shape.name, "model": self.shape.model, "tie": self.ties,
            "pass": self.direction, "layout": self.layout, "dtype": dtype_name(self.dtype),
            "device_kind": self.device, "backend_pin": self.backend, "algorithm_pin": self.algorithm,
        }  # fmt: skip


def tie_name(input_tie: str, tie: str) -> str:
    """A tie as rows and options name it; before `>` that of the input, if it has one."""
    return f"{input_tie}>{tie}" if input_tie else tie


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
