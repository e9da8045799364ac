"""Flows: priors, couplings, times, paths, solvers and samplers."""

from wsflow.flow.coupling import (
    AlignedOptimalTransportCoupling,
    Coupling,
    IndependentCoupling,
    OptimalTransportCoupling,
    TrajectoryCoupling,
)
from wsflow.flow.path import ConstantNoisePath, GeodesicPath, PathSample, ProbabilityPath
from wsflow.flow.prior import (
    GaussianPrior,
    LatentNormal,
    NetworkPrior,
    NoDensityError,
    Prior,
    StartsPrior,
    sample_prior,
    size_mismatch,
)
from wsflow.flow.sampler import Sampler
from wsflow.flow.snapshot_path import SnapshotPath
from wsflow.flow.solver import RK4, Euler, Heun, Solver, integrate
from wsflow.flow.time import BetaTime, TimeLaw, UniformTime
from wsflow.weightspace.randomness import sample_generator, sample_generators

__all__ = [
    "RK4",
    "AlignedOptimalTransportCoupling",
    "BetaTime",
    "ConstantNoisePath",
    "Coupling",
    "Euler",
    "GaussianPrior",
    "GeodesicPath",
    "Heun",
    "IndependentCoupling",
    "LatentNormal",
    "NetworkPrior",
    "NoDensityError",
    "OptimalTransportCoupling",
    "PathSample",
    "Prior",
    "ProbabilityPath",
    "Sampler",
    "SnapshotPath",
    "Solver",
    "StartsPrior",
    "TimeLaw",
    "TrajectoryCoupling",
    "UniformTime",
    "integrate",
    "sample_generator",
    "sample_generators",
    "sample_prior",
    "size_mismatch",
]
