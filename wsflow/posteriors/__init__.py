"""Baselines: ways to draw networks from a posterior over weights, judged by the same code as generated networks."""

from wsflow.posteriors.base import Draws, MissingExtraError, PosteriorMethod

__all__ = ["Draws", "MissingExtraError", "PosteriorMethod"]
