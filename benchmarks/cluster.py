# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run on many GPUs would need: memory of each, bytes exchanged, images a second. Counted, not measured.

    python -m benchmarks.cluster --write   # the record of ViT-H, and its tables in docs/distributed.md

Parameters, operations and kept activations are counted from the configuration, on tensors without values. What a GPU
and its network reach is assumed: every flag is an assumption, and stands under the table.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from sparsejepa_hf import PRESETS, MultiBlockMaskSampler, SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.modeling_sparsejepa import SparseJEPALayer
from sparsejepa_hf.records import provenance, render_into, write_record

from .harness.records import ROOT, format_table
from .harness.resources import counted_flops


NAME = "cluster_estimate"
_FP32, _BF16, _GB = 4, 2, 1e9


# ---- counted from the configuration ----


def count(config: SparseJEPAConfig) -> dict[str, int]:
    """What one process holds and computes, whatever the machine.

    Returns:
        `trained`, `average`: parameters that are trained, and those of the target encoder. `layer`: of the largest
        layer, `rest`: of all outside layers, which FSDP2 gathers as one. `flops_per_image`: forward and backward, of
        matrix products. `activation_bytes_per_image`: kept for the backward pass in bf16 autocast, without the casts
        of weights.
    """
    with torch.device("meta"):
        model = SparseJEPAForPreTraining(config)
    model.freeze_target_encoder()
    layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, SparseJEPALayer)]
    numbers = {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "average": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        "layer": max(layers),
        "rest": sum(p.numel() for p in model.parameters()) - sum(layers),
    }
    flops = [counted_flops(_step(model, batch, "meta")) for batch in (1, 2)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        kept = [kept_bytes(model, _step(model, batch, "cpu", backward=False)) for batch in (1, 2)]
    # What does not grow with the batch is no image's.
    return {
        **numbers,
        "flops_per_image": flops[1] - flops[0],
        "activation_bytes_per_image": kept[1] - kept[0],
    }


def _step(model: SparseJEPAForPreTraining, batch: int, device: str, backward: bool = True) -> Callable[[], Any]:
    images = torch.empty(batch, model.config.num_channels, *model.config.image_sides, device=device)
    # Masks know no values here, only how many patches they hold.
    sampler = MultiBlockMaskSampler(model.config.grid_size)
    context = torch.zeros(batch, sampler.num_context_patches, dtype=torch.int64, device=device)
    shape = (batch, sampler.num_target_blocks, sampler.num_target_patches)
    target = torch.zeros(shape, dtype=torch.int64, device=device)

    def step() -> Any:
        loss = model(images, context, target).loss
        return loss.backward() if backward else loss

    return step


def kept_bytes(model: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of `forward` under bf16 autocast, each tensor once, weights themselves left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


# ---- of a cluster ----


def estimate(counted: dict[str, int], engine: str, num_gpus: int, options: argparse.Namespace) -> dict[str, Any]:
    """Memory of a GPU, bytes that it sends a step, and the run's speed, under the assumptions in `options`.

    DDP keeps weights, average, gradients with the buckets they are sent in, and both moments of AdamW whole, in
    float32, and bf16 casts of all weights. FSDP2 keeps a share of each, and gathers in bf16 two layers at a time and
    what lies outside layers. It gathers trained weights twice, for the forward and the backward pass, the average
    once, and sums gradients in float32.
    """
    trained, average, n = counted["trained"], counted["average"], num_gpus
    # Weights and average; gradients; AdamW's two moments.
    state = _FP32 * (trained + average) + _FP32 * trained + 2 * _FP32 * trained
    if engine == "DDP":
        weights = state + _FP32 * trained + _BF16 * (trained + average)
        sent = 2 * _FP32 * trained * (n - 1) / n
    else:
        weights = state / n + _BF16 * (2 * counted["layer"] + counted["rest"])
        sent = (_BF16 * (2 * trained + average) + _FP32 * trained) * (n - 1) / n
    activations = counted["activation_bytes_per_image"] * options.batch
    compute = counted["flops_per_image"] * options.batch / (options.peak_tflops * 1e12 * options.mfu)
    # AdamW reads weight, gradient and moments and writes all but the gradient; the average reads two and writes one.
    held = 1 if engine == "DDP" else n
    follow_up = _FP32 * (7 * trained + 3 * average) / held / (options.memory_bandwidth_gb_s * _GB)
    exchange = sent / (options.network_gb_s * _GB)
    fastest, slowest = max(compute, exchange) + follow_up, compute + exchange + follow_up
    images_per_second = [n * options.batch / seconds for seconds in (slowest, fastest)]
    return {
        "engine": engine,
        "num_gpus": n,
        "weight_bytes": weights,
        "activation_bytes": activations,
        "fits": weights + activations < options.memory_gb * _GB,
        "sent_bytes": sent,
        "compute_s": compute,
        "exchange_s": exchange,
        "follow_up_s": follow_up,
        "images_per_second": images_per_second,
        "run_hours": [options.epochs * options.images / rate / 3600 for rate in images_per_second[::-1]],
    }


def measured_shares(results_dir: Path) -> dict[str, float]:
    """Share of the peak of a matrix product that our step reached where it was measured, on a CPU, by precision."""
    record = json.loads((results_dir / "benchmark_step_cpu.json").read_text(encoding="utf-8"))
    # The largest model that was measured, with its larger batch.
    case = max((c for c in record["cases"] if c["name"].startswith("ViT-S")), key=lambda case: case["batch"])
    ours = [row for row in case["rows"] if (row["candidate"], row["mode"]) == ("ours, SparseJEPA", "eager")]
    return {row["precision"]: row["share_of_peak"] for row in ours}


# ---- the record ----


def main(argv: list[str] | None = None) -> None:
    """Counts, estimates and prints; writes the record on demand."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--preset", default="vit-huge", choices=list(PRESETS), help="the model")
    parser.add_argument("--gpus", type=int, nargs="+", default=[16, 64], help="numbers of GPUs")
    parser.add_argument("--batch", type=int, default=32, help="images of a GPU and step")
    parser.add_argument("--images", type=int, default=1_281_167, help="images of an epoch; default: ImageNet-1k's")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of the run")
    parser.add_argument("--peak_tflops", type=float, default=312.0, help="a GPU's dense bf16 peak; default: A100's")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of that peak which a step's products reach")
    parser.add_argument("--memory_gb", type=float, default=80.0, help="memory of a GPU")
    parser.add_argument("--memory_bandwidth_gb_s", type=float, default=2000.0, help="of a GPU's own memory")
    parser.add_argument("--network_gb_s", type=float, default=25.0, help="what one GPU sends a second: 200 Gbit/s")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results", help="where records lie")
    parser.add_argument("--write", action="store_true", help="write the record, and its tables into the docs")
    options = parser.parse_args(argv)
    counted = count(SparseJEPAConfig.from_preset(options.preset))
    assumed = {k: v for k, v in vars(options).items() if k not in ("results_dir", "write")}
    record = {
        "benchmark": "cluster",
        **provenance(),
        "assumed": assumed,
        "counted": counted,
        "measured_share_of_peak": measured_shares(options.results_dir),
        "estimates": [estimate(counted, engine, n, options) for n in options.gpus for engine in ("DDP", "FSDP2")],
    }
    print(render(record))
    if options.write:
        path = options.results_dir / f"{NAME}.json"
        write_record(record, path)
        path.with_suffix(".md").write_text(render(record) + "\n", encoding="utf-8")
        page = ROOT / "docs" / "distributed.md"
        text = render_into(page.read_text(encoding="utf-8"), f"{NAME}.json", render(record))
        page.write_text(text, encoding="utf-8")


_COLUMNS = [("GPUs", "{num_gpus}"), ("engine", "{engine}"), ("weights and optimizer, GB", "{weight_bytes:.1f}")]
_COLUMNS += [("activations, GB", "{activation_bytes:.1f}"), ("of a GPU's memory", "{share:.0%}")]
_COLUMNS += [("sent a step and GPU, GB", "{sent_bytes:.1f}"), ("products, ms", "{compute_ms:.0f}")]
_COLUMNS += [("exchange, ms", "{exchange_ms:.0f}"), ("optimizer and average, ms", "{follow_up_ms:.0f}")]
_COLUMNS += [("images/s", "{rates}"), ("run, hours", "{hours}")]


def render(record: dict[str, Any]) -> str:
    """What was counted, the table, and what was assumed."""
    counted, assumed = record["counted"], record["assumed"]
    rows = []
    for found in record["estimates"]:
        sizes = {name: found[name] / _GB for name in ("weight_bytes", "activation_bytes", "sent_bytes")}
        times = {f"{name}_ms": 1e3 * found[f"{name}_s"] for name in ("compute", "exchange", "follow_up")}
        share = (sizes["weight_bytes"] + sizes["activation_bytes"]) / assumed["memory_gb"]
        rates = " to ".join(f"{rate:,.0f}" for rate in found["images_per_second"])
        hours = " to ".join(f"{value:.0f}" for value in found["run_hours"])
        rows.append(found | sizes | times | {"share": share, "rates": rates, "hours": hours})
    shares = " and ".join(f"{100 * share:.0f} % in {kind}" for kind, share in record["measured_share_of_peak"].items())
    return "\n\n".join(
        [
            f"`{assumed['preset']}`, counted: {counted['trained'] / 1e6:,.0f} million trained parameters, "
            f"{counted['average'] / 1e6:,.0f} million of the average, {counted['flops_per_image'] / 1e9:,.0f} GFLOP "
            f"an image, {counted['activation_bytes_per_image'] / 1e6:,.0f} MB of activations an image.",
            format_table(_COLUMNS, rows),
            f"Assumed: {assumed['batch']} images a GPU and step, {assumed['epochs']} epochs of {assumed['images']:,} "
            f"images; a GPU of {assumed['memory_gb']:g} GB with {assumed['peak_tflops']:g} TFLOP/s in bf16, of which "
            f"products reach {assumed['mfu']:.0%}, {assumed['memory_bandwidth_gb_s']:,.0f} GB/s of its own memory and "
            f"{assumed['network_gb_s']:g} GB/s of the network. The lower speed is without any overlap of products and "
            f"exchange, the higher with all of it. Input is not counted. Measured, with ViT-S on a CPU: {shares} of "
            "the peak of a matrix product.",
        ]
    )


if __name__ == "__main__":
    main()
