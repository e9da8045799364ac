"""What is added to the flow matching loss, and how its residuals are weighted."""

from wsflow.losses.functional import FunctionalTerm
from wsflow.losses.rollout import RolloutTerm
from wsflow.losses.weighting import Fisher, PerTensor, Weighting

__all__ = ["Fisher", "FunctionalTerm", "PerTensor", "RolloutTerm", "Weighting"]
