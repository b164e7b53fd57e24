# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time, operations and memory of one optimizer step, beside what a user would pick instead.

    python -m benchmarks.step
    python -m benchmarks.step --device cuda --reference ~/ijepa

All candidates get the same images, masks and token counts, and take turns. `--reference DIR` times the official I-JEPA
code too, from a checkout of yours.
"""

import argparse
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsejepa_hf import MultiBlockMaskSampler, SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.records import NONE, table

from .alternatives.ijepa_loop import StraightforwardLoop
from .alternatives.lightly_ijepa import LightlyLoop
from .alternatives.official_ijepa import OfficialLoop
from .harness import memory, records
from .harness.bare_step import BareStep
from .harness.flops import counted_flops, step_flops
from .harness.machine import matmul_peak
from .harness.timing import interleaved, speedup, summary


STRAIGHTFORWARD, LIGHTLY, OFFICIAL = "straightforward I-JEPA loop", "lightly's I-JEPA modules", "official I-JEPA code"
OURS_IJEPA, OURS = "ours, I-JEPA", "ours, SparseJEPA"
PRECISIONS = ("fp32", "bf16")

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
UNFUSED, BOTH = "unfused attention", "unfused attention, compiled"
# Modes of `torch.compile` by their names here.
COMPILED = {"compiled": "default", BOTH: "default", "CUDA graphs": "reduce-overhead"}


@dataclass(frozen=True)
class Case:
    """A model and a batch; `compiled` adds compiled candidates, which take long to set up."""

    name: str
    config: dict[str, Any]
    batch: int
    compiled: bool = False


@dataclass(frozen=True)
class Candidate:
    """Something that takes a training step in a precision: eager, with timm's fused attention switched off, compiled,
    both, or compiled into CUDA graphs."""

    name: str
    precision: str
    mode: str = "eager"

    @property
    def key(self) -> str:
        return f"{self.name}, {self.precision}, {self.mode}"


_TINY = {"preset": "vit-tiny"}
_SMALL = {"preset": "vit-small"}
_SMOKE = {"preset": "vit-tiny", "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}
CASES = {
    "full": (
        Case("ViT-Tiny/4, 32 px", _TINY, 256, compiled=True),
        Case("ViT-Tiny/4, 32 px", _TINY, 64),
        Case("ViT-S/16, 224 px", _SMALL, 16),
        Case("ViT-S/16, 224 px", _SMALL, 8),
    ),
    "short": (Case("ViT-Tiny/4, 32 px", _TINY, 64),),
    "smoke": (Case("width 48 x 2, 32 px", _SMOKE, 4),),
}
# A GPU is filled by larger batches.
CUDA_CASES = {
    **CASES,
    "full": (
        Case("ViT-Tiny/4, 32 px", _TINY, 512, compiled=True),
        Case("ViT-Tiny/4, 32 px", _TINY, 2048),
        Case("ViT-S/16, 224 px", _SMALL, 256, compiled=True),
        Case("ViT-B/16, 224 px", {"preset": "vit-base"}, 128),
    ),
    "short": (Case("ViT-Tiny/4, 32 px", _TINY, 512),),
}
REPEATS = {"full": 5, "short": 3, "smoke": 1}


def build_config(case: Case, use_grouping: bool = True) -> SparseJEPAConfig:
    """The case's configuration: I-JEPA, or with the grouping, λ and β switched on."""
    weights = {"sparsity_weight": 1e-3, "kl_weight": 1e-5} if use_grouping else {}
    options = {**case.config, "use_grouping": use_grouping, **weights}
    return SparseJEPAConfig.from_preset(options.pop("preset"), **options)


def candidates(case: Case, device: str, reference: Path | None) -> Iterator[Candidate]:
    """What is measured on a case; the first one is what all others are compared with."""
    names = [STRAIGHTFORWARD]
    names += [LIGHTLY] if importlib.util.find_spec("lightly") else []
    names += [OFFICIAL] if reference else []
    for name in (*names, OURS_IJEPA, OURS):
        for precision in PRECISIONS:
            yield Candidate(name, precision)
    # What a user may do to the loop without changing it.
    for precision in PRECISIONS:
        yield Candidate(STRAIGHTFORWARD, precision, UNFUSED)
    modes = [] if not case.compiled else ["compiled", "CUDA graphs"] if device.startswith("cuda") else ["compiled"]
    for name in (STRAIGHTFORWARD, OURS):
        for mode in modes:
            for precision in PRECISIONS:
                yield Candidate(name, precision, mode)
    for precision in PRECISIONS if case.compiled else ():
        yield Candidate(STRAIGHTFORWARD, precision, BOTH)


