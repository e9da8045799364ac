"""What generated networks are for: predictions averaged over many of them, and how far to trust these."""

from wsflow.bayes.calibration import inverse_temperature, tempered
from wsflow.bayes.disagreement import Disagreement, disagreement, error_overlap, jensen_shannon
from wsflow.bayes.ensembles import SIZES, SizeScores, by_size
from wsflow.bayes.importance import (
    ImportanceWeights,
    NoisyWeightsWarning,
    WeightsCollapsedWarning,
    gaussian_log_prior,
    importance_weights,
    log_likelihood,
)
from wsflow.bayes.members import Members, Source, members
from wsflow.bayes.mixing import Subsets, mixing, subsets
from wsflow.bayes.modules import EnsembleModule, MemberLogits, as_modules
from wsflow.bayes.outliers import Noise, OtherTask, OutlierSource, ShuffledFeatures, auroc, epistemic
from wsflow.bayes.predictive import ClassPredictive, Predictive, ValuePredictive, predictive
from wsflow.bayes.scores import (
    Reliability,
    ScoreError,
    accuracy,
    aurc,
    brier,
    ece,
    epistemic_std,
    nll,
    reliability,
    risk_coverage,
    rmse,
    scores,
)

__all__ = [
    "SIZES",
    "ClassPredictive",
    "Disagreement",
    "EnsembleModule",
    "ImportanceWeights",
    "MemberLogits",
    "Members",
    "Noise",
    "NoisyWeightsWarning",
    "OtherTask",
    "OutlierSource",
    "Predictive",
    "Reliability",
    "ScoreError",
    "ShuffledFeatures",
    "SizeScores",
    "Source",
    "Subsets",
    "ValuePredictive",
    "WeightsCollapsedWarning",
    "accuracy",
    "as_modules",
    "aurc",
    "auroc",
    "brier",
    "by_size",
    "disagreement",
    "ece",
    "epistemic",
    "epistemic_std",
    "error_overlap",
    "gaussian_log_prior",
    "importance_weights",
    "inverse_temperature",
    "jensen_shannon",
    "log_likelihood",
    "members",
    "mixing",
    "nll",
    "predictive",
    "reliability",
    "risk_coverage",
    "rmse",
    "scores",
    "subsets",
    "tempered",
]
