"""Alignment of networks to a reference, and the loss on the lines between them."""

from wsflow.alignment.barrier import Barriers, Paths, barriers, paths
from wsflow.alignment.base import Aligner, check_same_functions, similarity
from wsflow.alignment.center import Centered, ZooCenter
from wsflow.alignment.weight_matching import Matching, WeightMatching

__all__ = [
    "Aligner",
    "Barriers",
    "Centered",
    "Matching",
    "Paths",
    "WeightMatching",
    "ZooCenter",
    "barriers",
    "check_same_functions",
    "paths",
    "similarity",
]
