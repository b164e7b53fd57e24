# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests that break things share: how many cases a fuzz draws."""

import os

import hypothesis


# Cases a fuzz target draws; the long form draws 10,000 and more.
CASES = int(os.environ.get("SPARSEJEPA_FUZZ_CASES", "200"))

hypothesis.settings.register_profile(
    "fuzz", hypothesis.settings.get_profile("sparsejepa"), max_examples=CASES, derandomize=CASES <= 200, database=None
)
