"""Vector fields on weight space, and what their outputs mean."""

from wsflow.fields.analytic import GaussianField
from wsflow.fields.base import VectorField, check_same_ends
from wsflow.fields.conditioning import Conditioning, Range, Request, conditional, follow_request, tell
from wsflow.fields.gradient_informed import GradientInformed
from wsflow.fields.message_passing import MessagePassingField
from wsflow.fields.mlp import MLPField
from wsflow.fields.neuron_transformer import NeuronTransformer
from wsflow.fields.parametrization import ConditionalSample, Endpoint, Parametrization, Velocity
from wsflow.fields.pna import PNAField
from wsflow.fields.relational_transformer import RelationalTransformer
from wsflow.fields.self_conditioned import SelfConditioned, follow, predict
from wsflow.fields.time_embedding import TimeEmbedding

__all__ = [
    "ConditionalSample",
    "Conditioning",
    "Endpoint",
    "GaussianField",
    "GradientInformed",
    "MLPField",
    "MessagePassingField",
    "NeuronTransformer",
    "PNAField",
    "Parametrization",
    "Range",
    "RelationalTransformer",
    "Request",
    "SelfConditioned",
    "TimeEmbedding",
    "VectorField",
    "Velocity",
    "check_same_ends",
    "conditional",
    "follow",
    "follow_request",
    "predict",
    "tell",
]
