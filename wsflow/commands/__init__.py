"""What the commands beside fit, validate and test do; :mod:`wsflow.cli` parses their arguments."""

from wsflow.commands.barrier import barrier
from wsflow.commands.baselines import baselines
from wsflow.commands.bayes import bayes
from wsflow.commands.collect import collect
from wsflow.commands.evaluate import evaluate
from wsflow.commands.experiment import experiment
from wsflow.commands.export import export
from wsflow.commands.import_ import import_
from wsflow.commands.initialise import initialise
from wsflow.commands.launch import check_devices, launched, process_settings, restarted, resumed, run_apart, several
from wsflow.commands.likelihood import likelihood
from wsflow.commands.predict import predict
from wsflow.commands.report import report
from wsflow.commands.table import table
from wsflow.commands.transfer import transfer

__all__ = [
    "barrier",
    "baselines",
    "bayes",
    "check_devices",
    "collect",
    "evaluate",
    "experiment",
    "export",
    "import_",
    "initialise",
    "launched",
    "likelihood",
    "predict",
    "process_settings",
    "report",
    "restarted",
    "resumed",
    "run_apart",
    "several",
    "table",
    "transfer",
]
