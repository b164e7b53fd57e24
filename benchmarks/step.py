# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time, operations and memory of one optimizer step, beside what a user would pick instead.

    python -m benchmarks.step
    python -m benchmarks.step --device cuda

All candidates get the same images, masks and token counts, and take turns.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsejepa_hf import MultiBlockMaskSampler, SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.records import NONE, table

from .alternatives.ijepa_loop import StraightforwardLoop
from .alternatives.lightly_ijepa import LightlyLoop
from .harness import records
from .harness.bare_step import BareStep
from .harness.resources import (
    counted_flops,
    in_fresh_process,
    matmul_peak,
    peak_tensor_bytes,
    reset_peak_resident,
    resident_bytes,
)
from .harness.timing import interleaved, speedup, summary


STRAIGHTFORWARD, LIGHTLY = "straightforward I-JEPA loop", "lightly's I-JEPA modules"
OURS_IJEPA, OURS = "ours, I-JEPA", "ours, SparseJEPA"
PRECISIONS = ("fp32", "bf16")
EAGER, UNFUSED, GRAPHS = "eager", "unfused attention", "CUDA graphs"
COMPILED, UNFUSED_COMPILED = "compiled", "unfused attention, compiled"
REPEATS = {"full": 5, "short": 3, "smoke": 1}


class Candidate(NamedTuple):
    """Something that takes a training step in a precision: as it stands, without timm's fused attention, compiled,
    both, or compiled into CUDA graphs."""

    name: str
    precision: str
    mode: str = EAGER


@dataclass(frozen=True)
class Case:
    """A model and a batch. `compiled` adds compiled candidates, which take long to set up."""

    name: str
    preset: str
    batch: int
    compiled: bool = False
    sizes: tuple[tuple[str, int], ...] = ()

    def config(self, use_grouping: bool) -> SparseJEPAConfig:
        """I-JEPA, or SparseJEPA with every term of its loss."""
        weights = {"sparsity_weight": 1e-3, "kl_weight": 1e-5} if use_grouping else {}
        return SparseJEPAConfig.from_preset(self.preset, use_grouping=use_grouping, **weights, **dict(self.sizes))


_SMOKE_SIZES = (("hidden_size", 48), ("num_hidden_layers", 2), ("intermediate_size", 96))
_TINY, _SMALL = ("ViT-Tiny/4, 32 px", "vit-tiny"), ("ViT-S/16, 224 px", "vit-small")
CASES = {
    "full": (Case(*_TINY, 256, compiled=True), Case(*_TINY, 64), Case(*_SMALL, 16), Case(*_SMALL, 8)),
    "short": (Case(*_TINY, 64),),
    "smoke": (Case("width 48 x 2, 32 px", "vit-tiny", 4, sizes=_SMOKE_SIZES),),
}
# A GPU is filled by larger batches.
_BASE = Case("ViT-B/16, 224 px", "vit-base", 128)
CUDA_CASES = {
    "full": (Case(*_TINY, 512, compiled=True), Case(*_TINY, 2048), Case(*_SMALL, 256, compiled=True), _BASE),
    "short": (Case(*_TINY, 512),),
    "smoke": CASES["smoke"],
}


def candidates(case: Case, device: str) -> list[Candidate]:
    """What is measured on a case. The first one is what all others are compared with."""
    lightly = [LIGHTLY] if importlib.util.find_spec("lightly") else []
    kinds = [(name, EAGER) for name in (STRAIGHTFORWARD, *lightly, OURS_IJEPA, OURS)]
    # What a user may do to the loop without rewriting it.
    kinds.append((STRAIGHTFORWARD, UNFUSED))
    if case.compiled:
        modes = (COMPILED, GRAPHS) if device.startswith("cuda") else (COMPILED,)
        kinds += [(name, mode) for name in (STRAIGHTFORWARD, OURS) for mode in modes]
        kinds.append((STRAIGHTFORWARD, UNFUSED_COMPILED))
    return [Candidate(name, precision, mode) for name, mode in kinds for precision in PRECISIONS]


