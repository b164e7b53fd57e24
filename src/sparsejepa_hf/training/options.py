# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run's options: from a YAML file and flags, and back into a file that runs again."""

import argparse
import dataclasses
import difflib
import re
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
from ..masking import MultiBlockMaskSampler
from .arguments import FineTuningArguments, SparseJEPATrainingArguments
from .checks import check_options, describe, shown


_DATASET_HELP = (
    "A Hub data set, a folder of images, parquet, arrow or tar files (a glob will do), a folder of save_to_disk, or "
    "synthetic-scenes or textured-scenes, the built-in data."
)


# Every number of the data's options: the interval it lies in. A list's entries each lie in it.
DATA_RANGES = {
    "dataset_seed": "[0, 4294967295]",
    # On the scale from 0 to 1, as images are normalised.
    "image_mean": "[0, 1]",
    "image_std": "(0, inf)",
    "load_size": "[1, inf)",
    "max_bad_fraction": "[0, 1]",
    "max_eval_examples": "[1, inf)",
    "max_test_examples": "[1, inf)",
    "max_train_examples": "[1, inf)",
    "scene_max_objects": "[1, 8]",
    "shuffle_buffer": "[1, inf)",
    "validation_fraction": "(0, 1)",
}


@dataclass
class ImageDataArguments:
    """Which images, for pre-training and for fine-tuning.

    Raises:
        ValueError: for values of another type, outside the stated ranges, or that do not fit together.
    """

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

    def __post_init__(self) -> None:
        check_options(self, DATA_RANGES, {})
        mean, std = getattr(self, "image_mean", None), getattr(self, "image_std", None)
        if (mean is None) != (std is None):
            raise ValueError("Of image_mean and image_std one is given alone; expected both, or neither.")
        if mean is not None and std is not None and len(mean) != len(std):
            raise ValueError(f"image_mean is {mean} and image_std {std}; expected one number of each a channel.")


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
    target_normalization: str | None = field(default=None, metadata={"help": "layer_norm, batch_norm or none."})
    target_layers: int | None = field(default=None, metadata={"help": "Last layers whose mean is the target."})
    patch_projection_scale: float | None = field(default=None, metadata={"help": "The same, by its later name."})
    patch_scale: float | None = field(default=None, metadata={"help": "Factor of the patch projection's start."})
    residual_scale: float | None = field(default=None, metadata={"help": "Factor of the residual branches' start."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the context encoder."})
    sparsity_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the group lasso, on the scale of a column's gradient: 1e-4 to 1e-2."},
    )
    sparsity_mode: str | None = field(
        default=None, metadata={"help": "proximal (exact zeros) or penalty (part of the loss)."}
    )
    kl_weight: float | None = field(default=None, metadata={"help": "Weight of the KL term."})

    def __post_init__(self) -> None:
        check_options(self, {}, {"preset": tuple(PRESETS)})

    def build_config(self) -> SparseJEPAConfig:
        """The configuration: the preset with whatever was given on top.

        Raises:
            ValueError: there is no such preset, no model can have these values, or none that fits into memory.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name in ("image_size", "patch_size"):
            if len(given.get(name, ())) == 1:
                (given[name],) = given[name]
        config = SparseJEPAConfig.from_preset(given.pop("preset"), **given)
        config.require_memory()
        return config


def check_together(data: DataArguments, training: SparseJEPATrainingArguments, config: SparseJEPAConfig) -> None:
    """Checks what the options of data and training ask of the model, before images are loaded.

    Raises:
        ValueError: they do not fit it, or the masks cannot exist on its grid.
    """
    sides = config.image_sides
    if training.crop == "pad" and training.crop_padding >= min(sides):
        raise ValueError(f"crop_padding is {training.crop_padding}; expected less than image_size {min(sides)}.")
    if data.load_size is not None and data.load_size != min(sides):
        if data.load_size < min(sides):
            raise ValueError(f"load_size is {data.load_size}; expected at least image_size {min(sides)}.")
        if training.crop != "resized":
            raise ValueError(
                f"load_size is {data.load_size} and image_size {min(sides)}, which only crop resized brings "
                f"together, but crop is {training.crop!r}. Leave load_size out, or set crop to resized."
            )
    if training.eval_strategy != "no" and str(data.eval_split).lower() == "none":
        raise ValueError(
            f"eval_strategy is {str(training.eval_strategy.value)!r}, but eval_split is none; expected a held-out "
            "split, or eval_strategy no."
        )
    ratio = training.target_aspect_ratio
    MultiBlockMaskSampler(
        config.grid_size,
        num_target_blocks=training.num_target_blocks,
        num_target_patches=training.num_target_patches,
        num_context_patches=training.num_context_patches,
        target_aspect_ratio=(ratio[0], ratio[1]),
    )


@dataclass
class FineTuningModelArguments:
    """Which encoder to begin from."""

    model_name_or_path: str = field(
        metadata={"help": "A SparseJEPA checkpoint: a folder, or a model on the Hub. Its target encoder is taken."}
    )

    def __post_init__(self) -> None:
        check_options(self, {}, {})


@dataclass
class FineTuningDataArguments(ImageDataArguments):
    """Which labelled images to train and to test on."""

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


# What the commands `pretrain` and `finetune` take.
OPTION_TYPES = (ModelArguments, DataArguments, SparseJEPATrainingArguments)
FINE_TUNING_OPTION_TYPES = (FineTuningModelArguments, FineTuningDataArguments, FineTuningArguments)

# The built-in recipes: files of `examples/configs`, which lies here under a link. A queue of runs is no recipe.
_FILES = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
RECIPES = {path.stem: path for path in _FILES if not path.stem.startswith("queue-")}


# ---- from a file and flags ----

_PACKAGE = __name__.partition(".")[0]
# The options of transformers that --help describes.
_SHOWN = (
    *("output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "seed", "bf16", "use_cpu", "torch_compile", "dataloader_num_workers"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
    *("metric_for_best_model", "resume_from_checkpoint", "push_to_hub", "hub_model_id"),
)


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
        ValueError: for a file that is missing or no YAML of options, and for values of another type, outside their
            range, or that do not fit together.
        SystemExit: for flags that are unknown or of another type, and without an output_dir, as argparse does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    from_file: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        from_file = _read_file(_find_recipe(words.pop(0)), option_types)
    usage = (
        "%(prog)s [RECIPE] [--flag value ...]; RECIPE is a YAML file, which holds the flags below by name, or one of "
        f"{', '.join(RECIPES)}. Flags override it, and it overrides the defaults below"
    )
    parser = HfArgumentParser(option_types, prog=program, allow_abbrev=False, usage=usage)
    # transformers would write into a folder of its own choice.
    parser._option_string_actions["--output_dir"].required = True
    _shorten_help(parser, option_types)
    for action in parser._actions:
        if action.dest in from_file:
            action.default = from_file[action.dest]
            action.required = action.required and action.default is None
    *parsed, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; --help lists all")
    return tuple(parsed)


def _shorten_help(parser: HfArgumentParser, option_types: Sequence[type]) -> None:
    """Leaves of transformers' hundred options those that most runs set, and names the others."""
    classes = [base for kind in option_types for base in kind.__mro__ if base.__module__.startswith(_PACKAGE)]
    described = {name for base in classes for name in vars(base).get("__annotations__", {})} | {"help", *_SHOWN}
    others = [action for action in parser._actions if action.dest not in described]
    names = dict.fromkeys(f"--{action.dest}" for action in others)
    parser.epilog = (
        f"Also the other options of transformers' TrainingArguments, whose documentation describes them: "
        f"{', '.join(names)}."
    )
    for action in others:
        action.help = argparse.SUPPRESS


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


class _Loader(yaml.SafeLoader):
    """YAML of plain values, in which a key given twice is an error and 1e-3 a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _refuse_doubles(node)
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)
_KINDS = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
_YAML = "tag:yaml.org,2002:"
_PLAIN = {_YAML + name for name in ("bool", "float", "int", "map", "null", "seq", "str", "timestamp", "value")}


def _read_file(path: Path, option_types: Sequence[type]) -> dict[str, Any]:
    """The file's options by name, each of the type of its field; null where nothing is an answer.

    A plain value is the text that stands there, as on a command line: `no`, `1.10` and `2026-01-01` stay what they are
    where a text is wanted.

    Raises:
        ValueError: the file is not UTF-8, not YAML, not a mapping, or a key is unknown, given twice, or has a value of
            another type.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    try:
        return _read_yaml(_Loader(text), option_types)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"{path} is not YAML of options: {place}{getattr(error, 'problem', error)}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; expected a mapping of options to values.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_yaml(loader: _Loader, option_types: Sequence[type]) -> dict[str, Any]:
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"it holds {_KINDS.get(type(node), 'nothing')}; expected a mapping of options to values.")
    _refuse_doubles(node)
    loader.flatten_mapping(node)
    known: dict[str, Any] = {}
    for option_type in option_types:
        hints = typing.get_type_hints(option_type)
        known |= {f.name: hints[f.name] for f in dataclasses.fields(option_type) if f.init}
    options: dict[str, Any] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, key.value
        if not isinstance(key, yaml.ScalarNode) or name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"line {line} has an unknown key {shown(name)}.{hint}")
        try:
            options[name] = _value(loader, value, known[name])
        except ValueError as error:
            reason = str(error) or f"expected {describe(known[name])}"
            raise ValueError(f"line {line} sets {name} to {_written(value)}; {reason}.") from error
    return options


