"""Flows: priors, couplings, times, paths, solvers and samplers."""

from wsflow.flow.adaptive import DormandPrince
from wsflow.flow.coupling import (
    AlignedOptimalTransportCoupling,
    Coupling,
    IndependentCoupling,
    OptimalTransportCoupling,
    TrajectoryCoupling,
)
from wsflow.flow.divergence import ExactTrace, GaussianProbes, Hutchinson, Probes, RademacherProbes, Trace
from wsflow.flow.grid import CosineGrid, ListGrid, PowerGrid, TimeGrid, UniformGrid
from wsflow.flow.guidance import (
    Clip,
    EndpointGuidance,
    Guidance,
    IntervalStrength,
    NormClip,
    PowerStrength,
    RelativeClip,
    StateGuidance,
    Strength,
)
from wsflow.flow.likelihood import Likelihood, LogDensity, measure
from wsflow.flow.noise import AddedNoise, Churn, Noise
from wsflow.flow.path import ConstantNoisePath, GeodesicPath, PathSample, ProbabilityPath
from wsflow.flow.prior import (
    GaussianPrior,
    LatentNormal,
    NetworkPrior,
    NoDensityError,
    Prior,
    ProjectedNormal,
    StartsPrior,
    sample_prior,
    size_mismatch,
)
from wsflow.flow.sampler import Sampler
from wsflow.flow.snapshot_path import SnapshotPath
from wsflow.flow.solver import RK4, Counted, Euler, Heun, Solver, integrate
from wsflow.flow.time import BetaTime, TimeLaw, UniformTime
from wsflow.weightspace.randomness import sample_generator, sample_generators

__all__ = [
    "RK4",
    "AddedNoise",
    "AlignedOptimalTransportCoupling",
    "BetaTime",
    "Churn",
    "Clip",
    "ConstantNoisePath",
    "CosineGrid",
    "Counted",
    "Coupling",
    "DormandPrince",
    "EndpointGuidance",
    "Euler",
    "ExactTrace",
    "GaussianPrior",
    "GaussianProbes",
    "GeodesicPath",
    "Guidance",
    "Heun",
    "Hutchinson",
    "IndependentCoupling",
    "IntervalStrength",
    "LatentNormal",
    "Likelihood",
    "ListGrid",
    "LogDensity",
    "NetworkPrior",
    "NoDensityError",
    "Noise",
    "NormClip",
    "OptimalTransportCoupling",
    "PathSample",
    "PowerGrid",
    "PowerStrength",
    "Prior",
    "ProbabilityPath",
    "Probes",
    "ProjectedNormal",
    "RademacherProbes",
    "RelativeClip",
    "Sampler",
    "SnapshotPath",
    "Solver",
    "StartsPrior",
    "StateGuidance",
    "Strength",
    "TimeGrid",
    "TimeLaw",
    "Trace",
    "TrajectoryCoupling",
    "UniformGrid",
    "UniformTime",
    "integrate",
    "measure",
    "sample_generator",
    "sample_generators",
    "sample_prior",
    "size_mismatch",
]
