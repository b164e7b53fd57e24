# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a model needs beside its weights where others find it."""

from .endpoint import write_handler


__all__ = ["write_handler"]
