"""Geometries: the spaces that flows live in."""

from wsflow.geometry.base import Geometry
from wsflow.geometry.canonical import CanonicalForm
from wsflow.geometry.euclidean import Euclidean
from wsflow.geometry.geometric import Geometric
from wsflow.geometry.latent import UNALIGNED, PrincipalComponents
from wsflow.geometry.normalized import Normalized

__all__ = [
    "UNALIGNED",
    "CanonicalForm",
    "Euclidean",
    "Geometric",
    "Geometry",
    "Normalized",
    "PrincipalComponents",
]
