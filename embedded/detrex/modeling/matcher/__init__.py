from .matcher import HungarianMatcher

__all__ = ["HungarianMatcher"]
