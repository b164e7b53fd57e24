# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run's options: from a YAML file and flags, and back into a file that runs again."""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..configuration_sparsejepa import PRESETS, SparseJEPAConfig
from .arguments import FineTuningArguments, SparseJEPATrainingArguments


_DATASET_HELP = (
    "A Hub data set, a folder of images, parquet, arrow or tar files (a glob will do), a folder of save_to_disk, or "
    "synthetic-scenes or textured-scenes, the built-in data."
)


@dataclass
class ImageDataArguments:
    """Which images, for pre-training and for fine-tuning."""

    dataset: str = field(metadata={"help": _DATASET_HELP})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only label column, if any."})
    load_size: int | None = field(
        default=None,
        metadata={"help": "Short side that training images are decoded to before augmentation; default: the model's."},
    )
    value_range: list[str] | None = field(
        default=None,
        metadata={
            "help": "Raw values that are black and white, such as 0 4095 of 12-bit images; or measure, to take the "
            "lowest and highest of train_split; default: what the type of an image says."
        },
    )
    max_train_examples: int | None = field(
        default=None, metadata={"help": "Take this many images of train_split, chosen at random; default: all."}
    )
    dataset_seed: int = field(
        default=0,
        metadata={"help": "Seed of subsets, of a validation part, of the built-in scenes and of a stream's order."},
    )
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Largest share of undecodable images."})
    trust_paths: bool = field(
        default=False,
        metadata={"help": "Open whatever file, and fetch whatever address, the rows of the data set name."},
    )


@dataclass
class DataArguments(ImageDataArguments):
    """Which images to pre-train on, and how the result is looked at."""

    eval_split: str | None = field(default=None, metadata={"help": "Held-out split, for the monitors; or none."})
    max_eval_examples: int | None = field(
        default=None, metadata={"help": "Take this many held-out images, chosen at random; default: all."}
    )
    scene_max_objects: int | None = field(
        default=None,
        metadata={"help": "Most objects of a built-in image, 1 to 8; default: synthetic-scenes 4, textured-scenes 1."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read on the fly, in bounded memory; needs max_steps."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Examples of the shuffle buffer when streaming."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Of each channel; default: 0.5."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Of each channel; default: 0.5."})
    probe: bool = field(
        default=True,
        metadata={"help": "At the end, compare kNN and a linear probe with the untrained encoder and raw pixels."},
    )

    def resolve_statistics(self, num_channels: int) -> None:
        """Sets `image_mean` and `image_std`, where they are not given, to 0.5 for each channel.

        Raises:
            ValueError: one is given for another number of channels.
        """
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is None:
                setattr(self, name, [0.5] * num_channels)
            elif len(values) != num_channels:
                raise ValueError(
                    f"{name} is {values}, and num_channels {num_channels}; expected one number for each channel. "
                    "Leave it out for 0.5."
                )


