"""What generated networks are good for beside predictions: starts of training, on the same or on another task."""

from wsflow.uses.initialisation import Curves, learning_curves, shuffled, steps_to

__all__ = ["Curves", "learning_curves", "shuffled", "steps_to"]
