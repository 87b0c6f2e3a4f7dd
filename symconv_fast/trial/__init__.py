"""A kernel on a GPU earns its place: a known answer before it is used, and where nothing was measured, its time.

`dispatch` gives every problem on such a device to a `Trial`, which chooses at its calls; all else here is asked by
`explain` and by `python -m symconv_fast`. docs/trust.md says what is checked, when, and what it costs.

    modes.py           what a call may do beside computing: nothing, prove, time
    small.py           small problems like a given one, their tensors, and the answers in float64
    known_answers.py   a kernel's result against the answer
    timing.py          which of several functions is the quickest
    verdicts.py        what this process has learnt
    bound.py           the function that a layer calls
"""

from .bound import Candidate, Trial, Ways, prove
from .modes import paused, tried
from .report import Evidence, evidence, refuted, state, times

__all__ = [
    "Candidate",
    "Evidence",
    "Trial",
    "Ways",
    "evidence",
    "paused",
    "prove",
    "refuted",
    "state",
    "times",
    "tried",
]
