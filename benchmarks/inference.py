# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Inference: features a second and latency beside the same ViT elsewhere, and what a fresh process pays to load one.

All candidates carry the same weights. How far their features are from ours in float32 stands beside their speed.
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import IJepaConfig, IJepaModel

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.conversion.onnx import export_onnx

from .alternatives.ijepa_loop import copy_layers
from .harness.records import format_table, origin_line, parser, start, write
from .harness.timing import interleaved, seconds_of, speedup, summary


_PROBE_IMAGES = 32
# Sizes by effort: name, configuration, and how often each batch size is timed.
_TINY = ("ViT-Tiny/4 at 32 px", SparseJEPAConfig.from_preset("vit-tiny"))
_SMALL = ("ViT-S/16 at 224 px", SparseJEPAConfig.from_preset("vit-small"))
_SMOKE = SparseJEPAConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
WORKLOADS = {
    "full": [(*_TINY, {1: 30, 32: 7, 256: 3}), (*_SMALL, {1: 10, 32: 3})],
    "short": [(*_TINY, {1: 10, 32: 3})],
    "smoke": [("2 layers of width 32, patch 4 at 32 px", _SMOKE, {1: 2, 4: 2})],
}


# ---- the same features elsewhere ----


class Features(nn.Module):
    """Mean-pooled features (B, D) of a transformers-like encoder, from images alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).last_hidden_state.mean(dim=1)


def to_ijepa(model: SparseJEPAVisionModel) -> nn.Module:
    """transformers' `IJepaModel` with the weights of `model`. Its positions are a parameter, ours a buffer."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    names += ("layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias")
    ijepa = IJepaModel(IJepaConfig(**{name: getattr(model.config, name) for name in names}))
    weights = dict(model.target_encoder.state_dict())
    weights["embeddings.position_embeddings"] = model.target_encoder.embeddings.position_embeddings[None]
    ijepa.load_state_dict(weights)
    return ijepa.eval()


def to_timm(model: SparseJEPAVisionModel) -> nn.Module:
    """timm's `VisionTransformer` without class token and head, with the weights of `model`."""
    config = model.config
    vit = VisionTransformer(
        img_size=config.image_sides,
        patch_size=config.patch_sides,
        in_chans=config.num_channels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=config.qkv_bias,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        class_token=False,
        global_pool="avg",
        # The norm before the mean, as in ours.
        fc_norm=False,
        num_classes=0,
    )
    encoder = model.target_encoder
    vit.pos_embed.data.copy_(encoder.embeddings.position_embeddings)
    vit.patch_embed.proj.load_state_dict(encoder.embeddings.patch_embeddings.projection.state_dict())
    vit.norm.load_state_dict(encoder.layernorm.state_dict())
    copy_layers(encoder.layers, vit.blocks)
    return vit.eval()


