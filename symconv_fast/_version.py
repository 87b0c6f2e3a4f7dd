# The version, in one place: read by the package when imported and by setuptools when built.
"""Version of symconv_fast."""

__version__ = "0.1.0"
