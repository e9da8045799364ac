"""Weight space: flat vectors of weights, their structure and their symmetries."""

from wsflow.weightspace.batch import ZooBatch
from wsflow.weightspace.check import SymmetryError, check_symmetries
from wsflow.weightspace.elements import GroupVector, NamedTensor, NeuronGroup, Partition, Rescaling, WeightBlock
from wsflow.weightspace.initializer import GaussianInitializer, Initializer, NetworkInitializer
from wsflow.weightspace.labels import UnsupportedModuleError
from wsflow.weightspace.networks import cnn, mlp
from wsflow.weightspace.objective import FunctionObjective, Objective, WeightedSum, WeightNorm
from wsflow.weightspace.space import WeightSpace
from wsflow.weightspace.statistics import batch_statistics

__all__ = [
    "FunctionObjective",
    "GaussianInitializer",
    "GroupVector",
    "Initializer",
    "NamedTensor",
    "NetworkInitializer",
    "NeuronGroup",
    "Objective",
    "Partition",
    "Rescaling",
    "SymmetryError",
    "UnsupportedModuleError",
    "WeightBlock",
    "WeightNorm",
    "WeightSpace",
    "WeightedSum",
    "ZooBatch",
    "batch_statistics",
    "check_symmetries",
    "cnn",
    "mlp",
]
