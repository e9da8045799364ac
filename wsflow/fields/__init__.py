"""Vector fields on weight space, and what their outputs mean."""

from wsflow.fields.base import VectorField, check_same_ends
from wsflow.fields.parametrization import ConditionalSample, Endpoint, Parametrization, Velocity

__all__ = [
    "ConditionalSample",
    "Endpoint",
    "Parametrization",
    "VectorField",
    "Velocity",
    "check_same_ends",
]
