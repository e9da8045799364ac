"""Alignment of networks to a reference."""

from wsflow.alignment.base import Aligner, check_same_functions, similarity
from wsflow.alignment.weight_matching import WeightMatching

__all__ = ["Aligner", "WeightMatching", "check_same_functions", "similarity"]
