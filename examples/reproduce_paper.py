# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Deprecated: the name of `python -m examples.reproduce.paper_table` in 0.1, with the flags of then."""

import sys
import warnings
from pathlib import Path


# For whoever starts this file by its path: the checkout's root, where the package `examples` lies.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def translate(words: list[str]) -> list[str]:
    """The flags of today: `--tasks` was `--benchmarks`, and `--probe logistic` is the only probe that is left."""
    words = ["--tasks" if word == "--benchmarks" else word for word in words]
    if "--probe" in words:
        place = words.index("--probe")
        if words[place + 1 : place + 2] != ["logistic"]:
            raise SystemExit("--probe is gone: probes are logistic regression. Leave it out.")
        del words[place : place + 2]
    return words


if __name__ == "__main__":
    from examples.reproduce.paper_table import main

    warnings.warn("Use `python -m examples.reproduce.paper_table`.", FutureWarning, stacklevel=1)
    main(translate(sys.argv[1:]))
