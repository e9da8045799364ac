"""Flow matching in weight space: a generative model whose samples are trained neural networks.

``wsflow.load(path)`` gives a trained model that samples weights.  Everything else is imported from its room, such as
:mod:`wsflow.weightspace` or :mod:`wsflow.flow`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsflow.api import load as load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # ``load`` needs Lightning, which importing one room must not.
    if name == "load":
        from wsflow.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
