"""What a model's symmetry looks like: of its filters, of its features, of its predictions."""

from .mirrored import MirroredReport, MirroredRow, SpaceMatch, match_mirrored

__all__ = ["MirroredReport", "MirroredRow", "SpaceMatch", "match_mirrored"]