@dataclass
class ModelArguments:
    """Which model to pre-train: a preset, and any field of [`SparseJEPAConfig`] that is to differ from it."""

    preset: str = field(default="vit-tiny", metadata={"help": f"One of {', '.join(PRESETS)}."})
    hidden_size: int | None = field(default=None, metadata={"help": "D, width of both encoders."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Depth of the encoders."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Attention heads of the encoders."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of the encoders' MLPs."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation, such as gelu."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout in [0, 1)."})
    attention_probs_dropout_prob: float | None = field(default=None, metadata={"help": "Attention dropout in [0, 1)."})
    initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of linear weights; default: Xavier."}
    )
    layer_norm_eps: float | None = field(default=None, metadata={"help": "Epsilon of every LayerNorm."})
    image_size: list[int] | None = field(default=None, metadata={"help": "Pixels: the side, or height and width."})
    patch_size: list[int] | None = field(default=None, metadata={"help": "Pixels: the side, or height and width."})
    num_channels: int | None = field(default=None, metadata={"help": "Image channels."})
    qkv_bias: bool | None = field(default=None, metadata={"help": "Biases of query, key and value."})
    predictor_type: str | None = field(default=None, metadata={"help": "transformer (I-JEPA's) or mlp (the paper's)."})
    predictor_hidden_size: int | None = field(default=None, metadata={"help": "Width of the predictor."})
    predictor_num_hidden_layers: int | None = field(default=None, metadata={"help": "Depth of the predictor."})
    predictor_num_attention_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the predictor."}
    )
    predictor_intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of its MLPs; default: four times the predictor's width."}
    )
    use_grouping: bool | None = field(default=None, metadata={"help": "False: plain I-JEPA, whatever else is set."})
    num_groups: int | None = field(default=None, metadata={"help": "G, groups; divides hidden_size."})
    num_latents: int | None = field(default=None, metadata={"help": "K, latents."})
    group_size: int | None = field(default=None, metadata={"help": "Width of a group's input."})
    generator_hidden_size: int | None = field(default=None, metadata={"help": "Width of each group's generator."})
    variational: bool | None = field(default=None, metadata={"help": "Latents with noise and a KL term."})
    latent_position: str | None = field(
        default=None, metadata={"help": "predictor (behind it) or encoder (before the predictor)."}
    )
    latent_residual: bool | None = field(default=None, metadata={"help": "A path around the groups."})
    loss_type: str | None = field(default=None, metadata={"help": "smooth_l1 (I-JEPA) or mse (the paper)."})
    target_normalization: str | None = field(default=None, metadata={"help": "layer_norm or none."})
    sparsity_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the group lasso, on the scale of a column's gradient: 1e-4 to 1e-2."},
    )
    sparsity_mode: str | None = field(
        default=None, metadata={"help": "proximal (exact zeros) or penalty (part of the loss)."}
    )
    kl_weight: float | None = field(default=None, metadata={"help": "Weight of the KL term."})

    def build_config(self) -> SparseJEPAConfig:
        """The configuration: the preset with whatever was given on top.

        Raises:
            ValueError: there is no such preset, or no model can have these values.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name in ("image_size", "patch_size"):
            if len(given.get(name, ())) == 1:
                (given[name],) = given[name]
        return SparseJEPAConfig.from_preset(given.pop("preset"), **given)


@dataclass
class FineTuningModelArguments:
    """Which encoder to begin from."""

    model_name_or_path: str = field(
        metadata={"help": "A SparseJEPA checkpoint: a folder, or a model on the Hub. Its target encoder is taken."}
    )


@dataclass
class FineTuningDataArguments(ImageDataArguments):
    """Which labelled images to train and to test on.

    Raises:
        ValueError: for values outside the stated ranges.
    """

    test_split: str = field(
        default="test", metadata={"help": "Split that the finished model is tested on, once; nothing is chosen on it."}
    )
    max_test_examples: int | None = field(
        default=None, metadata={"help": "Take this many images of test_split, chosen at random; default: all."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of each class of train_split that is held out for the evaluations during training, and for "
            "load_best_model_at_end; with eval_strategy no, nothing is held out."
        },
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Of each channel; default: the checkpoint's image processor's."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Of each channel; default: the checkpoint's image processor's."}
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}; expected a number between 0 and 1. To hold "
                "nothing out, leave it and set eval_strategy to no."
            )
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("Of image_mean and image_std one is given alone; expected both, or neither.")


# What the commands `pretrain` and `finetune` take.
OPTION_TYPES = (ModelArguments, DataArguments, SparseJEPATrainingArguments)
FINE_TUNING_OPTION_TYPES = (FineTuningModelArguments, FineTuningDataArguments, FineTuningArguments)

# The built-in recipes: files of `examples/configs`, which lies here under a link. A queue of runs is no recipe.
_FILES = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
RECIPES = {path.stem: path for path in _FILES if not path.stem.startswith("queue-")}


# ---- from a file and flags ----


def parse_options(
    option_types: Sequence[type], arguments: Sequence[str] | None = None, program: str | None = None
) -> tuple[Any, ...]:
    """Parses `[RECIPE] [--flag value …]`; flags override the recipe, a YAML file or the name of a built-in one.

    Args:
        option_types: dataclasses that share no field name.
        arguments: the words; default: the command line's.
        program: what `--help` calls the command; default: the script's name.

    Returns:
        one instance of each dataclass.

    Raises:
        ValueError: for a file that is missing, not a mapping, or has unknown keys.
        SystemExit: for unknown flags, and without an output_dir, as argparse does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    from_file: list[str] = []
    flagless: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        from_file, flagless = _file_as_flags(_find_recipe(words.pop(0)), option_types)
    usage = (
        "%(prog)s [RECIPE] [--flag value ...]; RECIPE is a YAML file, which holds the flags below by name, or one of "
        f"{', '.join(RECIPES)}. Flags override it, and it overrides the defaults below"
    )
    parser = HfArgumentParser(option_types, prog=program, allow_abbrev=False, usage=usage)
    parser.set_defaults(**flagless)
    # transformers would write into a folder of its own choice.
    parser._option_string_actions["--output_dir"].required = True
    *parsed, unknown = parser.parse_args_into_dataclasses([*from_file, *words], return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; --help lists all")
    return tuple(parsed)


def _find_recipe(name: str) -> Path:
    """The file of this name, or else the built-in recipe."""
    if Path(name).is_file():
        return Path(name)
    if name not in RECIPES:
        raise ValueError(
            f"There is no file {name}; expected a YAML file of options, the name of a built-in recipe "
            f"({', '.join(RECIPES)}), or flags beginning with --."
        )
    return RECIPES[name]


def _file_as_flags(path: Path, option_types: Sequence[type]) -> tuple[list[str], dict[str, Any]]:
    """The file's options as flags, so that argparse checks both alike, and those that no flag can express."""
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds {type(options).__name__}; expected a mapping of options to values.")
    known: dict[str, Any] = {}
    for option_type in option_types:
        hints = typing.get_type_hints(option_type)
        known |= {f.name: hints[f.name] for f in dataclasses.fields(option_type) if f.init}
    flags: list[str] = []
    flagless: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path} has an unknown key {name!r}.{hint}")
        kinds = _kinds(known[name])
        if value is None and types.NoneType not in kinds:
            raise ValueError(f"{path} sets {name} to null, but it needs a value; leave the key out for its default.")
        # A flag of "text or list" takes one text alone.
        if value is None or (isinstance(value, list) and list in kinds and (not value or str in kinds)):
            flagless[name] = value
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags, flagless


