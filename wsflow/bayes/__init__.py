"""What generated networks are for: predictions averaged over many of them, and how far to trust these."""

from wsflow.bayes.members import Members, Source, members
from wsflow.bayes.mixing import Subsets, mixing, subsets
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
    "ClassPredictive",
    "Members",
    "Predictive",
    "Reliability",
    "ScoreError",
    "Source",
    "Subsets",
    "ValuePredictive",
    "accuracy",
    "aurc",
    "brier",
    "ece",
    "epistemic_std",
    "members",
    "mixing",
    "nll",
    "predictive",
    "reliability",
    "risk_coverage",
    "rmse",
    "scores",
    "subsets",
]
