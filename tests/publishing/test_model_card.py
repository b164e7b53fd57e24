# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The card that a model gets: what the Hub reads of it, what it says of the run, and code that runs as printed."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import IJepaConfig, IJepaForImageClassification, IJepaModel, TrainerState, ViTImageProcessor

from sparsejepa_hf import SparseJEPAForImageClassification, SparseJEPAForPreTraining
from sparsejepa_hf.publishing import write_model_card
from sparsejepa_hf.training import (
    FineTuningArguments,
    FineTuningTrainer,
    SparseJEPATrainingArguments,
    image_processor,
    load_classifier,
)


HISTORY = [
    {"step": 10, "prediction_loss": 0.5, "rankme": 3.0, "zero_columns": 0.1},
    {
        "step": 20,
        "prediction_loss": 0.12345,
        "rankme": 7.5,
        "zero_columns": 0.25,
        "groups_per_living_latent": 2.5,
        "dead_latents": 3.0,
        "dead_groups": 0.0,
    },
    {"step": 20, "train_loss": 0.3},
]
COMPARISON = {
    "untrained": {"knn_accuracy": 0.1, "linear_accuracy": 0.2},
    "trained": {"knn_accuracy": 0.251, "linear_accuracy": 0.33333},
}
SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture
def write(tmp_path: Path, make_small_config):
    """Writes the card of a pre-training run and returns its text."""

    def run(history=HISTORY, arguments=None, state=None, config=None, folder="my-encoder", **facts) -> str:
        args = SparseJEPATrainingArguments(
            output_dir=str(tmp_path / folder), report_to="none", use_cpu=True, **(arguments or {})
        )
        logs = TrainerState(global_step=20 if history else 0, log_history=history, **(state or {}))
        facts = {"kind": "pretraining", "training": args, "state": logs, **facts}
        path = write_model_card(tmp_path / folder, config=make_small_config(**(config or {})), **facts)
        assert path == tmp_path / folder / "README.md"
        return path.read_text(encoding="utf-8")

    return run


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


class TestMetadata:
    def test_the_hub_reads_what_kind_of_model_this_is(self, write, tmp_path):
        write(dataset="uoft-cs/cifar100", license="apache-2.0")
        card = ModelCard.load(tmp_path / "my-encoder" / "README.md")
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "image-feature-extraction"
        assert card.data.tags == ["sparsejepa", "jepa", "self-supervised-learning", "vision"]
        assert card.data.datasets == ["uoft-cs/cifar100"] and card.data.license == "apache-2.0"
        assert card.text.lstrip().startswith("# my-encoder")

    def test_what_is_not_known_is_left_out(self, write, tmp_path):
        write()
        assert set(metadata_load(tmp_path / "my-encoder" / "README.md")) == {"library_name", "pipeline_tag", "tags"}

    def test_measured_scores_of_the_model_itself_become_its_index(self, write, tmp_path):
        write(dataset="uoft-cs/cifar100", split="test", results=COMPARISON, name="alice/my-jepa")
        index = metadata_load(tmp_path / "my-encoder" / "README.md")["model-index"]
        name, results = model_index_to_eval_results(index)
        assert name == "my-jepa"
        found = [(r.dataset_type, r.dataset_split, r.task_type, r.metric_name, r.metric_value) for r in results]
        where = ("uoft-cs/cifar100", "test", "image-classification")
        assert found == [(*where, "kNN", 0.251), (*where, "linear probe", 0.3333)]
        assert ModelCard.load(tmp_path / "my-encoder" / "README.md").data.eval_results == results

    def test_i_jepa_is_tagged_and_cited_as_such(self, write, tmp_path):
        text = write(config={"use_grouping": False})
        assert "ijepa" in ModelCard.load(tmp_path / "my-encoder" / "README.md").data.tags
        assert "2301.08243" in section(text, "Citation") and "2504.16140" not in text
        assert "2504.16140" in section(write(), "Citation")

    @pytest.mark.parametrize("base_model", ["alice/base", None])
    def test_a_base_model_is_named_if_it_is_one_of_the_hub(self, write, tmp_path, monkeypatch, base_model):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "base").mkdir(parents=True)
        text = write(base_model=base_model or "runs/base")
        assert ModelCard.load(tmp_path / "my-encoder" / "README.md").data.base_model == base_model
        assert ("| begins from | alice/base |" in text) == bool(base_model) and "runs/base" not in text


