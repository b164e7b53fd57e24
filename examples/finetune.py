# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pre-trained encoder as an image classifier: `sparsejepa finetune` as a script for launchers.

The flow is in `src/sparsejepa_hf/commands/finetune.py`, to read, copy and change.
"""

from sparsejepa_hf.commands.finetune import main


if __name__ == "__main__":
    main()
