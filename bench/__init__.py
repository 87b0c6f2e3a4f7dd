# Makes the benchmark importable as `bench`, from the root of the repository.
"""Benchmarks of symconv_fast."""