def build(candidate: Candidate, case: Case, device: str, reference: Path | None = None) -> Step:
    """The candidate's training step, with fresh weights."""
    autocast = candidate.precision == "bf16"
    if candidate.name in (OURS_IJEPA, OURS):
        config = build_config(case, use_grouping=candidate.name == OURS)
        step = BareStep(SparseJEPAForPreTraining(config).to(device), autocast)
        if candidate.mode in COMPILED:
            step.wrap(_compile(candidate))
        return step
    loops = {STRAIGHTFORWARD: StraightforwardLoop, LIGHTLY: LightlyLoop, OFFICIAL: partial(OfficialLoop, reference)}
    loop = loops[candidate.name](build_config(case, use_grouping=False), device, autocast)
    if candidate.mode in (UNFUSED, BOTH):
        loop.unfuse_attention()
    if candidate.mode in COMPILED:
        loop.loss = _compile(candidate)(loop.loss)
    return loop


def _compile(candidate: Candidate) -> Callable[[Any], Any]:
    return partial(torch.compile, dynamic=False, mode=COMPILED[candidate.mode])


def inputs(case: Case, batch: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images and masks of a batch, the same for all candidates."""
    config = build_config(case)
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch, config.num_channels, *config.image_sides, generator=generator)
    masks = MultiBlockMaskSampler(config.grid_size, seed=seed)(batch, 0, device=device)
    return pixel_values.to(device), *masks


def measure(case: Case, options: argparse.Namespace, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Times, operations and memory of every candidate of a case."""
    batch = inputs(case, case.batch, options.seed, options.device)
    steps = {c: build(c, case, options.device, options.reference) for c in _all(case, options)}
    calls = {candidate: partial(step, *batch) for candidate, step in steps.items()}
    seconds = interleaved(calls, repeats=options.repeats, warmup=2, device=options.device)
    baselines = {precision: seconds[Candidate(STRAIGHTFORWARD, precision)] for precision in PRECISIONS}
    sampler = MultiBlockMaskSampler(build_config(case).grid_size)
    return {
        "name": case.name,
        "batch": case.batch,
        "patches": sampler.num_patches,
        "context_patches": sampler.num_context_patches,
        "target_patches": [sampler.num_target_blocks, sampler.num_target_patches],
        "flops_per_image": _formula(case, sampler),
        "grouping_cost": _grouping_cost(seconds),
        "rows": [
            {
                "candidate": candidate.name,
                "precision": candidate.precision,
                "mode": candidate.mode,
                **summary(times),
                "images_per_second": case.batch / summary(times)["median_s"],
                "speedup_over_fp32": speedup(baselines["fp32"], times),
                "speedup_same_precision": speedup(baselines[candidate.precision], times),
                **_operations(candidate, case, options, summary(times)["median_s"], peaks),
                "peak_tensor_bytes": _peak_tensor_bytes(candidate, steps[candidate], batch, options.device),
                "peak_resident_bytes": _resident(candidate, case, options),
            }
            for candidate, times in seconds.items()
        ],
    }


def _all(case: Case, options: argparse.Namespace) -> list[Candidate]:
    return list(candidates(case, options.device, options.reference))


def _formula(case: Case, sampler: MultiBlockMaskSampler) -> dict[str, dict[str, int]]:
    counts = (sampler.num_context_patches, sampler.num_target_blocks, sampler.num_target_patches)
    return {name: step_flops(build_config(case, use_grouping=name == OURS), *counts) for name in (OURS_IJEPA, OURS)}


def _grouping_cost(seconds: dict[Candidate, list[float]]) -> dict[str, float]:
    """What the grouping adds to a step, as a share of I-JEPA's, by precision."""
    return {
        precision: speedup(seconds[Candidate(OURS, precision)], seconds[Candidate(OURS_IJEPA, precision)]) - 1.0
        for precision in PRECISIONS
    }


def _operations(
    candidate: Candidate, case: Case, options: argparse.Namespace, seconds: float, peaks: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Counted while a small eager batch runs; compiling changes no product."""
    step = build(Candidate(candidate.name, candidate.precision), case, options.device, options.reference)
    batch = inputs(case, 2, options.seed, options.device)
    flops = counted_flops(partial(step, *batch)) / 2
    reached = flops * case.batch / seconds
    return {
        "counted_flops_per_image": flops,
        "flops": reached,
        "share_of_peak": reached / peaks[candidate.precision]["flops"],
    }


def _peak_tensor_bytes(
    candidate: Candidate, step: Step, batch: tuple[Tensor, Tensor, Tensor], device: str
) -> int | None:
    if candidate.mode == "CUDA graphs":
        # What a graph holds was allocated when it was recorded.
        return None
    # Some free the gradients before a step, some after it: all begin without.
    step.optimizer.zero_grad()
    return memory.peak_tensor_bytes(partial(step, *batch), device)


def _resident(candidate: Candidate, case: Case, options: argparse.Namespace) -> int | None:
    """Of a process that does nothing else; None where it is not measured."""
    shown = candidate.name in (STRAIGHTFORWARD, OURS) and candidate.mode == "eager"
    if not shown or options.device != "cpu" or options.effort != "full":
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_here, (candidate, case, options))


def _resident_here(candidate: Candidate, case: Case, options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    step = build(candidate, case, options.device, options.reference)
    batch = inputs(case, case.batch, options.seed, options.device)
    memory.reset_peak_resident()
    before = memory.peak_resident_bytes()
    for _ in range(2):
        step(*batch)
    return memory.peak_resident_bytes() - before


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
    loops = {row["precision"]: row for row in case["rows"] if is_loop(row)}
    rows = [
        [
            row["candidate"] + ("" if row["mode"] == "eager" else f", {row['mode']}"),
            row["precision"],
            f"{1e3 * row['median_s']:,.0f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['speedup_over_fp32']:.2f}",
            f"{row['speedup_same_precision']:.2f}",
            f"{row['counted_flops_per_image'] / 1e9:.2f}",
            f"{100 * row['share_of_peak']:.0f} %",
            *_memory(row, loops[row["precision"]], "peak_tensor_bytes"),
            *_memory(row, loops[row["precision"]], "peak_resident_bytes"),
        ]
        for row in case["rows"]
    ]
    cost = ", ".join(f"{100 * share:+.1f} % in {precision}" for precision, share in case["grouping_cost"].items())
    return f"{title}\n\n{table(header, rows)}\n\nThe grouping adds {cost} to a step of I-JEPA."


def is_loop(row: dict[str, Any]) -> bool:
    """Whether a row is of the loop that all are compared with."""
    return (row["candidate"], row["mode"]) == (STRAIGHTFORWARD, "eager")


def _memory(row: dict[str, Any], loop: dict[str, Any], kind: str) -> tuple[str, str]:
    """Megabytes, and as a ratio to the loop's."""
    size, ratio = row[kind], memory_ratio(row, loop, kind)
    return NONE if size is None else f"{size / 1e6:,.0f}", NONE if ratio is None else f"{ratio:.3f}"


def memory_ratio(row: dict[str, Any], loop: dict[str, Any], kind: str) -> float | None:
    """A row's memory as a ratio to the loop's; None where either was not measured."""
    return None if None in (row[kind], loop[kind]) else row[kind] / loop[kind]


def main(argv: list[str] | None = None) -> None:
    """Parses, measures, writes the record."""
    flags = records.parser(__doc__)
    flags.add_argument("--reference", type=Path, help="a checkout of the official I-JEPA code")
    options = flags.parse_args(argv)
    options.repeats = options.repeats or REPEATS[options.effort]
    origin = records.start(options)
    seconds = 0.02 if options.effort == "smoke" else 1.0
    peaks = {precision: matmul_peak(precision, options.device, seconds) for precision in PRECISIONS}
    cases = (CUDA_CASES if options.device.startswith("cuda") else CASES)[options.effort]
    measured = {"matmul_peak": peaks, "cases": [measure(case, options, peaks) for case in cases]}
    if options.reference:
        # Where it lay on this machine says nothing.
        options.reference = records.commit_of(options.reference) or "given"
    records.write("step", options, origin, measured)


if __name__ == "__main__":
    main()
