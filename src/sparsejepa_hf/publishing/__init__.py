# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a model needs beside its weights where others find it: a card, and a handler that serves it."""

from .endpoint import write_handler
from .model_card import MODEL_KINDS, write_model_card


__all__ = ["MODEL_KINDS", "write_handler", "write_model_card"]
