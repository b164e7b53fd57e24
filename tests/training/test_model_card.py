# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The card that a run writes about itself."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerState

from sparsejepa_hf.training import SparseJEPATrainingArguments
from sparsejepa_hf.training.model_card import write_model_card


HISTORY = [
    {"step": 10, "prediction_loss": 0.5, "rankme": 3.0, "zero_columns": 0.1},
    {
        "step": 20,
        "prediction_loss": 0.12345,
        "rankme": 7.5,
        "zero_columns": 0.25,
        "groups_per_living_latent": 2.5,
        "dead_latents": 3.0,
    },
    {"step": 20, "train_loss": 0.3},
]


@pytest.fixture
def write(tmp_path: Path, make_small_config):
    def run(history=HISTORY, name="my-encoder", arguments=None, dataset=None, comparison=None, **config) -> str:
        args = SparseJEPATrainingArguments(
            output_dir=str(tmp_path / name), report_to="none", use_cpu=True, **(arguments or {})
        )
        state = TrainerState(global_step=history[-1]["step"] if history else 0, log_history=history)
        path = write_model_card(args.output_dir, make_small_config(**config), args, state, dataset, comparison)
        assert path == tmp_path / name / "README.md"
        return path.read_text(encoding="utf-8")

    return run


def test_the_hub_reads_the_front_matter(write, tmp_path):
    write()
    card = ModelCard.load(tmp_path / "my-encoder" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "sparsejepa" in card.data.tags
    assert card.text.lstrip().startswith("# my-encoder")


def test_the_example_code_in_the_card_is_python_that_names_this_model(write):
    text = write()
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert code.count('from_pretrained("my-encoder"') == 2


def test_the_card_states_the_run_s_own_numbers_the_last_ones_logged(write):
    text = write(arguments={"learning_rate": 4.5e-4, "seed": 31, "ema_momentum": 0.77})
    for row in ("| learning rate | 0.00045 |", "| seed | 31 |", "| optimizer steps | 20 |", "0.77 to "):
        assert row in text
    for row in ("last prediction_loss | 0.1235", "last rankme | 7.5", "last zero_columns | 0.25"):
        assert row in text
    for row in ("last groups_per_living_latent | 2.5", "last dead_latents | 3 |"):
        assert row in text


@pytest.mark.parametrize(
    ("config", "present", "absent"),
    [
        ({"sparsity_weight": 0.3}, ["proximal, λ = 0.3", "β = 0.01", "4 groups"], ["I-JEPA vision encoder"]),
        ({"sparsity_mode": "penalty", "variational": False, "kl_weight": 0.0}, ["penalty, λ", "deterministic"], ["β"]),
        ({"use_grouping": False}, ["I-JEPA vision encoder (no grouping)"], ["λ", "groups of", "variational"]),
    ],
)
def test_the_card_says_which_method_it_was_and_nothing_of_what_was_off(write, config, present, absent):
    text = write(**config)
    assert all(words in text for words in present)
    assert not any(words in text for words in absent)


def test_a_comparison_becomes_a_table_of_results_and_without_one_there_is_none(write):
    comparison = {"raw pixels": {"knn_accuracy": 0.251, "linear_accuracy": 0.333}}
    with_results = write(comparison=comparison)
    assert "## Results" in with_results and "| raw pixels | 25.1% | 33.3% |" in with_results
    assert "## Results" not in write()


def test_a_card_can_be_written_before_anything_was_logged(write):
    assert "| optimizer steps | 0 |" in write(history=[])


def test_the_card_names_the_data_or_asks_for_their_name(write):
    assert "| data | some/images |" in write(dataset="some/images")
    assert "| data | not stated: fill in |" in write()


def test_no_placeholder_is_left_unfilled(write):
    text = write()
    code = text.split("```")[1]
    assert "{" not in text.replace(code, "") and "{" not in code
