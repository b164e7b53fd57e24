# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A model card that writes itself from the run."""

from pathlib import Path
from typing import Any

from transformers import TrainerState

from ..configuration_sparsejepa import SparseJEPAConfig
from .arguments import SparseJEPATrainingArguments


_TEMPLATE = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- sparsejepa
- jepa
- self-supervised-learning
---

# {title}

{kind} pre-trained with [SparseJEPA](https://arxiv.org/abs/2504.16140) in `sparsejepa_hf`. It turns images into
features without labels; probe or fine-tune it for a task.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{title}")
model = AutoModel.from_pretrained("{title}", trust_remote_code=True)  # or: import sparsejepa_hf
features = model(**processor(images=image, return_tensors="pt")).pooler_output  # (1, {hidden_size})
```

## Model

{model}

## Training

{training}
{results}
## Limits

Trained on the data named above and on nothing else; features of other images may be worse. The training data's
licence and biases carry over. Fill in what you know of both before you publish this model.
"""


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
    last = next((entry for entry in reversed(state.log_history) if "prediction_loss" in entry), {})
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
    names = ("prediction_loss", "kl_loss", "rankme", "zero_columns", "groups_per_living_latent", "selectivity")
    names += ("dead_latents", "dead_groups")
    return rows | {f"last {name}": f"{last[name]:.4g}" for name in names if name in last}


def _results(history: list[dict[str, Any]]) -> str:
    comparison = next((entry["comparison"] for entry in reversed(history) if "comparison" in entry), None)
    if comparison is None:
        return ""
    lines = [
        "",
        "## Results",
        "",
        "Top-1 accuracy on held-out images.",
        "",
        "| features | kNN | linear |",
        "|---|---|---|",
    ]
    for name, result in comparison.items():
        lines.append(f"| {name} | {result['knn_accuracy']:.1%} | {result['linear_accuracy']:.1%} |")
    return "\n".join([*lines, ""])


def write_model_card(
    output_dir: str,
    config: SparseJEPAConfig,
    args: SparseJEPATrainingArguments,
    state: TrainerState,
    dataset: str | list[str] | None = None,
) -> Path:
    """Writes `output_dir`/README.md from the configuration, the arguments and the trainer's state."""
    path = Path(output_dir) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    card = _TEMPLATE.format(
        title=path.parent.resolve().name,
        kind="A sparse, grouped vision encoder" if config.use_grouping else "An I-JEPA vision encoder (no grouping)",
        hidden_size=config.hidden_size,
        model=_table(_model_rows(config)),
        training=_table(_training_rows(args, state, dataset)),
        results=_results(state.log_history),
    )
    path.write_text(card, encoding="utf-8")
    return path
