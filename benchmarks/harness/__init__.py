# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""How the benchmarks measure: timing, memory, counted operations, the machine's limit, records."""
