"""Weight space: flat vectors of weights, their structure and their symmetries."""

from wsflow.weightspace.batch import ZooBatch
from wsflow.weightspace.initializer import GaussianInitializer, Initializer, NetworkInitializer
from wsflow.weightspace.networks import mlp
from wsflow.weightspace.objective import Objective
from wsflow.weightspace.space import GroupVector, NeuronGroup, Partition, WeightBlock, WeightSpace
from wsflow.weightspace.trace import UnsupportedModuleError

__all__ = [
    "GaussianInitializer",
    "GroupVector",
    "Initializer",
    "NetworkInitializer",
    "NeuronGroup",
    "Objective",
    "Partition",
    "UnsupportedModuleError",
    "WeightBlock",
    "WeightSpace",
    "ZooBatch",
    "mlp",
]
