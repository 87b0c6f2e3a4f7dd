"""Rates of this machine: factors on those of the nearest kind of CPU, measured once and kept in a file.

rows.py       the rows of the cost model's tables: which one an estimate rests on, and how one is scaled
factors.py    factors by row, those of rows that were not measured, and the file
shapes.py     the layers that are measured, as data
measure.py    measured seconds over estimated ones
command.py    python -m symconv_fast calibrate
"""

from .factors import apply, calibrated, use_stored

__all__ = ["apply", "calibrated", "use_stored"]