def build(candidate: Candidate, case: Case, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The candidate's training step, with fresh weights."""
    name, precision, mode = candidate
    compile_ = None
    if mode in (COMPILED, UNFUSED_COMPILED, GRAPHS):
        compile_ = partial(torch.compile, dynamic=False, mode="reduce-overhead" if mode == GRAPHS else "default")
    if name in (OURS_IJEPA, OURS):
        model = SparseJEPAForPreTraining(case.config(use_grouping=name == OURS)).to(device)
        return BareStep(model, precision == "bf16", wrap=compile_)
    loop = {STRAIGHTFORWARD: StraightforwardLoop, LIGHTLY: LightlyLoop}[name]
    step = loop(case.config(use_grouping=False), device, precision == "bf16")
    if mode in (UNFUSED, UNFUSED_COMPILED):
        step.unfuse_attention()
    if compile_ is not None:
        step.loss = compile_(step.loss)
    return step


def inputs(case: Case, batch: int, options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images and masks of a batch, the same for all candidates."""
    config = case.config(use_grouping=True)
    generator = torch.Generator().manual_seed(options.seed)
    pixel_values = torch.randn(batch, config.num_channels, *config.image_sides, generator=generator)
    masks = MultiBlockMaskSampler(config.grid_size, seed=options.seed)(batch, 0, device=options.device)
    return pixel_values.to(options.device), *masks


def measure(case: Case, options: argparse.Namespace, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Times, operations and memory of every candidate of a case."""
    batch, small_batch = inputs(case, case.batch, options), inputs(case, 2, options)
    steps = {candidate: build(candidate, case, options.device) for candidate in candidates(case, options.device)}
    calls = {candidate: partial(step, *batch) for candidate, step in steps.items()}
    seconds = interleaved(calls, repeats=options.repeats, warmup=2)
    # A candidate's precision and mode change no product.
    names = dict.fromkeys(candidate.name for candidate in steps)
    flops = {n: counted_flops(partial(build(Candidate(n, "fp32"), case, options.device), *small_batch)) for n in names}
    rows = []
    for candidate, times in seconds.items():
        name, precision, mode = candidate
        flops_per_image, median = flops[name] / 2, summary(times)["median_s"]
        # Some free the gradients before a step, some after it. All begin without.
        steps[candidate].optimizer.zero_grad()
        row = {
            "candidate": name,
            "precision": precision,
            "mode": mode,
            **summary(times),
            "images_per_second": case.batch / median,
            "speedup_over_fp32": speedup(seconds[Candidate(STRAIGHTFORWARD, "fp32")], times),
            "speedup_same_precision": speedup(seconds[Candidate(STRAIGHTFORWARD, precision)], times),
            "counted_flops_per_image": flops_per_image,
            "flops": flops_per_image * case.batch / median,
            "share_of_peak": flops_per_image * case.batch / median / peaks[precision]["flops"],
            # What a CUDA graph holds was allocated when it was recorded.
            "peak_tensor_bytes": None if mode == GRAPHS else peak_tensor_bytes(calls[candidate], options.device),
            "peak_resident_bytes": None,
        }
        if name in (STRAIGHTFORWARD, OURS) and mode == EAGER and (options.device, options.effort) == ("cpu", "full"):
            row["peak_resident_bytes"] = in_fresh_process(_growth, candidate, case, options)
        rows.append(row)
    sampler = MultiBlockMaskSampler(case.config(use_grouping=True).grid_size)
    return {
        "name": case.name,
        "batch": case.batch,
        "patches": sampler.num_patches,
        "context_patches": sampler.num_context_patches,
        "target_patches": [sampler.num_target_blocks, sampler.num_target_patches],
        # What the grouping adds to a step, as a share of I-JEPA's.
        "grouping_cost": {
            precision: speedup(seconds[Candidate(OURS, precision)], seconds[Candidate(OURS_IJEPA, precision)]) - 1.0
            for precision in PRECISIONS
        },
        "rows": rows,
    }


def _growth(candidate: Candidate, case: Case, options: argparse.Namespace) -> int:
    """Bytes that this process grows by in two steps."""
    torch.set_num_threads(options.threads)
    step, batch = build(candidate, case, options.device), inputs(case, case.batch, options)
    reset_peak_resident()
    before = resident_bytes()
    for _ in range(2):
        step(*batch)
    return resident_bytes(peak=True) - before


def render(record: dict[str, Any]) -> str:
    """The record's tables in Markdown."""
    blocks = [_render_case(case, record) for case in record["cases"]]
    peaks = ", ".join(
        f"{precision} {peak['flops'] / 1e9:,.0f} GFLOP/s ({peak['rows']}x{peak['inner']}x{peak['columns']})"
        for precision, peak in record["matmul_peak"].items()
    )
    return "\n\n".join([*blocks, f"Peak of a matrix product on this machine: {peaks}.", records.origin_line(record)])


def _render_case(case: dict[str, Any], record: dict[str, Any]) -> str:
    blocks, target = case["target_patches"]
    title = (
        f"**{case['name']}, batch {case['batch']}, {records.device_name(record)}**: {case['patches']} patches, "
        f"{case['context_patches']} in the "
        f"context, {blocks} blocks of {target}; median of {record['options']['repeats']} rounds"
    )
    header = ["step", "precision", "ms", "images/s", "x straightforward fp32", "x same precision", "GFLOP/image"]
    header += ["share of peak", "tensors at their peak, MB", "x same precision", "process grew by, MB"]
    header += ["x same precision"]
    loops = {
        row["precision"]: row for row in case["rows"] if (row["candidate"], row["mode"]) == (STRAIGHTFORWARD, EAGER)
    }
    rows = []
    for row in case["rows"]:
        cells = [
            row["candidate"] + ("" if row["mode"] == EAGER else f", {row['mode']}"),
            row["precision"],
            f"{1e3 * row['median_s']:,.0f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['speedup_over_fp32']:.2f}",
            f"{row['speedup_same_precision']:.2f}",
            f"{row['counted_flops_per_image'] / 1e9:.2f}",
            f"{100 * row['share_of_peak']:.0f} %",
        ]
        for kind in ("peak_tensor_bytes", "peak_resident_bytes"):
            size, ratio = row[kind], memory_ratio(row, loops[row["precision"]], kind)
            cells += [NONE if size is None else f"{size / 1e6:,.0f}", NONE if ratio is None else f"{ratio:.3f}"]
        rows.append(cells)
    cost = ", ".join(f"{100 * share:+.1f} % in {precision}" for precision, share in case["grouping_cost"].items())
    return f"{title}\n\n{table(header, rows)}\n\nThe grouping adds {cost} to a step of I-JEPA."


def memory_ratio(row: dict[str, Any], loop: dict[str, Any], kind: str) -> float | None:
    """A row's memory as a ratio to the loop's; None where either was not measured."""
    return None if None in (row[kind], loop[kind]) else row[kind] / loop[kind]


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    options = records.parser(__doc__).parse_args(argv)
    options.repeats = options.repeats or REPEATS[options.effort]
    origin = records.start(options)
    seconds = 0.02 if options.effort == "smoke" else 1.0
    peaks = {precision: matmul_peak(precision, options.device, seconds) for precision in PRECISIONS}
    cases = (CUDA_CASES if options.device.startswith("cuda") else CASES)[options.effort]
    measured = [measure(case, options, peaks) for case in cases]
    records.write("step", options, origin, {"matmul_peak": peaks, "cases": measured})


if __name__ == "__main__":
    main()
