# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A model card that writes itself from configuration, run and results."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig, TrainerState, TrainingArguments
from transformers.utils import cached_file
from yaml import YAMLError

from .. import __version__
from ..configuration_sparsejepa import SparseJEPAConfig
from ..data import SCENE_STYLES
from ..masking import MultiBlockMaskSampler
from ..records import NONE, provenance, table


MODEL_KINDS = ("pretraining", "finetuning", "export")
_TEMPLATE = Path(__file__).with_name("model_card_template.md")
# The row of a comparison that is the model itself.
_TRAINED = "trained"
_BUILT_IN = " (built in)"
# What is reported, in the order of the columns: how it is called, and its name among the Hub's metrics.
_METRICS = {
    "knn_accuracy": ("kNN", "accuracy"),
    "linear_accuracy": ("linear probe", "accuracy"),
    "accuracy": ("top-1", "accuracy"),
    "top5_accuracy": ("top-5", "top_5_accuracy"),
    "balanced_accuracy": ("balanced over classes", "balanced_accuracy"),
}
_LOGGED = {"prediction_loss": "prediction loss at the end", "rankme": "RankMe at the end"}
_OF_GROUPS = {
    "kl_loss": "KL of the latents",
    "zero_columns": "share of W's columns that are exactly zero",
    "groups_per_living_latent": "groups per living latent",
    "selectivity": "selectivity",
    "dead_latents": "dead latents",
    "dead_groups": "dead groups",
}

Results = Mapping[str, Mapping[str, float]]


def write_model_card(
    folder: str | Path,
    *,
    kind: str,
    config: PreTrainedConfig,
    name: str | None = None,
    dataset: str | Sequence[str] | None = None,
    split: str | None = None,
    results: Results | None = None,
    license: str | None = None,
    base_model: str | Path | None = None,
    revision: str = "main",
    training: TrainingArguments | None = None,
    state: TrainerState | None = None,
    mask_sampler: Any | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `folder`/README.md. No path of this machine gets into it.

    Args:
        folder: of the model. For an export it holds the exported `config.json`.
        kind: "pretraining", "finetuning" or "export" (a plain I-JEPA folder made of either).
        config: a SparseJEPA configuration, of the model; for an export, of the model that it was made of.
        name: what the card's code loads: the id on the Hub; default: the folder's name.
        dataset: the training data: ids on the Hub, names of built-in data, folders, or words for them.
        split: of `dataset` that `results` of pre-training were measured on.
        results: accuracies in [0, 1] by name. Of pre-training: those of [`compare_features`], by encoder, "trained"
            being this one. Of fine-tuning: those of this model, by split.
        license: as the Hub calls it, such as "apache-2.0".
        base_model: what the model was made of: an id on the Hub, or a folder, which is not named. What its own card
            knows of data and licence is taken over, by an export also training and results.
        revision: of `base_model` on the Hub.
        training: the arguments of the run, by one of this package's trainers.
        state: the trainer's, with its logs.
        mask_sampler: that the run drew its masks with; default: what `training` says.
        origin: what [`provenance`] said of the run; default: what it says now.

    Returns:
        the file's path.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in MODEL_KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, MODEL_KINDS))}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = name or folder.resolve().name
    names, results = _as_list(dataset), results or {}
    printed = ", ".join(map(_printed, names))
    source = None if base_model is None else _card_of(base_model, revision)
    inherited = _sections(source) if kind == "export" else {}
    model_class = _model_class(folder) if kind == "export" else None
    is_classifier = kind == "finetuning" or "Classification" in (model_class or "")
    is_grouped = getattr(config, "use_grouping", False)
    has_groups = is_grouped and kind == "pretraining"
    data = _metadata(kind, name, names, split, results, base_model, source)
    data.license = license or data.license
    data.pipeline_tag = "image-classification" if is_classifier else "image-feature-extraction"
    data.tags = ["sparsejepa" if is_grouped else "ijepa", "jepa", "self-supervised-learning", "vision"]
    recipe = {"data": printed or "not stated: fill in"} | ({"begins from": base_model} if _hub_id(base_model) else {})
    if training is not None and state is not None:
        own = (
            _pretraining_rows(training, config, mask_sampler) if kind == "pretraining" else _finetuning_rows(training)
        )
        recipe |= _recipe_rows(training, state) | own | _logged(state, _LOGGED)
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        # As code has it, quotes and all.
        name=json.dumps(name, ensure_ascii=False),
        title=name.split("/")[-1],
        config=config,
        kind=kind,
        model_class=model_class,
        is_classifier=is_classifier,
        is_grouped=is_grouped,
        # Which pipelines and PIL know.
        is_of_images=config.num_channels in (1, 3, 4),
        has_groups=has_groups,
        image_size=_sides(config.image_size),
        remote="" if kind == "export" else ", trust_remote_code=True",
        model=_rows(_model_rows(config, kind, is_classifier)),
        training=inherited.get("Training") or _rows(recipe | _software(origin)),
        groups=_rows(_logged(state, _OF_GROUPS)) if has_groups else "",
        results=_results(kind, printed, split, results) or inherited.get("Results"),
    )
    path = folder / "README.md"
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


