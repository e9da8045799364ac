"""Callbacks: evaluation of samples in training, generated networks to disk, averaged weights."""

from wsflow.callbacks.ema import EMA
from wsflow.callbacks.generation import GenerationCallback
from wsflow.callbacks.writer import SampleWriter, device_name

__all__ = ["EMA", "GenerationCallback", "SampleWriter", "device_name"]
