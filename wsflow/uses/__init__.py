"""What generated networks are good for beside predictions: starts of training, on the same or on another task."""

from wsflow.uses.initialisation import Curves, learning_curves, shuffled, steps_to
from wsflow.uses.result import markdown, median, rows, summary

__all__ = ["Curves", "learning_curves", "markdown", "median", "rows", "shuffled", "steps_to", "summary"]
