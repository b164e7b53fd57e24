# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Options drawn at random, sound and nonsense: an object holds what was given, or a sentence names what is wrong."""

import contextlib
import dataclasses
import enum
import io
import math
import types
import typing
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from sparsejepa_hf.training.arguments import (
    _UNCHECKED,
    CHOICES,
    RANGES,
    FineTuningArguments,
    SparseJEPATrainingArguments,
)
from sparsejepa_hf.training.options import (
    DATA_RANGES,
    OPTION_TYPES,
    DataArguments,
    FineTuningDataArguments,
    FineTuningModelArguments,
    ModelArguments,
    _read_file,
    parse_options,
)


FUZZ = hypothesis.settings.get_profile("fuzz")


def share(part: float) -> hypothesis.settings:
    """A part of the cases that a fuzz draws."""
    return hypothesis.settings(FUZZ, max_examples=max(5, math.ceil(part * FUZZ.max_examples)))


TRAINING: dict[str, Any] = {"output_dir": "out", "use_cpu": True, "report_to": "none"}
# What each class needs, and how it begins.
NEEDED: dict[type, dict[str, Any]] = {
    SparseJEPATrainingArguments: TRAINING,
    FineTuningArguments: TRAINING,
    DataArguments: {"dataset": "images"},
    FineTuningDataArguments: {"dataset": "images"},
    FineTuningModelArguments: {"model_name_or_path": "runs/images"},
    ModelArguments: {},
}
# What a launcher or a device decides, and what is off whatever is asked for.
LEFT_OUT = {*_UNCHECKED, "ddp_backend", "logging_nan_inf_filter", "remove_unused_columns", "local_rank", "tf32"}
SCALARS = st.one_of(
    st.integers(-3, 100),
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**12, 10**40, 10**5000]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.sampled_from(["no", "none", "1e-3", "nan", "{}", '{"min_lr": 1}', "steps", "best", "\0", "-1", " ", "True"]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.lists(st.floats(0, 1), min_size=2, max_size=3),
    st.dictionaries(st.sampled_from(["min_lr", "min_lr_rate", "num_cycles", "power", "x"]), SCALARS, max_size=2),
    st.just(b"bytes"),
    st.just(1j),
    st.builds(object),
)


def fields_of(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init and f.name not in LEFT_OUT}


def sensible(name: str, hint: Any) -> st.SearchStrategy:
    """Values near the edges of what an option takes."""
    found: list[Any] = [*CHOICES.get(name, ())]
    interval = RANGES.get(name) or DATA_RANGES.get(name)
    if interval:
        edges = [float(edge) for edge in interval[1:-1].split(",")]
        found += [int(edge) for edge in edges if math.isfinite(edge)] + [0.5, 1, 2, 3, *edges]
    for member in typing.get_args(hint) or (hint,):
        found += [m.value for m in member] if isinstance(member, type) and issubclass(member, enum.Enum) else []
    return st.sampled_from(found) if found else st.booleans()


@st.composite
def options(draw: Any) -> tuple[type, dict[str, Any]]:
    """A class of options, and values for one to three of its fields."""
    kind = draw(st.sampled_from(list(NEEDED)))
    fields = fields_of(kind)
    names = draw(st.lists(st.sampled_from(list(fields)), min_size=1, max_size=3, unique=True))
    is_sound = draw(st.booleans())
    sound = {name: is_sound or draw(st.booleans()) for name in names}
    return kind, {name: draw(sensible(name, fields[name]) if sound[name] else VALUES) for name in names}


def is_said(error: BaseException, given: dict[str, Any], printed: str = "") -> bool:
    text = f"{error} {printed}"
    # transformers calls the options of an evaluation's precision by the short name.
    return any(name.removesuffix("_full_eval") in text for name in given) and len(text) < 5000


def holds(value: Any, given: Any) -> bool:
    """Whether an option is what was given, perhaps as its text, its JSON or a member of an enumeration."""
    value = getattr(value, "value", value)
    if isinstance(given, float) and isinstance(value, float):
        return value == given or (math.isnan(value) and math.isnan(given))
    if isinstance(value, dict):
        return isinstance(given, (dict, str))
    if isinstance(given, (list, tuple)):
        return isinstance(value, list) and (not value or len(value) == len(given))
    # An option that takes a text has the text that stands in the file.
    texts = [given, str(given), str(given).lower(), yaml.safe_dump(given).splitlines()[0]]
    return value in texts or value in ([], *([text] for text in texts))


# Where nothing, or a word, stands for something else.
MEANINGS = {
    "report_to": (None, "none", "all"),
    "eval_steps": (None, 0),
    "include_num_input_tokens_seen": (True, False),
    "activation_checkpointing": (None,),
    "gradient_checkpointing": (None, True, False),
    "disable_tqdm": (None,),
    "metric_for_best_model": (None,),
    "greater_is_better": (None,),
    "do_eval": (False,),
    "lr_scheduler_kwargs": (None,),
    "dataloader_pin_memory": (True,),
    "torch_compile": (False,),
    "torch_compile_backend": (None,),
    "output_dir": (None,),
    "gradient_checkpointing_kwargs": (None,),
}