def _kinds(annotation: Any) -> set[type]:
    """The classes that an annotation allows, without their parameters."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    members = typing.get_args(annotation) if is_union else (annotation,)
    return {typing.get_origin(member) or member for member in members}


# ---- back into a file ----


def resolved_options(*options: Any) -> dict[str, Any]:
    """Every option as it was resolved, in one mapping that runs again as it stands."""
    resolved: dict[str, Any] = {}
    for option in options:
        values = option.to_dict() if hasattr(option, "to_dict") else dataclasses.asdict(option)
        defaults = {f.name: f.default for f in dataclasses.fields(option) if f.init}
        # Null is worth a line only where it is not the default.
        resolved |= {k: v for k, v in values.items() if k in defaults and not (v is None and defaults[k] is None)}
    # What the launcher sets (`accelerate config`) is left to it; secrets are not written; a rerun starts afresh.
    left_out = ("accelerator_config", "fsdp_config", "fsdp", "parallelism_config", "resume_from_checkpoint")
    return {name: v for name, v in resolved.items() if name not in left_out and not name.endswith("_token")}


def write_options(output_dir: str | Path, *options: Any, name: str = "pretraining_options.yaml") -> None:
    """Writes [`resolved_options`] into `output_dir`/`name`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved_options(*options), sort_keys=False)
    (Path(output_dir) / name).write_text(text, encoding="utf-8")
