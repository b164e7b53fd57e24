# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train SparseJEPA, or I-JEPA, on any images: `sparsejepa pretrain` as a script for launchers.

The flow is in `src/sparsejepa_hf/commands/pretrain.py`, to read, copy and change.
"""

from sparsejepa_hf.commands.pretrain import main


if __name__ == "__main__":
    main()
