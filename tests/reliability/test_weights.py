# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Files of weights changed at random: a model is loaded, or one error says which file is wrong."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoModel

from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining, SparseJEPAVisionModel


FUZZ = hypothesis.settings.get_profile("fuzz")
SIZES: dict[str, Any] = {
    "image_size": 4,
    "patch_size": 2,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
    "predictor_hidden_size": 4,
    "predictor_num_hidden_layers": 1,
    "predictor_num_attention_heads": 1,
    "num_groups": 2,
    "num_latents": 2,
    "group_size": 2,
    "generator_hidden_size": 2,
}
# The small one mostly: what is tried is the file.
LOADERS = [SparseJEPAForPreTraining, AutoModel, SparseJEPAVisionModel, SparseJEPAVisionModel, SparseJEPAVisionModel]
NUMBERS = st.one_of(st.integers(-4, 64), st.sampled_from([2**31, 2**40, 2**62, 2**64]), st.integers())
ENTRIES = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=4), st.text(max_size=4), st.none(), st.floats())
DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "I64", "C64", "X"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("weights")
    SparseJEPAForPreTraining(SparseJEPAConfig(**SIZES)).save_pretrained(folder)
    return folder, (folder / "model.safetensors").read_bytes()


@st.composite
def damage(draw: Any, whole: bytes) -> bytes:
    """A file of weights whose bytes, length or header are changed."""
    length = struct.unpack("<Q", whole[:8])[0]
    how = draw(st.sampled_from(["bytes", "header bytes", "cut", "length", "header", "header", "header", "more"]))
    if how in ("bytes", "header bytes"):
        changed = bytearray(whole)
        end = len(whole) if how == "bytes" else 8 + length
        for _ in range(draw(st.integers(1, 6))):
            changed[draw(st.integers(0, end - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if how == "more":
        return whole + draw(st.binary(min_size=1, max_size=16))
    if how == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + whole[8:]
    header = json.loads(whole[8 : 8 + length])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        action = draw(st.sampled_from(["entry", "dtype", "shape", "offsets", "drop", "rename", "copy"]))
        if action == "drop":
            del header[name]
        elif action in ("rename", "copy"):
            header[draw(st.text(max_size=5))] = header[name] if action == "copy" else header.pop(name)
        elif action == "entry":
            header[name] = draw(ENTRIES)
        elif isinstance(header[name], dict):
            key = {"dtype": "dtype", "shape": "shape", "offsets": "data_offsets"}[action]
            header[name][key] = draw(DTYPES if action == "dtype" and draw(st.booleans()) else ENTRIES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def test_damaged_weights_are_loaded_or_refused_in_one_error(saved, record_fault):
    folder, whole = saved
    counts = {"cases": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @hypothesis.settings(FUZZ)
    @hypothesis.given(damage(whole), st.sampled_from(LOADERS))
    def fuzz(file: bytes, loader: Any) -> None:
        counts["cases"] += 1
        (folder / "model.safetensors").write_bytes(file)
        try:
            model = loader.from_pretrained(folder)
        except (OSError, RuntimeError, ValueError) as error:
            # As transformers raises it for weights of other shapes; any other of its kind is not ours.
            assert type(error) is not RuntimeError or "do not fit" in str(error)
            assert str(folder) in str(error), error
            counts["refused"] += 1
        else:
            assert not any(parameter.is_meta for parameter in model.parameters())

    fuzz()
    assert 0 < counts["refused"] < counts["cases"]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"{grown} MB"
    record_fault("fuzz", "safetensors", injected=counts["cases"], held=counts["cases"], refused=counts["refused"])


def test_weights_of_another_shape_are_refused_with_the_folder(saved):
    folder, whole = saved
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(RuntimeError, match="weights of .* do not fit"):
        SparseJEPAForPreTraining.from_pretrained(folder, num_latents=3)
    model = SparseJEPAForPreTraining.from_pretrained(folder, num_latents=3, ignore_mismatched_sizes=True)
    assert model.config.num_latents == 3 and torch.isfinite(model.group_weight).all()
