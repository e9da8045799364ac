"""Base tasks: the data that base networks are trained on."""

from wsflow.tasks.base import SPLITS, BaseTask
from wsflow.tasks.breast_cancer import BreastCancer
from wsflow.tasks.classification import ClassificationTask
from wsflow.tasks.diabetes import Diabetes
from wsflow.tasks.digits import Digits
from wsflow.tasks.gaussians import Gaussians
from wsflow.tasks.head import FashionMNISTHead
from wsflow.tasks.mnist import MNIST, ConvFashionMNIST, ConvMNIST, FashionMNIST
from wsflow.tasks.objectives import FGSM, PGD, AdversarialLoss, Attack, TaskLoss
from wsflow.tasks.regression import RegressionTask
from wsflow.tasks.without_data import WithoutData

__all__ = [
    "FGSM",
    "MNIST",
    "PGD",
    "SPLITS",
    "AdversarialLoss",
    "Attack",
    "BaseTask",
    "BreastCancer",
    "ClassificationTask",
    "ConvFashionMNIST",
    "ConvMNIST",
    "Diabetes",
    "Digits",
    "FashionMNIST",
    "FashionMNISTHead",
    "Gaussians",
    "RegressionTask",
    "TaskLoss",
    "WithoutData",
]
