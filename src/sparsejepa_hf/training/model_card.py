# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A model card that writes itself from the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..configuration_sparsejepa import SparseJEPAConfig
from .arguments import SparseJEPATrainingArguments


_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _model_rows(config: SparseJEPAConfig) -> dict[str, Any]:
    rows = {
        "encoder": f"ViT, width {config.hidden_size}, depth {config.num_hidden_layers}, "
        f"{config.num_attention_heads} heads, patch {config.patch_size}, images of {config.image_size} pixels",
        "predictor": f"{config.predictor_type}, width {config.predictor_hidden_size}, "
        f"depth {config.predictor_num_hidden_layers}",
        "loss": f"{config.loss_type}, targets: {config.target_normalization}",
    }
    if config.use_grouping:
        rows["grouping"] = (
            f"{config.num_latents} latents, {config.num_groups} groups of input width {config.group_size}"
        )
        rows["sparsity"] = f"{config.sparsity_mode}, λ = {config.sparsity_weight:g}"
        rows["latents"] = f"variational, β = {config.kl_weight:g}" if config.variational else "deterministic"
    return rows


def _training_rows(
    args: SparseJEPATrainingArguments, state: TrainerState, dataset: str | list[str] | None
) -> dict[str, Any]:
    last: dict[str, float] = next((entry for entry in reversed(state.log_history) if "prediction_loss" in entry), {})
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = {
        "data": "not stated: fill in" if dataset is None else dataset,
        "optimizer steps": state.global_step,
        "images a step": batch,
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "EMA momentum": f"{args.ema_momentum} to {args.ema_momentum_end}",
        "seed": args.seed,
    }
    names = ["prediction_loss", "kl_loss", "rankme", "zero_columns", "groups_per_living_latent", "selectivity"]
    names += ["dead_latents", "dead_groups"]
    return rows | {f"last {name}": f"{last[name]:.4g}" for name in names if name in last}


def _results(comparison: Mapping[str, Mapping[str, float]] | None) -> str:
    if not comparison:
        return ""
    lines = ["", "## Results", "", "Top-1 accuracy on held-out images.", ""]
    lines += ["| features | kNN | linear |", "|---|---|---|"]
    for name, result in comparison.items():
        lines.append(f"| {name} | {result['knn_accuracy']:.1%} | {result['linear_accuracy']:.1%} |")
    return "\n".join([*lines, ""])


def write_model_card(
    output_dir: str,
    config: SparseJEPAConfig,
    args: SparseJEPATrainingArguments,
    state: TrainerState,
    dataset: str | list[str] | None = None,
    comparison: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Writes `output_dir`/README.md.

    Args:
        output_dir: the checkpoint's folder; its name is the model's.
        config: of the model.
        args: that it was trained with.
        state: the trainer's, with its logs.
        dataset: names the training data.
        comparison: what [`compare_features`] measured, by name.

    Returns:
        the file's path.
    """
    path = Path(output_dir) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    card = _TEMPLATE.read_text(encoding="utf-8").format(
        title=path.parent.resolve().name,
        kind="A sparse, grouped vision encoder" if config.use_grouping else "An I-JEPA vision encoder (no grouping)",
        hidden_size=config.hidden_size,
        model=_table(_model_rows(config)),
        training=_table(_training_rows(args, state, dataset)),
        results=_results(comparison),
    )
    path.write_text(card, encoding="utf-8")
    return path
