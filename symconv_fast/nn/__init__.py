"""Layers beside the tied ones: what networks with symmetric filters are built and repaired with."""
