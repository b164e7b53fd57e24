# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Experiments of many runs. One command each, from the root of the checkout:

    python -m examples.reproduce.paper_table   # I-JEPA and SparseJEPA side by side, the paper's table
    python -m examples.reproduce.sweep         # accuracy and sparsity against λ, G, β and other options
    python -m examples.reproduce.queue         # long runs in the background, through interruptions

`runs` makes the runs of one recipe; `experiment` probes them and keeps the results file.
"""
