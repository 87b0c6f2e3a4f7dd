"""What `convert` did: data, and a table of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..tables import Report, Table
from .estimate import Cost, total


@dataclass(frozen=True)
class LayerReport:
    """One convolution. `symmetry` is the tie as text, such as "'hv'" or "{'h': '50%'}".

    It is None where the layer was left alone, for `reason`.

    `lost` is ‖w − tied‖² / ‖w‖² of the nearest tied filters, 0 to 1, and `lost_random` what random filters of the same
    size lose when they are matched in the same way. `order` says how filters came into orbits: "matched" (the
    permutation is undone in what reads them), "matched, index" (by an index on the output), or "as given".
    Parameters are those of weight and bias. `calls` and `cost` need an `example_input`: how often the model called the
    layer, and what that takes; None for layers that compute something of their own.
    """

    name: str
    kind: str
    symmetry: str | None
    reason: str | None
    lost: float = 0.0
    lost_random: float = math.nan
    order: str = "as given"
    parameters_before: int = 0
    parameters: int = 0
    cost: Cost | None = None
    calls: int | None = None


@dataclass(frozen=True)
class ConversionReport(Report):
    """Every convolution of the model, and totals. `print(report)` is a table; `layers` are the data.

    `parameters_before` and `parameters` are those of the whole model. `notes` say what kept the report, or the
    matching, from being complete.
    """

    layers: tuple[LayerReport, ...]
    parameters_before: int
    parameters: int
    notes: tuple[str, ...] = field(default=())

    @property
    def tied(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.symmetry is not None)

    @property
    def cost(self) -> Cost | None:
        """Of all convolutions together that have one, those left alone included; None without an `example_input`."""
        costs = [layer.cost for layer in self.layers if layer.cost is not None]
        return total(costs) if costs else None

    @property
    def lost(self) -> float:
        """The mean of `lost` over the layers that were replaced."""
        known = [layer.lost for layer in self.tied if not math.isnan(layer.lost)]
        return sum(known) / len(known) if known else 0.0

    def table(self) -> Table:
        """A row for each convolution, one for all of them, and in the notes what the figures mean."""
        timed = self._timed
        columns = ["layer|", "type|", "tie|", "filters|", "lost", "random", "parameters", "before"]
        columns += ["MACs", "before", "forward", "step"] if timed else []
        rows = [_row(layer, timed) for layer in self.layers]
        rows.append(self._totals(timed))
        return Table(self._title(), columns, rows, (*self._explained(timed), *self.notes))

    @property
    def _timed(self) -> bool:
        return any(layer.calls is not None for layer in self.layers)

    def _title(self) -> str:
        share = self.parameters / self.parameters_before if self.parameters_before else 1.0
        return (
            f"{len(self.tied)} of {len(self.layers)} convolutions tied: "
            f"{self.parameters:,} of {self.parameters_before:,} parameters ({share:.0%})"
        )

    def _totals(self, timed: bool) -> list[str]:
        before = sum(layer.parameters_before for layer in self.layers)
        after = sum(layer.parameters for layer in self.layers)
        mean = f"{self.lost:.3f}" if self.tied else ""
        row = ["all convolutions", "", "", "", mean, "", f"{after:,}", f"{before:,}"]
        return row + (_costs(self.cost, "-") if timed else [])

    def _explained(self, timed: bool) -> list[str]:
        if not self.tied:
            return ["nothing was tied: the column 'filters' says why"]
        notes = [
            "lost: the share of the filters' energy (squared norm) that no filters with this tie have; random: what "
            "random filters lose.",
        ]
        if self.lost > 0.1:
            notes.append(
                "The model does not compute what it did: train it further. A layer whose filters lose nearly what "
                "random ones lose keeps little of what it had learned."
            )
        if timed:
            notes.append(
                "MACs of one forward pass; forward and step: estimated times as fast as torch's layers."
            )
        return notes


def _row(layer: LayerReport, timed: bool) -> list[str]:
    tied = layer.symmetry is not None
    row = [layer.name or "(the model)", layer.kind, layer.symmetry or "-"]
    row.append(layer.order if tied else f"left alone: {layer.reason}")
    row += [f"{layer.lost:.3f}", _number(layer.lost_random)] if tied else ["", ""]
    row += [f"{layer.parameters:,}", f"{layer.parameters_before:,}"]
    return row + (_costs(layer.cost, "-" if layer.calls else "not called") if timed else [])


def _costs(cost: Cost | None, otherwise: str) -> list[str]:
    if cost is None:
        return [otherwise, "", "", ""]
    ratios = [f"{r:.2f}" if not math.isnan(r) else "-" for r in (cost.forward_ratio, cost.step_ratio)]
    return [f"{cost.macs:,}", f"{cost.ordinary_macs:,}", *ratios]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
