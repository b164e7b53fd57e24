# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations changed at random: a model of one can be built without memory, or a sentence says what is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoConfig

from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining, modeling_sparsejepa


FUZZ = hypothesis.settings.get_profile("fuzz")
SCALARS = st.one_of(
    st.integers(-2, 64),
    st.sampled_from([4, 8, 16, 32, 10**6, 10**9, 10**12, 2**63, 10**40]),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=6),
    st.sampled_from(
        ["mlp", "encoder", "mse", "none", "penalty", "relu", "float16", "nn", "sdpa", "sparsejepa", "vit"]
    ),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.one_of(st.integers(-1, 3).map(str), st.text(max_size=4)), SCALARS, max_size=3),
)
OTHERS = ["dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "architectures", "auto_map"]
OTHERS += ["out_features", "out_indices", "model_type", "output_hidden_states", "return_dict", "hidden_sizes", "zz"]
OTHERS += ["_attn_implementation", "attn_implementation", "quantization_config", "transformers_version", "use_cache"]
OTHERS += ["chunk_size_feed_forward", "is_encoder_decoder", "_name_or_path", "per_layer_config", "name_or_path"]


@pytest.fixture(scope="module")
def written(make_small_config) -> dict[str, Any]:
    return json.loads(make_small_config().to_json_string(use_diff=False))


@st.composite
def changes(draw: Any) -> tuple[dict[str, Any], list[str]]:
    """Values for a few keys of a configuration, and keys to leave out."""
    own = sorted(SparseJEPAConfig._field_names())
    keys = st.one_of(st.sampled_from(own), st.sampled_from(OTHERS))
    changed = {key: draw(VALUES) for key in draw(st.lists(keys, max_size=3, unique=True))}
    return changed, draw(st.lists(st.sampled_from(own), max_size=2))


def empty_positions(width: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.empty(grid[0] * grid[1], width)


def same(value: Any, given: Any) -> bool:
    if isinstance(value, float) and isinstance(given, float) and math.isnan(given):
        return math.isnan(value)
    return bool(value == given) or (isinstance(given, list) and list(value) == given)


def try_one(counts: dict[str, int], config: dict[str, Any], changed: dict[str, Any], folder: Path | None) -> None:
    counts["cases"] += 1
    try:
        if folder is None:
            loaded = SparseJEPAConfig.from_dict(config)
        else:
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            # Of what these say AutoConfig decides which class it is.
            is_ours = config.get("model_type") == "sparsejepa" and "auto_map" not in changed
            loaded = (AutoConfig if is_ours and counts["cases"] % 2 else SparseJEPAConfig).from_pretrained(folder)
        with torch.device("meta"):
            SparseJEPAForPreTraining(loaded)
    except (OSError, ValueError) as error:
        assert len(str(error)) < 4000
        counts["refused"] += 1
        return
    for name in changed.keys() & SparseJEPAConfig.__annotations__.keys():
        # Without grouping what belongs to it is off, and a width that is not given follows from another.
        if loaded.use_grouping and changed[name] is not None and name[0] != "_":
            assert same(getattr(loaded, name), changed[name]), name


def test_a_changed_configuration_is_one_of_a_model_or_refused(tmp_path, written, monkeypatch, record_fault):
    # Half of the time, for tables that hold nothing here.
    monkeypatch.setattr(modeling_sparsejepa, "sincos_position_embeddings", empty_positions)
    counts = {"cases": 0, "refused": 0}

    @hypothesis.settings(FUZZ)
    @hypothesis.given(changes(), st.integers(0, 3))
    def fuzz(drawn: tuple[dict[str, Any], list[str]], route: int) -> None:
        changed, left_out = drawn
        config = {key: value for key, value in {**written, **changed}.items() if key not in left_out or key in changed}
        try_one(counts, config, changed, tmp_path if route == 0 else None)

    fuzz()
    assert 0 < counts["refused"] < counts["cases"]
    record_fault("fuzz", "configurations", injected=counts["cases"], held=counts["cases"], refused=counts["refused"])


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '"a"', "{", "{}", "[1", '{"model_type": 3}', "\ufeff{}", "NaN"]
)
def test_what_is_no_configuration_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    try:
        assert SparseJEPAConfig.from_pretrained(tmp_path).model_type == "sparsejepa"
        assert text == "{}"
    except (OSError, ValueError) as error:
        assert "config" in str(error)


@hypothesis.given(changes())
@hypothesis.settings(FUZZ, max_examples=40)
def test_the_count_of_parameters_is_the_models(written, drawn):
    """What is compared with the machine's memory, before a model is made."""
    try:
        config = SparseJEPAConfig.from_dict({**written, **drawn[0]})
        with torch.device("meta"):
            model = SparseJEPAForPreTraining(config)
    except ValueError:
        return
    assert sum(p.numel() for p in model.parameters()) == config._num_parameters()
    positions = sum(b.numel() for name, b in model.named_buffers() if "position" in name)
    assert positions == config._num_positions()


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_latents", 10**12), ("hidden_size", 96 * 10**7), ("image_size", 10**6), ("intermediate_size", 10**9)],
)
def test_what_no_memory_holds_is_refused_by_its_name_before_it_is_made(name, value):
    config = SparseJEPAConfig.from_preset("vit-micro", **{name: value})
    with pytest.raises(ValueError, match=rf"{name} is {value}; such a model has .* GB of memory. Lower {name}"):
        SparseJEPAForPreTraining(config)