def _value(loader: _Loader, node: yaml.Node, hint: Any) -> Any:
    """The node's value as the type asks for it; ValueError where it does not fit."""
    kinds = _kinds(hint)
    if node.tag not in _PLAIN:
        raise ValueError(f"it has the tag {node.tag}; expected a plain value")
    if _is_null(node):
        if types.NoneType in kinds:
            return None
        raise ValueError("it needs a value; leave the key out for its default")
    if isinstance(node, yaml.MappingNode) and dict in kinds:
        try:
            return loader.construct_document(node)
        # A reader of YAML stumbles in many ways over a tag and a value that do not fit.
        except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
    if isinstance(node, yaml.SequenceNode) and list in kinds:
        return [_value(loader, entry, kinds[list][0]) for entry in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError
    for kind in kinds:
        is_bool = node.value.lower() in loader.bool_values
        if kind is bool and is_bool:
            return bool(loader.bool_values[node.value.lower()])
        if kind in (int, float):
            try:
                return kind(node.value)
            except ValueError:
                raise ValueError from None
        if kind is list:
            # One entry needs no brackets.
            return [_value(loader, node, kinds[list][0])]
        if isinstance(kind, type) and issubclass(kind, str):
            return node.value
    raise ValueError


def _kinds(annotation: Any) -> dict[Any, tuple[Any, ...]]:
    """The classes that an annotation allows with their parameters: a truth value first, and text before a list."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    members = typing.get_args(annotation) if is_union else (annotation,)
    kinds = {typing.get_origin(member) or member: typing.get_args(member) for member in members}
    return dict(sorted(kinds.items(), key=lambda kind: (kind[0] is not bool, kind[0] is list)))


def _refuse_doubles(node: yaml.MappingNode) -> None:
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in lines:
            raise ValueError(
                f"the key {shown(key.value)} is on line {lines[key.value]} and on line {line}; expected one"
            )
        lines |= {key.value: line} if isinstance(key, yaml.ScalarNode) else {}


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == f"{_YAML}null")


def _written(node: yaml.Node) -> str:
    """A value as a message shows it."""
    if _is_null(node):
        return "null"
    return shown(node.value) if isinstance(node, yaml.ScalarNode) else _KINDS[type(node)]


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
    left_out = {"accelerator_config", "fsdp_config", "fsdp", "parallelism_config"}
    left_out |= {"resume_from_checkpoint", "resume_with_changes", "overwrite_output_dir"}
    return {name: v for name, v in resolved.items() if name not in left_out and not name.endswith("_token")}


def write_options(output_dir: str | Path, *options: Any, name: str = "pretraining_options.yaml") -> None:
    """Writes [`resolved_options`] into `output_dir`/`name`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(resolved_options(*options), sort_keys=False)
    (Path(output_dir) / name).write_text(text, encoding="utf-8")
