# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `sparsejepa` for launchers: `accelerate launch -m sparsejepa_hf pretrain ...`."""

from .commands import main


if __name__ == "__main__":
    main()
