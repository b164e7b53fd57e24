# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests that break things share: how many cases a fuzz draws, and a record of what was broken and held."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest


# Cases a fuzz target draws; the long form draws 10,000 and more.
CASES = int(os.environ.get("SPARSEJEPA_FUZZ_CASES", "200"))
_RECORD = os.environ.get("SPARSEJEPA_RELIABILITY_RECORD")

hypothesis.settings.register_profile(
    "fuzz", hypothesis.settings.get_profile("sparsejepa"), max_examples=CASES, derandomize=CASES <= 200, database=None
)


@pytest.fixture
def record_fault() -> Callable[..., None]:
    """`record_fault(kind, fault, injected=n, held=n, **figures)`: a row of the published table of faults.

    Rows are appended to the file that `SPARSEJEPA_RELIABILITY_RECORD` names; without it nothing is written. Tests call
    it after their assertions: what did not hold fails, and is never written as held.
    """

    def record(kind: str, fault: str, *, injected: int, held: int, **figures: Any) -> None:
        if _RECORD is not None:
            row = {"kind": kind, "fault": fault, "injected": injected, "held": held, **figures}
            with Path(_RECORD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return record
