# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The commands as scripts; `python -m examples.reproduce.NAME` starts what measures many runs."""