class TestNamesOfData:
    @pytest.mark.parametrize(
        ("dataset", "printed"),
        [
            ("uoft-cs/cifar100", "uoft-cs/cifar100"),
            ("textured-scenes", "textured-scenes (built in)"),
            ("My images", "My images"),
            (["alice/cats", "bob/dogs"], "alice/cats, bob/dogs"),
            ("/home/alice/cats/*.parquet", "images of a local folder"),
            ("/home/alice/cats/", "images of a local folder, cats"),
            (r"C:\Users\alice\cats", "images of a local folder, cats"),
            ("../cats", "images of a local folder, cats"),
            ("there/cats", "images of a local folder, cats"),
            (".", "images of a local folder"),
            (None, "not stated: fill in"),
        ],
    )
    def test_a_path_is_never_printed(self, write, tmp_path, monkeypatch, dataset, printed):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there" / "cats").mkdir(parents=True)
        text = write(dataset=dataset, results=COMPARISON, split="test")
        assert f"| data | {printed} |" in text
        assert "alice" not in text.replace("alice/cats, bob", "").replace("- alice/cats", "").replace(
            " alice/cats\n", ""
        )
        assert not any(words in text for words in (str(tmp_path), "there/", "../", "/home", "Users"))
        data = ModelCard.load(tmp_path / "my-encoder" / "README.md").data
        assert all(name.count("/") == 1 for name in data.datasets or ())
        assert all(re.fullmatch(r"([\w-]+/)?[\w.-]+", result.dataset_type) for result in data.eval_results or ())

    def test_no_token_gets_into_the_card(self, write):
        assert "hf_secret" not in write(arguments={"hub_token": "hf_secret"})


