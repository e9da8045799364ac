"""Callbacks: evaluation of samples in training, generated networks to disk, averaged weights; how processes end."""

from wsflow.callbacks.atomic import AtomicCheckpoints
from wsflow.callbacks.compile import CompileField
from wsflow.callbacks.ema import EMA
from wsflow.callbacks.generation import GenerationCallback
from wsflow.callbacks.preemption import Preemption
from wsflow.callbacks.together import FailTogether
from wsflow.callbacks.writer import SampleWriter, device_name

__all__ = [
    "EMA",
    "AtomicCheckpoints",
    "CompileField",
    "FailTogether",
    "GenerationCallback",
    "Preemption",
    "SampleWriter",
    "device_name",
]
