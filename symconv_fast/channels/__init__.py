"""Which tensors of a model share one order of channels: `find_spaces`, and `Spaces.permute` to change it."""

from .spaces import Space, Spaces, find_spaces

__all__ = ["Space", "Spaces", "find_spaces"]
