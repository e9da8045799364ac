"""Base tasks: the data that base networks are trained on."""

from wsflow.tasks.base import SPLITS, BaseTask
from wsflow.tasks.breast_cancer import BreastCancer
from wsflow.tasks.classification import ClassificationTask

__all__ = ["SPLITS", "BaseTask", "BreastCancer", "ClassificationTask"]
