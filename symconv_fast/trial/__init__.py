"""A kernel earns its place: on a GPU by a known answer before it is used, and where nothing was measured, by its time.

`dispatch` gives every problem of which more is to be learnt to a `Trial`, which chooses at its calls; all else here is
asked by `explain` and by `python -m symconv_fast`. docs/trust.md says what is checked, when, and what it costs.

    modes.py           what a call may do beside computing: nothing, prove, time
    small.py           small problems like a given one, their tensors, and the answers in float64
    known_answers.py   a kernel's result against the answer
    timing.py          which of several functions is the quickest
    rates.py           which CPUs have rates
    verdicts.py        what this process has learnt
    choices.py         what is kept of that in a file
    bound.py           the function that a layer calls
"""

from .bound import Candidate, Trial, Ways, prove
from .modes import paused, tried
from .report import Evidence, evidence, known, refuted, state, times, undecided

__all__ = [
    "Candidate",
    "Evidence",
    "Trial",
    "Ways",
    "evidence",
    "known",
    "paused",
    "prove",
    "refuted",
    "state",
    "times",
    "tried",
    "undecided",
]