# ---- names ----


def _hub_id(name: str | Path | None) -> str | None:
    """`name` if it is OWNER/NAME on the Hub, and no path here."""
    if name is None or str(name).count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)


def _printed(dataset: str) -> str:
    """What a card calls a data set: of a path, the folder's own name at most."""
    if dataset in SCENE_STYLES:
        return dataset + _BUILT_IN
    if _hub_id(dataset) or not (Path(dataset).exists() or re.search(r"[/\\*?]", dataset)):
        return dataset
    last = re.split(r"[/\\]", dataset.rstrip("/\\"))[-1]
    return "images of a local folder" + (f", {last}" if re.fullmatch(r"\w[\w. -]*", last) else "")


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _sides(size: int | Sequence[int]) -> str:
    """Height and width."""
    return " x ".join(map(str, (size, size) if isinstance(size, int) else size))


# ---- the model that a model was made of ----


def _card_of(base_model: str | Path, revision: str) -> ModelCard | None:
    """Its card, if it has one that can be read."""
    try:
        path = cached_file(str(base_model), "README.md", revision=revision)
        return ModelCard.load(Path(str(path)), ignore_metadata_errors=True)
    except (OSError, ValueError, YAMLError):
        return None


def _sections(card: ModelCard | None) -> dict[str, str]:
    """The text under each second-level heading."""
    parts = re.split(r"^## (.+)$", "" if card is None else card.text, flags=re.M)[1:]
    return {title.strip(): text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def _model_class(folder: Path) -> str:
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (written.get("architectures") or ["IJepaModel"])[0]


# ---- metadata ----


def _metadata(
    kind: str,
    name: str,
    datasets: list[str],
    split: str | None,
    results: Results,
    base_model: str | Path | None,
    source: ModelCard | None,
) -> ModelCardData:
    """What the Hub reads; a key that is None is left out."""
    of_source: CardData = ModelCardData() if source is None else source.data
    ids = [*_as_list(of_source.get("datasets")), *filter(None, map(_hub_id, datasets))]
    found = _eval_results(kind, datasets, split, results)
    if kind == "export" and not found:
        found = of_source.get("eval_results") or []
    return ModelCardData(
        library_name="transformers",
        license=of_source.get("license"),
        datasets=list(dict.fromkeys(ids)) or None,
        base_model=_hub_id(base_model) or of_source.get("base_model"),
        metrics=["accuracy"] if found else None,
        # An empty list would become an empty index, which the Hub refuses.
        eval_results=found or None,
        model_name=name.split("/")[-1] if found else None,
    )


def _eval_results(kind: str, datasets: list[str], split: str | None, results: Results) -> list[EvalResult]:
    """The model's own scores, for the index of models by their results."""
    if not datasets:
        return []
    own = {split: results.get(_TRAINED, {})} if kind == "pretraining" else results
    name = _printed(datasets[0])
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            # An id of the Hub, or what looks like one.
            dataset_type=_hub_id(name) or re.sub(r"[^\w.-]+", "-", name.removesuffix(_BUILT_IN)),
            dataset_name=name,
            dataset_split=where,
            metric_type=_METRICS[metric][1],
            metric_name=_METRICS[metric][0],
            metric_value=round(float(scores[metric]), 4),
        )
        for where, scores in own.items()
        for metric in _METRICS
        if metric in scores
    ]


# ---- tables ----


def _rows(rows: Mapping[str, Any]) -> str:
    return table(("", ""), [(name, str(value)) for name, value in rows.items()]) if rows else ""


def _model_rows(config: PreTrainedConfig, kind: str, is_classifier: bool) -> dict[str, Any]:
    channels = "" if config.num_channels == 3 else f" and {config.num_channels} channels"
    rows = {
        "encoder": f"ViT, width {config.hidden_size}, depth {config.num_hidden_layers}, "
        f"{config.num_attention_heads} heads, patches of {_sides(config.patch_size)} pixels, images of "
        f"{_sides(config.image_size)} pixels{channels}"
    }
    if is_classifier:
        names = [" ".join(str(name).split()) for name in config.id2label.values()]
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        rows["classes"] = f"{len(names)}: {shown}"
    if kind != "pretraining" or not isinstance(config, SparseJEPAConfig):
        return rows
    rows["predictor"] = (
        f"{config.predictor_type}, width {config.predictor_hidden_size}, depth {config.predictor_num_hidden_layers}"
    )
    rows["loss"] = f"{config.loss_type}, targets: {config.target_normalization}"
    if config.use_grouping:
        rows["grouping"] = (
            f"{config.num_latents} latents, {config.num_groups} groups of input width {config.group_size}"
        )
        rows["sparsity"] = f"{config.sparsity_mode}, λ = {config.sparsity_weight:g}"
        rows["latents"] = f"variational, β = {config.kl_weight:g}" if config.variational else "deterministic"
    return rows


