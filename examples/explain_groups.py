# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Explain the groups of a SparseJEPA on images: `sparsejepa explain` as a script for launchers.

The flow is in `src/sparsejepa_hf/commands/explain.py`, to read, copy and change.
"""

from sparsejepa_hf.commands.explain import main


if __name__ == "__main__":
    main()
