# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run's options from a YAML file and flags: flags override the file, unknown keys are refused."""

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


@dataclass
class DataArguments:
    """Which images to train on, and how the result is looked at."""

    dataset: str = field(
        default="synthetic-scenes",
        metadata={
            "help": "A Hub data set, a folder of images, parquet, arrow or tar files (a glob will do), a folder of "
            "save_to_disk, or synthetic-scenes, the built-in data."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Held-out split, for the monitors; or none."})
    scene_max_objects: int = field(default=4, metadata={"help": "Most objects of a synthetic-scenes image, 1 to 8."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only label column, if any."})
    streaming: bool = field(default=False, metadata={"help": "Read on the fly, in bounded memory; needs max_steps."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Examples of the shuffle buffer when streaming."})
    load_size: int | None = field(
        default=None,
        metadata={"help": "Side that training images are decoded to before augmentation; default: image_size."},
    )
    max_train_examples: int | None = field(default=None, metadata={"help": "A random subset of so many."})
    max_eval_examples: int | None = field(default=None, metadata={"help": "Likewise for the held-out split."})
    dataset_seed: int = field(
        default=0, metadata={"help": "Seed of subsets, of the built-in scenes and of a stream's shuffling."}
    )
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Largest share of undecodable images."})
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5], metadata={"help": "Of each channel."})
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5], metadata={"help": "Of each channel."})
    probe: bool = field(
        default=True,
        metadata={"help": "At the end, compare kNN and a linear probe with the untrained encoder and raw pixels."},
    )


def _flag_type(annotation: Any) -> Any:
    """The type that one flag of a configuration field takes."""
    members = set(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
    if list[int] in members:
        return list[int]
    for kind in (float, int, str):
        if kind in members:
            return kind
    return bool


def _model_arguments() -> type:
    """A dataclass of optional flags, one for every field that SparseJEPAConfig adds to its base class."""
    annotations = SparseJEPAConfig.__annotations__
    options = [("preset", str, field(default="vit-tiny", metadata={"help": f"One of {', '.join(PRESETS)}."}))]
    for name, annotation in annotations.items():
        if typing.get_origin(annotation) is not typing.ClassVar and name != "model_type":
            help_text = f"{name} of SparseJEPAConfig; default: the preset's."
            options.append((name, _flag_type(annotation) | None, field(default=None, metadata={"help": help_text})))
    return dataclasses.make_dataclass("ModelArguments", options, namespace={"build_config": _build_config})


def _build_config(self) -> SparseJEPAConfig:
    """The configuration: the preset with whatever was given on top."""
    given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "preset"}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("image_size", "patch_size"):
        if len(given.get(name, ())) == 1:
            given[name] = given[name][0]
    return SparseJEPAConfig.from_preset(self.preset, **given)


ModelArguments = _model_arguments()


def parse_options(option_types: Sequence[type], arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses `[FILE.yaml] [--flag value …]` into one instance of each dataclass.

    Raises:
        ValueError: for a file that is missing, not a mapping, or has unknown keys.
        SystemExit: for unknown flags, as argparse does.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from_file: list[str] = []
    flagless: dict[str, Any] = {}
    if arguments and not arguments[0].startswith("-"):
        from_file, flagless = _file_as_flags(Path(arguments.pop(0)), option_types)
    usage = "%(prog)s [FILE.yaml] [--flag value ...]; the file holds the flags below by name, and flags override it"
    parser = HfArgumentParser(option_types, allow_abbrev=False, usage=usage)
    parser.set_defaults(**flagless)
    return parser.parse_args_into_dataclasses([*from_file, *arguments])


def _file_as_flags(path: Path, option_types: Sequence[type]) -> tuple[list[str], dict[str, Any]]:
    """The file's options as flags, and those that no flag can say, such as null and empty lists."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}; expected a YAML file of options, or flags beginning with --.")
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
        else:
            flags += _as_flag(name, value)
    return flags, flagless


def _kinds(annotation: Any) -> set[type]:
    """The classes that an annotation allows, without their parameters."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    members = typing.get_args(annotation) if is_union else (annotation,)
    return {typing.get_origin(member) or member for member in members}


def _as_flag(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
