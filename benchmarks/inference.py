# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Inference: features a second and latency beside the same ViT elsewhere, and what a fresh process pays to load one.

All candidates carry the same weights. How far their features are from ours in float32 stands beside their speed.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.records import table

from .alternatives.ijepa_loop import copy_layers
from .harness.records import origin_line, parser, start, write
from .harness.timing import interleaved, speedup, summary


OURS = "ours"
_PROBE_IMAGES = 32


@dataclass(frozen=True)
class Workload:
    """One size of model, and how often each batch size is timed."""

    name: str
    config: SparseJEPAConfig
    repeats: dict[int, int]


@dataclass(frozen=True)
class Candidate:
    """A way to features: `call` maps images (B, C, H, W) to (B, D); without it, `reason` says why there is none."""

    name: str
    precision: str
    call: Callable[[Tensor], Tensor] | None = None
    reason: str | None = None
    setup_s: float | None = None


class Features(nn.Module):
    """Mean-pooled features (B, D) of a transformers-like encoder, from images alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).last_hidden_state.mean(dim=1)


def to_ijepa(model: SparseJEPAVisionModel) -> nn.Module:
    """transformers' `IJepaModel` with the weights of `model`; its positions are a parameter, ours a buffer."""
    from transformers import IJepaConfig, IJepaModel

    source = model.config
    names = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias"),
    )
    ijepa = IJepaModel(IJepaConfig(**{name: getattr(source, name) for name in names}))
    weights = dict(model.target_encoder.state_dict())
    weights["embeddings.position_embeddings"] = model.target_encoder.embeddings.position_embeddings[None]
    ijepa.load_state_dict(weights)
    return ijepa.eval()


def to_timm(model: SparseJEPAVisionModel) -> nn.Module:
    """timm's `VisionTransformer` without class token and head, with the weights of `model`."""
    from timm.models.vision_transformer import VisionTransformer

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


def export_onnx(model: SparseJEPAVisionModel, path: Path) -> Path:
    """Writes the features of `model` as an ONNX graph with a free batch size; returns `path`.

    Raises:
        ImportError: if onnxscript is missing.
    """
    _require("onnxscript")
    config = model.config
    images = torch.zeros(2, config.num_channels, *config.image_sides)
    with _quiet():
        program = torch.onnx.export(
            Features(model).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=["features"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        )
        program.save(str(path))
    return path


def onnx_session(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Images to features by onnxruntime on the CPU.

    Raises:
        ImportError: if onnxruntime is missing.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads would otherwise keep a core busy while the next candidate is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"pixel_values": images.numpy()})[0])