def check(option: Any, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if not (name in MEANINGS and any(value is one or value == one for one in MEANINGS[name])):
            assert holds(getattr(option, name), value), (name, value, getattr(option, name))


@share(0.6)
@hypothesis.given(options())
@pytest.mark.filterwarnings("ignore")
def fuzz_objects(counts: dict[str, int], drawn: tuple[type, dict[str, Any]]) -> None:
    kind, given = drawn
    counts["cases"] += 1
    try:
        option = kind(**{**NEEDED[kind], **given})
    except ValueError as error:
        assert is_said(error, given), (given, error)
        counts["refused"] += 1
    else:
        check(option, given)
        if kind is ModelArguments:
            with contextlib.suppress(ValueError):
                option.build_config()


@share(0.2)
@hypothesis.given(options(), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore")
def fuzz_files(
    counts: dict[str, int], path: Path, drawn: tuple[type, dict[str, Any]], dumps: bool, whole: bool
) -> None:
    kind, given = drawn
    counts["cases"] += 1
    try:
        text = yaml.safe_dump(given) if dumps else "".join(f"{name}: {value}\n" for name, value in given.items())
        path.write_text(text, encoding="utf-8")
    except (yaml.YAMLError, ValueError):
        # No file says this.
        return
    printed = io.StringIO()
    try:
        if kind in OPTION_TYPES and whole and counts["cases"] % 8 == 0:
            needed = ["--dataset=images", "--output_dir=out", "--use_cpu", "--report_to=none"]
            with contextlib.redirect_stderr(printed):
                parsed = parse_options(
                    OPTION_TYPES, [str(path), *(n for n in needed if n[2:].split("=")[0] not in given)]
                )
            option = parsed[OPTION_TYPES.index(kind)]
        else:
            option = kind(**{**NEEDED[kind], **_read_file(path, [kind])})
    except (SystemExit, ValueError) as error:
        # What cuts a line in two changes which option it is.
        assert is_said(error, {**given, path.name: 0}, printed.getvalue()), (text, error, printed.getvalue())
        counts["refused"] += 1
    else:
        if dumps:
            check(option, {name: value for name, value in given.items() if not isinstance(value, bytes)})


@share(0.18)
@hypothesis.given(st.data())
def fuzz_bytes(counts: dict[str, int], path: Path, text: bytes, data: Any) -> None:
    """A recipe with a few bytes replaced, left out or put in."""
    counts["cases"] += 1
    changed = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        changed[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from([b": ", b"- ", b"{", b"[", b"!!", b"&a ", b"*a", b"<<: ", b"\t"]),
            )
        )
    path.write_bytes(changed)
    try:
        options = _read_file(path, OPTION_TYPES)
    except ValueError as error:
        assert path.name in str(error) and len(str(error)) < 2000
        counts["refused"] += 1
    else:
        assert isinstance(options, dict)


@share(0.02)
@hypothesis.given(options())
@pytest.mark.filterwarnings("ignore")
def fuzz_flags(counts: dict[str, int], drawn: tuple[type, dict[str, Any]]) -> None:
    kind, given = drawn
    if kind not in OPTION_TYPES:
        return
    words = []
    for name, value in given.items():
        with contextlib.suppress(ValueError):
            words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    needed = ["--dataset=images", "--output_dir=out", "--use_cpu", "--report_to=none"]
    printed = io.StringIO()
    counts["cases"] += 1
    try:
        with contextlib.redirect_stderr(printed):
            parse_options(OPTION_TYPES, [*needed, *words])
    except (SystemExit, ValueError) as error:
        assert is_said(error, {**given, "unrecognized arguments": 0}, printed.getvalue()), (words, error, printed)
        counts["refused"] += 1


def test_options_hold_what_was_given_or_a_sentence_names_what_is_wrong(tmp_path, monkeypatch, record_fault):
    monkeypatch.chdir(tmp_path)
    counts, recipe = {"cases": 0, "refused": 0}, tmp_path / "options.yaml"
    fuzz_objects(counts)
    fuzz_files(counts, recipe)
    fuzz_bytes(
        counts, recipe, b"dataset: a\nseed: 1\nlr_scheduler_kwargs: {min_lr: 1e-6}\nimage_mean: [0.1, 0.2, 0.3]\n"
    )
    fuzz_flags(counts)
    assert 0 < counts["refused"] < counts["cases"]
    record_fault("fuzz", "options", injected=counts["cases"], held=counts["cases"], refused=counts["refused"])


def test_every_number_has_a_range():
    for kind in NEEDED:
        if kind is not ModelArguments:
            for name, hint in fields_of(kind).items():
                members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
                if {int, float, list[int], list[float]} & set(members):
                    assert name in RANGES or name in DATA_RANGES, name
