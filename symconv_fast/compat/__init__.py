"""Checkpoints of the published layers, in and out."""

from .cnn_symmetry import CheckpointError, cnn_symmetry_counts, load_cnn_symmetry, to_cnn_symmetry
from .cnn_symmetry_tf import from_tf, to_tf
from .global_conv_tf import global_from_tf, global_to_tf
from .tf_layers import TFOrdered, TFSamePad2d, tf_channel_order, tf_same_padding

__all__ = [
    "CheckpointError",
    "TFOrdered",
    "TFSamePad2d",
    "cnn_symmetry_counts",
    "from_tf",
    "global_from_tf",
    "global_to_tf",
    "load_cnn_symmetry",
    "tf_channel_order",
    "tf_same_padding",
    "to_cnn_symmetry",
    "to_tf",
]
