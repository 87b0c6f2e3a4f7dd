# What is measured, as data: one shape with its tie, pass, layout, dtype, pins and device.
"""A case of the benchmark. Building and measuring it is the work of `bench.cases`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.shapes import Shape


@dataclass(frozen=True)
class Case:
    """A shape with a tie, dtype, memory format and pass (fwd, dgrad, wgrad, or step: forward and all gradients).

    `backend` and `algorithm` pin ours; "" leaves the choice to the dispatch.
    """

    shape: Shape
    tie: str
    direction: str = "fwd"
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    backend: str = ""
    algorithm: str = ""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Name of the case, as pytest shows it."""
        parts = [self.shape.name, self.tie, self.direction]
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
            "family": self.shape.family, "shape": self.shape.name, "model": self.shape.model, "tie": self.tie,
            "pass": self.direction, "layout": self.layout, "dtype": dtype_name(self.dtype),
            "device_kind": self.device, "backend_pin": self.backend, "algorithm_pin": self.algorithm,
        }  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
