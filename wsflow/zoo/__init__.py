"""Zoos: many trained networks, collected, kept on disk and served to training."""

from wsflow.zoo.collect import Collector
from wsflow.zoo.datamodule import ZooDataModule
from wsflow.zoo.exchange import export_network, export_zoo, import_zoo
from wsflow.zoo.labels import Label, MetricLabel, RunLabel, StepLabel
from wsflow.zoo.loader import NetworkLoader
from wsflow.zoo.optimizer import SGD, Adam, CosineDecay, RunOptimizer
from wsflow.zoo.parts import SamplesPart
from wsflow.zoo.shards import ZooError, file_hash
from wsflow.zoo.share import array_share, parse_share, process_share, share_from_environment
from wsflow.zoo.snapshots import EverySnapshot, FinalSnapshot, SnapshotSchedule, ValidationSnapshot
from wsflow.zoo.store import Zoo, split_runs
from wsflow.zoo.write import write_manifest, write_networks

__all__ = [
    "SGD",
    "Adam",
    "Collector",
    "CosineDecay",
    "EverySnapshot",
    "FinalSnapshot",
    "Label",
    "MetricLabel",
    "NetworkLoader",
    "RunLabel",
    "RunOptimizer",
    "SamplesPart",
    "SnapshotSchedule",
    "StepLabel",
    "ValidationSnapshot",
    "Zoo",
    "ZooDataModule",
    "ZooError",
    "array_share",
    "export_network",
    "export_zoo",
    "file_hash",
    "import_zoo",
    "parse_share",
    "process_share",
    "share_from_environment",
    "split_runs",
    "write_manifest",
    "write_networks",
]