def _software(origin: Mapping[str, Any] | None) -> dict[str, str]:
    origin = provenance() if origin is None else origin
    if not origin:
        return {}
    commit = f" at commit {origin['commit']}" if origin.get("commit") else ""
    versions = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
    return {"software": versions, "code": f"sparsejepa_hf {__version__}{commit}"}


def _recipe_rows(args: Any, state: TrainerState) -> dict[str, Any]:
    """What every run has."""
    # The state knows what auto_find_batch_size found.
    batch = (state.train_batch_size or args.train_batch_size) * args.gradient_accumulation_steps * args.world_size
    warmup = f"{args.warmup_steps:g} of the run" if 0 < args.warmup_steps < 1 else f"{args.warmup_steps:g} steps"
    best = state.best_global_step if args.load_best_model_at_end else None
    return {
        "optimizer steps": f"{state.global_step}"
        + (f"; the best so far, of step {best}, is kept at the end" if best else ""),
        "epochs": f"{state.epoch or 0:.3g}",
        "images a step": batch,
        "optimizer": f"{_text(args.optim)}, β₁ {args.adam_beta1:g}, β₂ {args.adam_beta2:g}",
        "learning rate": f"{args.learning_rate:g}",
        "schedule": f"{_text(args.lr_scheduler_type)}, warm-up {warmup}",
        "weight decay": f"{args.weight_decay:g}"
        + (f" to {end:g}" if (end := getattr(args, "weight_decay_end", None)) is not None else ""),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "augmentation of uint8 images": _augmentation(args),
        "seed": args.seed,
    }


def _pretraining_rows(args: Any, config: PreTrainedConfig, mask_sampler: Any | None) -> dict[str, Any]:
    sampler = mask_sampler or MultiBlockMaskSampler(
        config.grid_size,
        args.num_target_blocks,
        args.num_target_patches,
        args.num_context_patches,
        tuple(args.target_aspect_ratio),
    )
    masks = type(sampler).__name__
    if isinstance(sampler, MultiBlockMaskSampler):
        blocks = f"{sampler.num_target_blocks} target blocks of {sampler.num_target_patches} patches"
        masks = f"{blocks}, {sampler.num_context_patches} patches of context"
    return {"EMA momentum": f"{args.ema_momentum:g} to {args.ema_momentum_end:g}", "masks": masks}


def _finetuning_rows(args: Any) -> dict[str, Any]:
    rows = {"label smoothing": f"{args.label_smoothing_factor:g}"}
    rows |= {name: f"{getattr(args, name):g}" for name in ("mixup", "cutmix") if getattr(args, name)}
    trained = "the linear classifier alone" if args.freeze_encoder else f"all, layer decay {args.layer_decay:g}"
    start = "random weights" if args.random_weights else "pre-trained weights"
    return rows | {"trained": f"{trained}, from {start}"}


def _augmentation(args: Any) -> str:
    crop = {
        "pad": f"shift by up to {args.crop_padding} pixels",
        "resized": f"random resized crop of area {args.crop_scale[0]:g} to {args.crop_scale[1]:g}",
        "none": "",
    }[args.crop]
    flip = f"horizontal flip {args.horizontal_flip:g}" if args.horizontal_flip else ""
    jitter = f"colour jitter {args.color_jitter:g}" if args.color_jitter else ""
    return ", ".join(filter(None, (crop, flip, jitter))) or "none"


def _text(choice: Any) -> str:
    """An enumeration's value, or the text itself."""
    return str(getattr(choice, "value", choice))


def _logged(state: TrainerState | None, names: Mapping[str, str]) -> dict[str, str]:
    """The last value of each quantity that was logged, under its name in a card."""
    last = {key: value for entry in ([] if state is None else state.log_history) for key, value in entry.items()}
    return {names[key]: f"{last[key]:.4g}" for key in names if key in last}


def _results(kind: str, dataset: str, split: str | None, results: Results) -> str:
    """Accuracies in per cent, one row a name."""
    columns = [metric for metric in _METRICS if any(metric in scores for scores in results.values())]
    if not columns:
        return ""
    is_pretraining = kind == "pretraining"
    what = "Top-1 accuracy of frozen features on held-out images" if is_pretraining else "Accuracy on held-out images"
    what += (f" of {dataset}" if dataset else "") + (f", split {split}" if split else "")
    header = ["features" if is_pretraining else "split", *(_METRICS[metric][0] for metric in columns)]
    rows = [
        [name, *(f"{scores[metric]:.1%}" if metric in scores else NONE for metric in columns)]
        for name, scores in results.items()
    ]
    return f"{what}.\n\n{table(header, rows)}"
