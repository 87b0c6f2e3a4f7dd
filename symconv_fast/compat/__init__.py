"""Checkpoints of the published layers, in and out."""
