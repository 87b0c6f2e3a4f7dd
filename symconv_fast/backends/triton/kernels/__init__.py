"""The kernels: nothing but @triton.jit functions and the compile-time arithmetic that they call."""

from .depthwise import dgrad_depthwise, fprop_depthwise, wgrad_depthwise
from .fprop import fprop_direct, fprop_fold
from .gradients import dgrad
from .weights import fold_weights, reduce_splits
from .wgrad import wgrad

__all__ = [
    "dgrad",
    "dgrad_depthwise",
    "fold_weights",
    "fprop_depthwise",
    "fprop_direct",
    "fprop_fold",
    "reduce_splits",
    "wgrad",
    "wgrad_depthwise",
]