def quantize_onnx(path: Path) -> Path:
    """An int8 copy of an ONNX graph: weights at once, activations as they come; returns its path."""
    _require("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name(f"{path.stem}_int8.onnx")
    with _quiet():
        quantize_dynamic(str(path), str(quantized), weight_type=QuantType.QInt8)
    return quantized


def quantize_torch(model: SparseJEPAVisionModel) -> nn.Module:
    """A copy with int8 linear layers (torch's dynamic quantisation)."""
    with _quiet():
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed; pip install {package}")


@contextlib.contextmanager
def _quiet():
    """Exporters print and warn about their own future."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _compiled(model: SparseJEPAVisionModel) -> Callable[[Tensor], Tensor]:
    return torch.compile(Features(model), dynamic=False)


def _autocast(model: SparseJEPAVisionModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    features = Features(model)

    def call(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return features(images)

    return call


def _in_bf16(model: nn.Module) -> Callable[[Tensor], Tensor]:
    features = copy.deepcopy(model).to(torch.bfloat16)
    return lambda images: features(images.to(torch.bfloat16))


def candidates(
    model: SparseJEPAVisionModel, images: Tensor, folder: Path, threads: int, *, with_compile: bool = True
) -> list[Candidate]:
    """Every way to the features of `model` on the device of `images`, ours in float32 first.

    One that cannot be set up, or cannot run `images`, comes without a call and with the reason.
    """
    device = images.device

    def host_only(build: Callable[[], Any]) -> Any:
        if device.type != "cpu":
            raise RuntimeError("measured on the CPU only")
        return build()

    def compiled(net: SparseJEPAVisionModel) -> Any:
        if not with_compile:
            raise RuntimeError("left out at effort smoke: compiling takes longer than the rest")
        return _compiled(net)

    path = folder / "model.onnx"
    ways: list[tuple[str, str, Callable[[], Any]]] = [
        (OURS, "fp32", lambda: Features(model)),
        (OURS, "bf16 autocast", lambda: _autocast(model, device)),
        (OURS, "bf16 weights", lambda: _in_bf16(Features(model))),
        ("ours, torch.compile", "fp32", lambda: compiled(model)),
        ("ours, torch.compile", "bf16 weights", lambda: compiled(copy.deepcopy(model).to(torch.bfloat16))),
        ("ours, torch dynamic int8", "int8", lambda: host_only(lambda: Features(quantize_torch(model)))),
        ("ours, onnxruntime", "fp32", lambda: host_only(lambda: onnx_session(export_onnx(model, path), threads))),
        ("ours, onnxruntime", "int8", lambda: host_only(lambda: onnx_session(quantize_onnx(path), threads))),
        ("transformers IJepaModel", "fp32", lambda: Features(to_ijepa(model)).to(device)),
        ("transformers IJepaModel", "bf16 weights", lambda: _in_bf16(Features(to_ijepa(model)).to(device))),
        ("timm VisionTransformer", "fp32", lambda: to_timm(model).to(device)),
        ("timm VisionTransformer", "bf16 weights", lambda: _in_bf16(to_timm(model).to(device))),
    ]
    return [attempt(name, precision, build, images) for name, precision, build in ways]


def attempt(name: str, precision: str, build: Callable[[], Any], images: Tensor) -> Candidate:
    """Sets a candidate up and runs it once on `images`; what fails becomes its reason."""
    begin = time.perf_counter()
    try:
        call = torch.inference_mode()(build())
        call(images)
    # Compilers and exporters raise what they like; the others are still measured.
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        kind = "" if isinstance(error, (ImportError, RuntimeError)) else f"{type(error).__name__}: "
        return Candidate(name, precision, reason=(kind + lines[0])[:200])
    return Candidate(name, precision, call, setup_s=time.perf_counter() - begin)


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


def measure_features(workload: Workload, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each candidate and batch size; one with a reason where a candidate does not run."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = _model(workload.config, options).to(device)
    sides = model.config.image_sides
    largest = max(*workload.repeats, _PROBE_IMAGES)
    images = torch.randn(largest, model.config.num_channels, *sides).to(device)
    probe = images[:_PROBE_IMAGES]
    found = candidates(model, probe, folder, options.threads, with_compile=options.effort != "smoke")
    expected = found[0].call(probe).cpu()
    shared = {"size": workload.name, "tokens": model.config.num_patches}
    rows = [_told(candidate) | shared for candidate in found if candidate.call is None]
    running = {f"{candidate.name}, {candidate.precision}": candidate for candidate in found if candidate.call}
    accuracy = {key: deviation(candidate.call(probe).cpu(), expected) for key, candidate in running.items()}
    for batch, repeats in workload.repeats.items():
        calls = {key: partial(candidate.call, images[:batch]) for key, candidate in running.items()}
        seconds = interleaved(calls, repeats=options.repeats or repeats, device=device)
        baseline = seconds[f"{OURS}, fp32"]
        for key, candidate in running.items():
            taken = summary(seconds[key])
            rows.append(
                _told(candidate)
                | shared
                | accuracy[key]
                | {"batch": batch, "images_per_s": batch / taken["median_s"], **taken}
                | {"speedup": speedup(baseline, seconds[key])}
            )
    # Graphs of this size are of no use to the next one.
    torch.compiler.reset()
    return rows


def _told(candidate: Candidate) -> dict[str, Any]:
    row = {"name": candidate.name, "precision": candidate.precision, "setup_s": candidate.setup_s}
    return row if candidate.reason is None else row | {"reason": candidate.reason}


def _model(config: SparseJEPAConfig, options: argparse.Namespace) -> SparseJEPAVisionModel:
    if options.checkpoint is not None:
        return SparseJEPAVisionModel.from_pretrained(options.checkpoint).eval()
    return SparseJEPAVisionModel(config).eval()


# What a fresh process runs; `folder` holds checkpoints of one size.
COLD_STARTS = {
    "python": "pass",
    "import transformers": "import transformers",
    "import torch": "import torch",
    "import sparsejepa_hf": "import sparsejepa_hf",
    "AutoModel, imported": "import sparsejepa_hf\nfrom transformers import AutoModel",
    "AutoModel.from_pretrained": (
        "import sparsejepa_hf\nfrom transformers import AutoModel\nAutoModel.from_pretrained(folder + '/ours')"
    ),
    "SparseJEPAVisionModel.from_pretrained": (
        "from sparsejepa_hf import SparseJEPAVisionModel\nSparseJEPAVisionModel.from_pretrained(folder + '/ours')"
    ),
    "IJepaModel.from_pretrained": (
        "from transformers import IJepaModel\nIJepaModel.from_pretrained(folder + '/ijepa')"
    ),
}
_FEW_STARTS = ("import transformers", "import sparsejepa_hf", "AutoModel.from_pretrained")
_PREFIX = "import sys\nfolder = sys.argv[1]\n"
_SUFFIX = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


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

    def run(name: str) -> None:
        command = [sys.executable, "-c", _PREFIX + starts[name] + _SUFFIX, str(folder)]
        done = subprocess.run(command, env=_environment(threads), cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The process {name!r} failed: {done.stderr[-2000:]}")
        peaks[name].append(int(done.stdout.split()[-1]) * 1024)

    seconds = interleaved({name: partial(run, name) for name in starts}, repeats=repeats)
    return [
        {"name": name, **summary(seconds[name]), "peak_bytes": sorted(peaks[name])[len(peaks[name]) // 2]}
        for name in starts
    ]


def _environment(threads: int) -> dict[str, str]:
    source = str(Path(sparsejepa_hf.__file__).parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **offline, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def workloads(effort: str) -> list[Workload]:
    """Sizes and batch sizes of an effort, with the number of timed rounds of each."""
    tiny = SparseJEPAConfig.from_preset("vit-tiny")
    if effort == "smoke":
        small = SparseJEPAConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        return [Workload("2 layers of width 32, patch 4 at 32 px", small, {1: 2, 4: 2})]
    if effort == "short":
        return [Workload("ViT-Tiny/4 at 32 px", tiny, {1: 10, 32: 3})]
    return [
        Workload("ViT-Tiny/4 at 32 px", tiny, {1: 30, 32: 7, 256: 3}),
        Workload("ViT-S/16 at 224 px", SparseJEPAConfig.from_preset("vit-small"), {1: 10, 32: 3}),
    ]


def main(argv: list[str] | None = None) -> None:
    """Measures and writes `benchmark_inference_<device>.json` and `.md`."""
    flags = parser(__doc__)
    flags.add_argument("--checkpoint", default=None, help="a checkpoint, in place of random weights of each size")
    options = flags.parse_args(argv)
    transformers.logging.disable_progress_bar()
    origin = start(options)
    chosen = workloads(options.effort)
    if options.checkpoint is not None:
        chosen = [Workload(Path(options.checkpoint).name, chosen[0].config, chosen[0].repeats)]
    starts = COLD_STARTS if options.effort == "full" else {name: COLD_STARTS[name] for name in _FEW_STARTS}
    repeats = options.repeats or (1 if options.effort != "full" else 5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for place, workload in enumerate(chosen):
            (Path(folder) / str(place)).mkdir()
            rows += measure_features(workload, options, Path(folder) / str(place))
        config = SparseJEPAConfig.from_preset("vit-tiny")
        cold = measure_cold_starts(config, Path(folder), starts, repeats, options.threads)
    # Where it lies on this machine says nothing.
    options.checkpoint = options.checkpoint and Path(options.checkpoint).name
    write("inference", options, origin, {"rows": rows, "cold_starts": cold, "probe_images": _PROBE_IMAGES})


def render(record: dict[str, Any]) -> str:
    """Markdown of a record: a table for each size, one of cold starts, and where the numbers come from."""
    parts = []
    for size in dict.fromkeys(row["size"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["size"] == size]
        parts.append(f"**Features, {size}**, {rows[0]['tokens']} tokens\n\n{_feature_table(rows)}")
    parts.append(
        f"Differences are of the mean-pooled features of {record['probe_images']} images from ours in fp32, with "
        "the same weights; cosines are the lowest of an image, centred ones without the mean feature. Set-up is what "
        "comes before the first features, compiling and exporting included."
    )
    parts.append(f"**A fresh process**, ViT-Tiny/4, interpreter included\n\n{_cold_table(record['cold_starts'])}")
    parts.append(origin_line(record))
    return "\n\n".join(parts)


def _feature_table(rows: list[dict[str, Any]]) -> str:
    header = ("batch", "candidate", "precision", "images/s", "latency, ms", "n", "speed against ours")
    header += ("max. difference", "cosine", "centred cosine", "set-up, s")
    text = table(header, [_timed_cells(row) for row in rows if "reason" not in row])
    missing = [f"- {row['name']}, {row['precision']}: {row['reason']}" for row in rows if "reason" in row]
    return "\n\n".join([text, "\n".join(missing)]) if missing else text


def _timed_cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["batch"]),
        row["name"],
        row["precision"],
        f"{row['images_per_s']:,.1f}",
        f"{1e3 * row['median_s']:.2f}",
        str(row["n"]),
        f"{row['speedup']:.2f}×",
        f"{row['max_difference']:.1e}",
        f"{row['cosine']:.5f}",
        f"{row['centred_cosine']:.5f}",
        f"{row['setup_s']:.1f}",
    ]


def _cold_table(rows: list[dict[str, Any]]) -> str:
    reference = next(row["median_s"] for row in rows if row["name"] == "import transformers")
    cells = [
        [
            f"`{row['name']}`",
            f"{row['median_s']:.2f}",
            f"{row['fastest_s']:.2f} to {row['slowest_s']:.2f}",
            str(row["n"]),
            f"{row['median_s'] / reference:.2f}×",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        ]
        for row in rows
    ]
    return table(("process", "seconds", "range", "n", "against `import transformers`", "peak resident MiB"), cells)


if __name__ == "__main__":
    main()
