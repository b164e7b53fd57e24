# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory, beside what a user would pick instead. One command each, from the root of the checkout:

    python -m benchmarks.step             # one optimizer step
    python -m benchmarks.input            # decoding, augmentation, masks
    python -m benchmarks.end_to_end       # examples/pretrain.py against the bare step
    python -m benchmarks.scaling          # time and memory against sizes
    python -m benchmarks.inference        # features a second, latency, cold start
    python -m benchmarks.time_to_accuracy # seconds to a kNN accuracy
    python -m benchmarks.cluster          # what a run on many GPUs would need, calculated
    python -m benchmarks.summary          # the main ratios of the others' records

Each but the last two writes `<results_dir>/benchmark_<name>_<device>.json` and the same as a Markdown table.
`--effort short` is a brief version, `--effort smoke` only checks that everything runs.
"""
