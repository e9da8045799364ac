"""One page about runs: settings, tables, figures and model cards, in a file that needs no network."""

from wsflow.report.report import report
from wsflow.report.runs import Case, Run, read_runs

__all__ = ["Case", "Run", "read_runs", "report"]
