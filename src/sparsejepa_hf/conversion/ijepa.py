# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' I-JEPA in both directions, and checkpoints of I-JEPA's original code."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.image_utils import PILImageResampling
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPAModel, SparseJEPAPreTrainedModel
from ..publishing import write_model_card
from .layouts import clean_names, encoder_weights, to_layout
from .models import build_model, fields_from_shapes, load_source, pixel_statistics, refuse_own_folder


logger = logging.get_logger(__name__)

# Fields that both configurations have, with the same meaning.
_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
_LABELS = ("id2label", "label2id", "problem_type")
# Of files of I-JEPA's original code, in which nobody names a repository.
_SUFFIXES = (".tar", ".pth", ".pt")


def to_ijepa(
    source: str | Path | SparseJEPAPreTrainedModel, *, encoder: str = "target", revision: str = "main"
) -> IJepaModel | IJepaForImageClassification:
    """One encoder as transformers' own I-JEPA; a classifier becomes [`IJepaForImageClassification`].

    Features and logits are equal to float error for images of the model's size. With `interpolate_pos_encoding=True`
    and other sizes they differ, since I-JEPA interpolates its position table, where this family evaluates the sin-cos
    functions.

    Args:
        source: a model of this family, or the folder or Hub name of its checkpoint.
        encoder: `"target"` or `"context"`; a checkpoint of an encoder or a classifier has a target encoder only.
        revision: of a checkpoint on the Hub.

    Returns:
        the model in evaluation mode on the CPU, in the type of the weights.

    Raises:
        ValueError: the model lacks the encoder or some of its weights, or they are quantised or have adapters.
        OSError: there is no such checkpoint.
    """
    model = load_source(source, encoder, revision)
    weights = encoder_weights(model, encoder)
    is_classifier = any(name.startswith("classifier.") for name in weights)
    fields = {name: getattr(model.config, name) for name in _SHARED + (_LABELS if is_classifier else ())}
    # transformers' field takes no integers.
    fields["layer_norm_eps"] = float(fields["layer_norm_eps"])
    state = to_layout(weights, "transformers files")
    if is_classifier:
        state = {name if name.startswith("classifier.") else f"ijepa.{name}": state[name] for name in state}
    model_class = IJepaForImageClassification if is_classifier else IJepaModel
    converted, info = model_class.from_pretrained(
        None, config=IJepaConfig(**fields), state_dict=state, dtype=model.dtype, output_loading_info=True
    )
    # transformers renames what its files hold; should that end, nothing may stay random.
    if lost := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ValueError(
            f"This version of transformers does not know {len(lost)} of the names that its I-JEPA files have, such as "
            f"{lost[0]!r}. Convert with another version, and report it."
        )
    return converted


def export_encoder(
    source: str | Path | SparseJEPAPreTrainedModel,
    folder: str | Path,
    *,
    encoder: str = "target",
    revision: str = "main",
) -> Path:
    """Writes one encoder as a checkpoint of transformers' I-JEPA, which loads anywhere without code of its own.

    `AutoModel`, `AutoModelForImageClassification` (of a classifier) and pipelines load the folder in vanilla
    transformers. The image processor is transformers' `ViTImageProcessor`: bicubic, short side to the model's, centre
    crop, mean and standard deviation of the checkpoint's. It does not turn images by their EXIF orientation, it clips
    16-bit images, and it makes no other number of channels. The model card takes over what the checkpoint's says. See
    [`to_ijepa`] for what is equal.

    Args:
        source: a model of this family, or the folder or Hub name of its checkpoint.
        folder: to write into; made if it is not there.
        encoder: `"target"` or `"context"`.
        revision: of a checkpoint on the Hub.

    Returns:
        the folder.

    Raises:
        ValueError: as in [`to_ijepa`]; or the folder is the checkpoint's own.
        OSError: there is no such checkpoint, or the folder cannot be written.
    """
    refuse_own_folder(source, folder)
    model = to_ijepa(source, encoder=encoder, revision=revision)
    mean, std = pixel_statistics(source, model.config.num_channels, revision)
    model.save_pretrained(folder)
    _plain_processor(model.config, mean, std).save_pretrained(folder)
    if isinstance(source, PreTrainedModel):
        config, base_model = source.config, None
    else:
        config = SparseJEPAConfig.from_pretrained(source, revision=revision)
        # Scores of the source's card are those of its target encoder.
        base_model = str(source) if encoder == "target" else None
    write_model_card(folder, kind="export", config=config, base_model=base_model, revision=revision)
    return Path(folder)


