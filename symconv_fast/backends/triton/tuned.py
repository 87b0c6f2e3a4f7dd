"""Tiles that were the quickest of those measured; written by `python -m bench.tune`, not by hand.

Nothing has been measured on a GPU yet, so the table is empty and `configs.select` chooses by its model.
"""

from __future__ import annotations

from typing import Any

# Of a row: device, arch, dtype, kernel, order (tied axes), sizes (extents along m and n of the tile, and of the
# contraction), config, milliseconds, date.
TUNED: list[dict[str, Any]] = []
