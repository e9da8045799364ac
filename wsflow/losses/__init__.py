"""What is added to the flow matching loss, and how its residuals are weighted."""

from wsflow.losses.functional import FunctionalTerm

__all__ = ["FunctionalTerm"]
