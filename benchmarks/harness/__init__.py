# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""How the benchmarks measure: timing, memory and operations, the bare step, records."""
