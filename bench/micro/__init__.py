# Throw-away measurements of single instructions.
"""Micro-benchmarks, each with a runner of its own."""