def quantize_onnx(path: Path) -> Path:
    """An int8 copy of an ONNX graph, with activations quantised as they come; returns its path."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name(f"{path.stem}_int8.onnx")
    quantize_dynamic(str(path), str(quantized), weight_type=QuantType.QInt8)
    return quantized


def onnx_session(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Images to features by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads would otherwise keep a core busy while the next candidate is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["pooler_output"], {"pixel_values": images.numpy()})[0])


def quantize_torch(model: SparseJEPAVisionModel) -> nn.Module:
    """A copy with int8 linear layers (torch's dynamic quantisation)."""
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def in_bf16(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images to features by a copy of `model` with bf16 weights."""
    features = copy.deepcopy(model).to(torch.bfloat16)
    return lambda images: features(images.to(torch.bfloat16))


def candidates(
    model: SparseJEPAVisionModel, folder: Path, options: argparse.Namespace
) -> dict[tuple[str, str], Callable[[], Callable[[Tensor], Tensor]]]:
    """What builds each way to the features of `model`, by name and precision. Ours in float32 comes first."""
    device, path, bf16 = torch.device(options.device), folder / "model.onnx", "bf16 weights"
    compiled = partial(torch.compile, dynamic=False)
    # Compiling takes longer than all the rest.
    compiles, on_cpu = options.effort != "smoke", device.type == "cpu"
    found: list[tuple[bool, str, str, Callable[[], Any]]] = [
        (True, "ours", "fp32", lambda: Features(model)),
        (True, "ours", "bf16 autocast", lambda: torch.autocast(device.type, torch.bfloat16)(Features(model).forward)),
        (True, "ours", bf16, lambda: in_bf16(Features(model))),
        (compiles, "ours, torch.compile", "fp32", lambda: compiled(Features(model))),
        (compiles, "ours, torch.compile", bf16, lambda: compiled(Features(copy.deepcopy(model).to(torch.bfloat16)))),
        (on_cpu, "ours, torch dynamic int8", "int8", lambda: Features(quantize_torch(model))),
        (on_cpu, "ours, onnxruntime", "fp32", lambda: onnx_session(export_onnx(model, path), options.threads)),
        (on_cpu, "ours, onnxruntime", "int8", lambda: onnx_session(quantize_onnx(path), options.threads)),
        (True, "transformers IJepaModel", "fp32", lambda: Features(to_ijepa(model)).to(device)),
        (True, "transformers IJepaModel", bf16, lambda: in_bf16(Features(to_ijepa(model)).to(device))),
        (True, "timm VisionTransformer", "fp32", lambda: to_timm(model).to(device)),
        (True, "timm VisionTransformer", bf16, lambda: in_bf16(to_timm(model).to(device))),
    ]
    return {(name, precision): build for wanted, name, precision, build in found if wanted}


# ---- what is measured ----


def deviation(features: Tensor, expected: Tensor) -> dict[str, float]:
    """How far features (B, D) are from the expected ones.

    Returns:
        `max_difference`, largest absolute difference of an element; `cosine`, the lowest of an image; and
        `centred_cosine`, the same after the mean expected feature, which all images share, is taken off both.
    """
    features, expected = features.double(), expected.double()
    mean = expected.mean(dim=0)
    return {
        "max_difference": (features - expected).abs().max().item(),
        "cosine": F.cosine_similarity(features, expected).min().item(),
        "centred_cosine": F.cosine_similarity(features - mean, expected - mean).min().item(),
    }


@torch.inference_mode()
def measure_features(
    size: str, config: SparseJEPAConfig, repeats: dict[int, int], options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """One row for each candidate and batch size, or one with a `reason` for a candidate that does not run."""
    torch.manual_seed(options.seed)
    model = SparseJEPAVisionModel(config).eval().to(options.device)
    images = torch.randn(max(*repeats, _PROBE_IMAGES), config.num_channels, *config.image_sides).to(options.device)
    probe, rows = images[:_PROBE_IMAGES], []
    ways: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    for key, build in candidates(model, folder, options).items():
        row = {"name": key[0], "precision": key[1], "size": size, "tokens": config.num_patches}

        def set_up(key: tuple[str, str] = key, build: Callable[[], Any] = build) -> None:
            ways[key] = build()
            ways[key](probe)

        try:
            with _quiet():
                row["setup_s"] = seconds_of(set_up)
        # Compilers and exporters raise what they like. The others are still measured.
        except Exception as error:
            ways.pop(key, None)
            rows.append(row | {"reason": (str(error).strip() or type(error).__name__).splitlines()[0][:200]})
        else:
            facts[key] = row | deviation(ways[key](probe).cpu(), ways["ours", "fp32"](probe).cpu())
    for batch, rounds in repeats.items():
        calls = {key: partial(call, images[:batch]) for key, call in ways.items()}
        seconds = interleaved(calls, repeats=options.repeats or rounds)
        for key, taken in seconds.items():
            timed = {"batch": batch, "images_per_s": batch / statistics.median(taken), **summary(taken)}
            rows.append(facts[key] | timed | {"speedup": speedup(seconds["ours", "fp32"], taken)})
    # Graphs of this size are of no use to the next one.
    torch.compiler.reset()
    return rows


@contextlib.contextmanager
def _quiet():
    """Exporters print, and warn about their own future."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


# What a fresh process runs. `folder` holds checkpoints of one size. Any user needs transformers' AutoModel next.
_AUTO_MODEL = "from transformers import AutoModel"
COLD_STARTS = {
    "python": "pass",
    _AUTO_MODEL: _AUTO_MODEL,
    "import torch": "import torch",
    "import sparsejepa_hf": "import sparsejepa_hf",
    "AutoModel.from_pretrained": f"import sparsejepa_hf\n{_AUTO_MODEL}\nAutoModel.from_pretrained(folder + '/ours')",
    "SparseJEPAVisionModel.from_pretrained": (
        "from sparsejepa_hf import SparseJEPAVisionModel\nSparseJEPAVisionModel.from_pretrained(folder + '/ours')"
    ),
    "IJepaModel.from_pretrained": (
        "from transformers import IJepaModel\nIJepaModel.from_pretrained(folder + '/ijepa')"
    ),
}
_FEW_STARTS = (_AUTO_MODEL, "import sparsejepa_hf", "AutoModel.from_pretrained")
_SCRIPT = """import sys
folder = sys.argv[1]
{}
print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"""


def measure_cold_starts(
    config: SparseJEPAConfig, folder: Path, starts: dict[str, str], repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Wall-clock seconds and peak resident memory of fresh processes, interpreter included; Linux only.

    Raises:
        RuntimeError: if a process fails, with the end of its error output.
    """
    SparseJEPAForPreTraining(config).save_pretrained(folder / "ours")
    to_ijepa(SparseJEPAVisionModel(config)).save_pretrained(folder / "ijepa")
    peaks: dict[str, list[int]] = {name: [] for name in starts}
    source = str(Path(sparsejepa_hf.__file__).parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}

    def run(name: str) -> None:
        command = [sys.executable, "-c", _SCRIPT.format(starts[name]), str(folder)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The process {name!r} failed: {done.stderr[-2000:]}")
        peaks[name].append(int(done.stdout.split()[-1]) * 1024)

    seconds = interleaved({name: partial(run, name) for name in starts}, repeats=repeats)
    return [{"name": n, **summary(seconds[n]), "peak_bytes": statistics.median_high(peaks[n])} for n in starts]


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    options = parser(__doc__).parse_args(argv)
    transformers.logging.disable_progress_bar()
    origin, rows = start(options), []
    full = options.effort == "full"
    starts = COLD_STARTS if full else {name: COLD_STARTS[name] for name in _FEW_STARTS}
    with tempfile.TemporaryDirectory() as folder:
        for workload in WORKLOADS[options.effort]:
            rows += measure_features(*workload, options, Path(folder))
        repeats = options.repeats or (5 if full else 1)
        cold = measure_cold_starts(_TINY[1], Path(folder), starts, repeats, options.threads)
    write("inference", options, origin, {"rows": rows, "cold_starts": cold, "probe_images": _PROBE_IMAGES})


# ---- the record as Markdown ----

_FEATURES = [("batch", "{batch}"), ("candidate", "{name}"), ("precision", "{precision}")]
_FEATURES += [("images/s", "{images_per_s:,.1f}"), ("latency, ms", "{ms:.2f}"), ("n", "{n}")]
_FEATURES += [("speed against ours", "{speedup:.2f}×"), ("max. difference", "{max_difference:.1e}")]
_FEATURES += [("cosine", "{cosine:.5f}"), ("centred cosine", "{centred_cosine:.5f}"), ("set-up, s", "{setup_s:.1f}")]
_STARTS = [("process", "`{name}`"), ("seconds", "{median_s:.2f}"), ("range", "{fastest_s:.2f} to {slowest_s:.2f}")]
_STARTS += [("n", "{n}"), ("against `{}`", "{ratio:.2f}×"), ("peak resident MiB", "{mib:,.0f}")]


def import_ratio(record: dict[str, Any]) -> tuple[str, float]:
    """What `import sparsejepa_hf` is compared with (the first import of transformers), and the quotient of both."""
    seconds = {row["name"]: row["median_s"] for row in record["cold_starts"]}
    reference = next(name for name in seconds if "transformers" in name)
    return reference, seconds["import sparsejepa_hf"] / seconds[reference]


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: a table for each size, one of fresh processes, and where the numbers come from."""
    parts = []
    for size in dict.fromkeys(row["size"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["size"] == size]
        parts.append(f"**Features, {size}**, {rows[0]['tokens']} tokens")
        timed = [row | {"ms": 1e3 * row["median_s"]} for row in rows if "reason" not in row]
        parts.append(format_table(_FEATURES, timed))
        missing = [f"- {row['name']}, {row['precision']}: {row['reason']}" for row in rows if "reason" in row]
        parts += ["\n".join(missing)] if missing else []
    parts.append(
        f"Differences are of the mean-pooled features of {record['probe_images']} images from ours in fp32, with "
        "the same weights; cosines are the lowest of an image, centred ones without the mean feature. Set-up is what "
        "comes before the first features, compiling and exporting included."
    )
    parts.append("**A fresh process**, ViT-Tiny/4, interpreter included")
    starts, (reference, _) = record["cold_starts"], import_ratio(record)
    base = next(row["median_s"] for row in starts if row["name"] == reference)
    rows = [row | {"ratio": row["median_s"] / base, "mib": row["peak_bytes"] / 2**20} for row in starts]
    parts.append(format_table([(title.format(reference), text) for title, text in _STARTS], rows))
    return "\n\n".join([*parts, origin_line(record)])


if __name__ == "__main__":
    main()
