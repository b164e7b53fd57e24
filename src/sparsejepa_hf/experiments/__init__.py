# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Experiments of many runs: the paper's table, sweeps, and how they are rendered."""

from .reproduction import read_record, reproduce
from .runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, PreTrainingFailed, Run, RunRecord, Runs


__all__ = [
    "IJEPA",
    "IJEPA_OPTIONS",
    "SPARSEJEPA",
    "PreTrainingFailed",
    "Run",
    "RunRecord",
    "Runs",
    "read_record",
    "reproduce",
]
