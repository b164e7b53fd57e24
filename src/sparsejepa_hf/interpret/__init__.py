# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the groups of a SparseJEPA stand for: maps, pictures, measures beside their nulls, a report and a page.

`interpret.figures` and `interpret.report` need matplotlib (the extra `plots`), `interpret.app` needs Gradio (`app`).
"""

from .analysis import Explanation, explain
from .groups import GroupStructure, find_grouping, find_model, group_activations, group_structure
from .measures import Measure, NotMeasurable, Null, Section
from .patches import EXTRA_COLUMNS, PatchRecord, collect_patches


__all__ = [
    "EXTRA_COLUMNS",
    "Explanation",
    "GroupStructure",
    "Measure",
    "NotMeasurable",
    "Null",
    "PatchRecord",
    "Section",
    "collect_patches",
    "explain",
    "find_grouping",
    "find_model",
    "group_activations",
    "group_structure",
]
