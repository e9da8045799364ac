"""Alignment of networks to a reference, and the loss on the lines between them."""

from wsflow.alignment.activation_matching import ActivationMatching
from wsflow.alignment.barrier import Barriers, Paths, barriers, paths
from wsflow.alignment.base import Aligner, check_same_functions, similarity
from wsflow.alignment.center import Centered, ZooCenter
from wsflow.alignment.rebasin_objectives import L2Objective, MidObjective, RandomObjective, RebasinObjective
from wsflow.alignment.sinkhorn import AsGiven, Rebasin, SinkhornRebasin
from wsflow.alignment.weight_matching import Matching, WeightMatching

__all__ = [
    "ActivationMatching",
    "Aligner",
    "AsGiven",
    "Barriers",
    "Centered",
    "L2Objective",
    "Matching",
    "MidObjective",
    "Paths",
    "RandomObjective",
    "Rebasin",
    "RebasinObjective",
    "SinkhornRebasin",
    "WeightMatching",
    "ZooCenter",
    "barriers",
    "check_same_functions",
    "paths",
    "similarity",
]