def from_ijepa(
    source: str | Path | PreTrainedModel,
    *,
    model_class: type[SparseJEPAPreTrainedModel] | None = None,
    allow: Sequence[str] = (),
    revision: str = "main",
    **overrides: Any,
) -> Any:
    """A model of this family with the weights of I-JEPA; features and logits are equal to float error.

    Sizes are read from the configuration, of original checkpoints from the shapes of their weights.

    Args:
        source: transformers' [`IJepaModel`] or [`IJepaForImageClassification`], or the folder or Hub name of its
            checkpoint; or a file `.pth.tar` of I-JEPA's original code, or of one of its encoders.
        model_class: of this family; by default [`SparseJEPAForImageClassification`] for a classifier, else
            [`SparseJEPAVisionModel`]. A class with two encoders gets both from an original checkpoint, and otherwise
            the same one twice; its predictor is new.
        allow: weights, by name or pattern, that may be left out, missing or of another shape.
        revision: of a checkpoint on the Hub.
        **overrides: configuration, such as `num_groups=16`, or `num_attention_heads` of an original checkpoint of an
            uncommon width. Encoders alone get `use_grouping=False` unless it is given.

    Returns:
        the model in evaluation mode on the CPU, in the type of the weights.

    Raises:
        ValueError: it is no I-JEPA; weights that `allow` does not name are unknown, missing or of another shape;
            positions were learned; or weights are damaged or pickled.
        OSError: there is no such checkpoint.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix in _SUFFIXES and not Path(source).exists():
        raise FileNotFoundError(f"There is no file {str(source)!r}; expected a checkpoint of I-JEPA's code.")
    if isinstance(source, (str, Path)) and Path(source).is_file():
        states, has_predictor = _read_original(Path(source))
        fields, layout = fields_from_shapes(states["target"], overrides), "timm"
    else:
        in_memory = source if isinstance(source, PreTrainedModel) else None
        config = in_memory.config if in_memory else AutoConfig.from_pretrained(source, revision=revision)
        if not isinstance(config, IJepaConfig):
            raise ValueError(
                f"The model given is of type {config.model_type!r}; expected 'ijepa'. ViTs of timm are converted by "
                "sparsejepa_hf.conversion.from_timm."
            )
        state = clean_names(in_memory.state_dict() if in_memory else _read_weights(str(source), revision))
        states, has_predictor, layout = {"context": state, "target": state}, False, "transformers"
        fields = {name: getattr(config, name) for name in _SHARED}
        if "classifier.weight" in state:
            fields |= {name: getattr(config, name) for name in _LABELS}
    model = build_model(model_class, fields, states, layout, allow, overrides)
    if has_predictor and isinstance(model, (SparseJEPAModel, SparseJEPAForPreTraining)):
        logger.warning(
            "The predictor of the checkpoint is left out and a new one is drawn: in I-JEPA's predictor the context "
            "looks at the target block, and in this family's it does not, so the same weights would compute "
            "something else."
        )
    return model


def _read_original(path: Path) -> tuple[dict[str, dict[str, Tensor]], bool]:
    """State dicts by encoder, and whether there is a predictor."""
    try:
        # Checkpoints hold the optimizer too, several times the weights; mapped, it is not read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # Before the reason, torch recommends to unpickle all of it.
        told = re.search(r"(Unsupported|Trying to load) .+", str(error))
        reason = told[0] if told else str(error).splitlines()[0]
        raise ValueError(
            f"{str(path)!r} could not be read as tensors alone ({reason}). Expected a complete checkpoint of I-JEPA's "
            "code; nothing else in it is unpickled."
        ) from error
    parts = {"context": "encoder", "target": "target_encoder"}
    found = {side: content[part] for side, part in parts.items() if isinstance(content, Mapping) and part in content}
    if not found and isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        found = {"target": content}
    if not found:
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{str(path)!r} holds {names}; expected 'encoder' or 'target_encoder', as I-JEPA's code saves them, or "
            "the weights of one encoder."
        )
    states = {side: clean_names(state) for side, state in found.items()}
    only = next(iter(states.values()))
    return {side: states.get(side, only) for side in parts}, "predictor" in content


def _read_weights(source: str, revision: str) -> dict[str, Tensor]:
    """All weights of a folder or of a repository of the Hub. Nothing is unpickled."""
    is_folder = Path(source).is_dir()
    folder = source if is_folder else snapshot_download(source, revision=revision, allow_patterns="model*.safetensors")
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise ValueError(
            f"{source!r} has no weights as safetensors; expected model.safetensors. Pickled weights are not opened: "
            "save the model again with its own library."
        )
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(
            f"The weights in {source!r} are damaged or cut short ({error}). Download or save them again."
        ) from error


def _plain_processor(config: IJepaConfig, mean: list[float], std: list[float]) -> ViTImageProcessor:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return ViTImageProcessor(
        # It converts to RGB alone; other images have to be given with as many channels as the model takes.
        do_convert_rgb=config.num_channels == 3,
        size={"shortest_edge": height} if height == width else {"height": height, "width": width},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=height == width,
        crop_size={"height": height, "width": width},
        image_mean=mean,
        image_std=std,
    )
