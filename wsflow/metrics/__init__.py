"""How good, how new and how diverse generated networks are."""

from wsflow.metrics.baselines import (
    AverageBaseline,
    Baseline,
    DisplacementBaseline,
    EqualCostBaseline,
    GaussianBaseline,
    LatentGaussianBaseline,
    Material,
    NoiseBaseline,
    RetrievalBaseline,
)
from wsflow.metrics.diversity import dispersion, moments
from wsflow.metrics.evaluation import Evaluation, EvaluationMetric, Family, Report, evaluate
from wsflow.metrics.function_space import nearest, pairwise, predict
from wsflow.metrics.matching import Noisy, match_noise
from wsflow.metrics.novelty import nn_ratio, z_u
from wsflow.metrics.quality import Quality, ensemble, quality
from wsflow.metrics.report import render, render_text
from wsflow.metrics.weight_space import CanonicalWeights, distance, nearest_distance

__all__ = [
    "AverageBaseline",
    "Baseline",
    "CanonicalWeights",
    "DisplacementBaseline",
    "EqualCostBaseline",
    "Evaluation",
    "EvaluationMetric",
    "Family",
    "GaussianBaseline",
    "LatentGaussianBaseline",
    "Material",
    "NoiseBaseline",
    "Noisy",
    "Quality",
    "Report",
    "RetrievalBaseline",
    "dispersion",
    "distance",
    "ensemble",
    "evaluate",
    "match_noise",
    "moments",
    "nearest",
    "nearest_distance",
    "nn_ratio",
    "pairwise",
    "predict",
    "quality",
    "render",
    "render_text",
    "z_u",
]
