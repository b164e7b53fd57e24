# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Probe one frozen checkpoint on one or several data sets: `sparsejepa probe` as a script for launchers.

The flow is in `src/sparsejepa_hf/commands/probe.py`, to read, copy and change.
"""

from sparsejepa_hf.commands.probe import main


if __name__ == "__main__":
    main()