class TestWhatItSays:
    def test_the_run_s_own_numbers_the_last_ones_logged(self, write):
        text = write(
            arguments={"learning_rate": 4.5e-4, "seed": 31, "ema_momentum": 0.77, "weight_decay_end": 0.4},
            state={"epoch": 2.0},
        )
        rows = [
            "learning rate | 0.00045",
            "seed | 31",
            "optimizer steps | 20",
            "epochs | 2",
            "weight decay | 0.05 to 0.4",
        ]
        rows += [
            "weight decay | 0.05 to 0.4",
            "EMA momentum | 0.77 to 0.9999",
            "precision | fp32",
            "prediction loss at the end | 0.1235",
        ]
        rows += ["masks | 4 target blocks of 3 patches, 4 patches of context", "RankMe at the end | 7.5"]
        rows += ["augmentation of uint8 images | shift by up to 4 pixels, horizontal flip 0.5, colour jitter 0.1"]
        rows += ["share of W's columns that are exactly zero | 0.25", "groups per living latent | 2.5"]
        rows += ["dead latents | 3", "dead groups | 0"]
        for row in rows:
            assert f"| {row} |" in text

    def test_the_images_a_step_are_those_of_the_batch_that_was_found(self, write):
        arguments = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 2}
        assert "| images a step | 128 |" in write(arguments=arguments)
        assert "| images a step | 32 |" in write(arguments=arguments, state={"train_batch_size": 16})

    def test_the_best_checkpoint_is_said_to_be_kept(self, write):
        arguments = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}
        text = write(arguments=arguments, state={"best_global_step": 10})
        assert "| optimizer steps | 20; the best so far, of step 10, is kept at the end |" in text

    def test_masks_of_another_kind_are_named_as_such(self, write):
        assert "| masks | SimpleNamespace |" in write(mask_sampler=SimpleNamespace())

    def test_where_it_comes_from(self, write):
        origin = {"commit": "abc", "versions": {"torch": "1.2"}}
        text = write(origin=origin)
        assert "| software | torch 1.2 |" in text
        assert re.search(r"\| code \| sparsejepa_hf [\d.]+ at commit abc \|", text)
        assert "| software | torch " in write() and "| software |" not in write(origin={})

    @pytest.mark.parametrize(
        ("config", "present", "absent"),
        [
            ({"sparsity_weight": 0.3}, ["proximal, λ = 0.3", "β = 0.01", "4 groups", "## Groups"], ["I-JEPA"]),
            (
                {"sparsity_mode": "penalty", "variational": False, "kl_weight": 0.0},
                ["penalty, λ", "deterministic"],
                ["β ="],
            ),
            ({"use_grouping": False}, ["I-JEPA"], ["λ", "groups of", "variational", "## Groups", "latents"]),
        ],
    )
    def test_which_method_it_was_and_nothing_of_what_was_off(self, write, config, present, absent):
        text = write(config=config)
        assert all(words in text for words in present)
        assert not any(words in text for words in absent)

    def test_results_stand_beside_the_untrained_encoder_s_and_without_any_there_is_no_table(self, write):
        text = section(write(results=COMPARISON, dataset="textured-scenes", split="test"), "Results")
        assert "of textured-scenes (built in), split test." in text
        assert "| untrained | 10.0% | 20.0% |" in text and "| trained | 25.1% | 33.3% |" in text
        part = {"untrained": {"knn_accuracy": 0.1}, "trained": {"knn_accuracy": 0.2, "linear_accuracy": 0.3}}
        assert "| untrained | 10.0% | – |" in write(results=part)
        assert "## Results" not in write() and "## Results" not in write(results={})

    def test_a_card_can_be_written_before_anything_was_logged(self, write):
        assert "| optimizer steps | 0 |" in write(history=[])

    def test_no_placeholder_is_left_unfilled(self, write):
        text = write(results=COMPARISON)
        assert "{{" not in text and "{%" not in text and "None" not in text and "\n\n\n" not in text

    def test_an_unknown_kind_is_refused(self, write):
        with pytest.raises(ValueError, match="kind is 'adapter'; expected one of 'pretraining', 'finetuning'"):
            write(kind="adapter")


class TestExport:
    def test_it_takes_over_what_the_card_of_the_original_knows(self, write, tmp_path, make_small_config):
        write(dataset="uoft-cs/cifar100", split="test", results=COMPARISON, license="mit", arguments={"seed": 31})
        original = tmp_path / "my-encoder"
        IJepaModel(IJepaConfig(**SIZES)).save_pretrained(tmp_path / "plain")
        path = write_model_card(
            tmp_path / "plain", kind="export", config=make_small_config(), base_model=original, name="alice/plain"
        )
        card, text = ModelCard.load(path), path.read_text(encoding="utf-8")
        of_original = ModelCard.load(original / "README.md").data
        for name in ("license", "datasets", "eval_results", "metrics"):
            assert getattr(card.data, name) == getattr(of_original, name) is not None
        assert card.data.model_name == "plain" and card.data.base_model is None
        assert "| seed | 31 |" in section(text, "Training") and "| trained |" in section(text, "Results")
        assert "`IJepaModel`" in text and "trust_remote_code" not in text and "## Groups" not in text
        assert str(tmp_path) not in text

    def test_without_a_card_of_the_original_it_says_what_it_can(self, tmp_path, make_small_config):
        IJepaModel(IJepaConfig(**SIZES)).save_pretrained(tmp_path / "plain")
        path = write_model_card(tmp_path / "plain", kind="export", config=make_small_config(), base_model=tmp_path)
        assert "| data | not stated: fill in |" in path.read_text(encoding="utf-8")


# ---- the code in the card ----


