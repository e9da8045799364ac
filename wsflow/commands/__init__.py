"""What the commands beside fit, validate and test do; :mod:`wsflow.cli` parses their arguments."""

from wsflow.commands.barrier import barrier
from wsflow.commands.collect import collect
from wsflow.commands.evaluate import evaluate
from wsflow.commands.export import export
from wsflow.commands.import_ import import_
from wsflow.commands.predict import predict

__all__ = ["barrier", "collect", "evaluate", "export", "import_", "predict"]
