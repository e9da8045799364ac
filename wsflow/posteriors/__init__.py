"""Baselines: ways to draw networks from a posterior over weights, judged by the same code as generated networks."""

from wsflow.posteriors.base import Draws, MissingExtraError, PosteriorMethod
from wsflow.posteriors.ensemble import DeepEnsemble, ZooEnsemble
from wsflow.posteriors.generated import FlowEnsemble
from wsflow.posteriors.hmc import HMC
from wsflow.posteriors.langevin import SGHMC, SGLD, Schedule
from wsflow.posteriors.laplace import FullLaplace, KroneckerLaplace, LastLayerLaplace
from wsflow.posteriors.recipe import Recipe
from wsflow.posteriors.static_flow import StaticFlow
from wsflow.posteriors.swag import SWAG
from wsflow.posteriors.target import Target
from wsflow.posteriors.variational import MeanFieldVI

__all__ = [
    "HMC",
    "SGHMC",
    "SGLD",
    "SWAG",
    "DeepEnsemble",
    "Draws",
    "FlowEnsemble",
    "FullLaplace",
    "KroneckerLaplace",
    "LastLayerLaplace",
    "MeanFieldVI",
    "MissingExtraError",
    "PosteriorMethod",
    "Recipe",
    "Schedule",
    "StaticFlow",
    "Target",
    "ZooEnsemble",
]
