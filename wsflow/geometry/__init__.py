"""Geometries: the spaces that flows live in."""

from wsflow.geometry.base import Geometry
from wsflow.geometry.euclidean import Euclidean

__all__ = ["Euclidean", "Geometry"]