def save(kind: str, folder: Path, make_small_config) -> Path:
    """A folder of random weights with its processor and card."""
    torch.manual_seed(0)
    config = make_small_config(use_grouping=kind != "i-jepa", num_labels=3)
    model = {
        "finetuning": lambda: SparseJEPAForImageClassification(config),
        "exported encoder": lambda: IJepaModel(IJepaConfig(**SIZES)),
        "exported classifier": lambda: IJepaForImageClassification(IJepaConfig(**SIZES, num_labels=3)),
    }.get(kind, lambda: SparseJEPAForPreTraining(config))()
    model.save_pretrained(folder)
    is_export = kind.startswith("exported")
    processor = ViTImageProcessor(size={"height": 16, "width": 16}) if is_export else image_processor((16, 16))
    processor.save_pretrained(folder)
    card_kind = "export" if is_export else kind if kind == "finetuning" else "pretraining"
    return write_model_card(folder, kind=card_kind, config=config)


@pytest.mark.parametrize(
    "kind", ["pretraining", "i-jepa", "finetuning", "exported encoder", "exported classifier"], ids=str
)
def test_each_piece_of_code_runs_as_printed(kind, tmp_path, monkeypatch, make_small_config, capsys):
    """By itself, beside the folder, whatever that is called; the pipeline and the model agree."""
    text = save(kind, tmp_path / """my "model's" """.strip(), make_small_config).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespaces = []
    for code in snippets(text):
        namespaces.append({})
        exec(compile(code, "card", "exec"), namespaces[-1])
    by_pipeline, by_model = namespaces
    if "logits" in by_model:
        assert by_model["logits"].shape == (1, 3) and "'score'" in capsys.readouterr().out
    else:
        torch.testing.assert_close(by_pipeline["features"], by_model["patches"].mean(dim=1))
    assert ("latents" in by_model) == (kind == "pretraining")
    if kind == "pretraining":
        assert by_model["latents"].shape == (1, 16, 6) and by_model["groups"].shape == (1, 16, 4, 3)


def test_the_code_runs_where_this_package_is_not_installed(tmp_path, make_small_config, run_stranger):
    text = save("pretraining", tmp_path / "my-model", make_small_config).read_text(encoding="utf-8")
    # An editable installation could put the package on any path: None makes every import of it fail.
    code = 'import sys\nsys.modules["sparsejepa_hf"] = None\n' + "\n".join(snippets(text)) + "\nprint(features.shape)"
    assert "torch.Size([1, 32])" in run_stranger(code, work=tmp_path).stdout


# ---- the trainers ----


def test_a_fine_tuned_model_s_card_has_its_scores_by_split(checkpoint, make_dataset, tmp_path):
    names = ["ant", "bee", "cat", "a|b"]
    trainer = FineTuningTrainer(
        model=load_classifier(checkpoint, names),
        args=FineTuningArguments(str(tmp_path / "out"), use_cpu=True, max_steps=1, report_to="none"),
        train_dataset=make_dataset(),
        processing_class=image_processor((16, 16)),
    )
    scores = trainer.measure(make_dataset())
    facts = {"dataset": "alice/insects", "finetuned_from": "alice/base", "license": "mit"}
    trainer.create_model_card(results={"test": scores}, **facts)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.base_model == "alice/base"
    assert card.data.license == "mit" and card.data.datasets == ["alice/insects"]
    accuracy = card.data.eval_results[0]
    assert (accuracy.dataset_split, accuracy.metric_value) == ("test", round(scores["accuracy"], 4))
    assert "| classes | 4: ant, bee, cat, a\\|b |" in card.text and "layer decay 0.75" in card.text
    # Random weights were made of no model.
    trainer.args.random_weights = True
    trainer.create_model_card()
    again = ModelCard.load(tmp_path / "out" / "README.md")
    assert again.data.base_model is None and again.data.datasets == ["alice/insects"]


def test_a_trainer_names_the_repository_that_it_pushes_to(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path / "here"))
    trainer.hub_model_id = "alice/my-jepa"
    trainer.create_model_card()
    text = (tmp_path / "here" / "README.md").read_text(encoding="utf-8")
    assert all(re.findall(r'"(\S+)", trust_remote_code', code) for code in snippets(text))
    assert set(re.findall(r'"(\S+)", trust_remote_code', text)) == {"alice/my-jepa"} and "# my-jepa" in text
