# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs with `push_to_hub`: what the Hub holds during and after them."""

import json

import numpy as np
import pytest
import yaml
from hub_server import card_metadata
from PIL import Image


CODE = {f"{part}_sparsejepa.py" for part in ("configuration", "modeling", "image_processing", "image_decoding")}
MODEL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} | CODE
STRATEGIES = {"every": "every_save", "last": "checkpoint", "all": "all_checkpoints", "end": "end"}

RUN = """
import logging
from examples import finetune, pretrain

logging.basicConfig(level=logging.DEBUG)
flags = json.loads((folder / "flags.json").read_text())
for name in ("every", "last", "all", "end"):
    report[name] = pretrain.main(flags["pretrain"] + flags[name])["output_dir"]
report["classifier"] = finetune.main(flags["finetune"])["output_dir"]
report["failed"] = refusal(pretrain.main, flags["pretrain"] + flags["failed"])
"""

# What each card's reader does, without the package: its code as it is printed.
READ = """
import re
from huggingface_hub import ModelCard
from transformers import pipeline

for name in ("every", "classifier"):
    blocks = re.findall(r"^```python\\n(.*?)^```", ModelCard.load(f"alice/{name}").text, re.M | re.S)
    variables = {}
    for block in blocks:
        exec(block, variables)
    report[name] = len(blocks)
    output = variables["patches" if name == "every" else "logits"]
    report[f"{name} shape"] = list(output.shape)

for index, revision in enumerate(json.loads((folder / "steps.json").read_text())):
    extract = pipeline("image-feature-extraction", model="alice/all", revision=revision, **trust)
    report[f"step {index}"] = len(extract(variables["image"])[0])
"""


@pytest.fixture(scope="module")
def data(folder):
    """split/class/i.png: noise of 16 pixels in three tints."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for channel, name in enumerate(("ant", "bee", "cow")):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 160, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 90
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{i}.png")
    return str(folder / "data")


@pytest.fixture(scope="module")
def report(data, folder, make_recipe, as_flags, run_client, tokens, hub):
    """Of one process that trains five models and pushes each, and one that may not push."""
    common = {"push_to_hub": True, "hub_token": tokens.alice, "hub_always_push": True, "dataset": data}
    common |= {"save_strategy": "steps", "save_steps": 1, "report_to": "tensorboard"}
    recipe = make_recipe(**common, eval_split="test", probe=True)
    own = {
        name: as_flags(hub_strategy=strategy, hub_model_id=f"alice/{name}", output_dir=str(folder / "runs" / name))
        for name, strategy in STRATEGIES.items()
    }
    fast = ("max_steps", "per_device_train_batch_size", "logging_steps", "use_cpu", "disable_tqdm")
    own["end"] += as_flags(hub_revision="trial")
    own["finetune"] = as_flags(
        **{name: recipe[name] for name in fast},
        **common,
        model_name_or_path="alice/every",
        hub_model_id="alice/classifier",
        output_dir=str(folder / "runs" / "classifier"),
    )
    own["failed"] = as_flags(hub_model_id="bob/mine", output_dir=str(folder / "runs" / "failed"))
    (folder / "flags.json").write_text(json.dumps({"pretrain": as_flags(**recipe), **own}))
    report = run_client(RUN)
    (folder / "flags.json").unlink()
    return report


def commits(hub, name):
    """(message, files) of each commit, in their order."""
    repository = hub.repositories[f"alice/{name}"]
    return [(repository.messages[sha], files) for sha, files in repository.commits.items()]


class TestTheEndOfARun:
    @pytest.mark.parametrize("name", [*STRATEGIES, "classifier"])
    def test_the_last_commit_holds_all_that_the_run_wrote(self, report, hub, folder, name):
        kind = "finetuning" if name == "classifier" else "pretraining"
        message, files = commits(hub, name)[-1]
        assert message == "End of training"
        assert MODEL | {f"{kind}_options.yaml", f"{kind}_results.json", "trainer_state.json"} <= set(files)
        for path, content in files.items():
            here = folder / "runs" / name / path
            if here.is_file() and not path.startswith("runs/"):
                assert content == here.read_bytes(), path

    @pytest.mark.parametrize("name", [*STRATEGIES, "classifier"])
    def test_its_card_has_the_results_and_loads_the_model_by_its_name(self, report, hub, name):
        _, files = commits(hub, name)[-1]
        card = files["README.md"].decode()
        assert f'"alice/{name}"' in card and "not stated" not in card and str(report[name]) not in card
        task = "image-classification" if name == "classifier" else "image-feature-extraction"
        assert card_metadata(files)["pipeline_tag"] == task
        assert "## Results" in card

    def test_options_run_again(self, report, hub):
        options = yaml.safe_load(commits(hub, "every")[-1][1]["pretraining_options.yaml"])
        assert options["hub_model_id"] == "alice/every" and "hub_token" not in options

    def test_nothing_is_pushed_before_with_end(self, report, hub):
        assert [message for message, _ in commits(hub, "end")] == ["initial commit", "End of training"]

    def test_a_branch_is_made_and_no_other_is_touched(self, report, hub):
        repository = hub.repositories["alice/end"]
        assert set(repository.files("main")) == {".gitattributes"} and MODEL <= set(repository.files("trial"))

    def test_the_model_was_made_of_the_one_on_the_hub(self, report, hub):
        assert card_metadata(commits(hub, "classifier")[-1][1])["base_model"] == "alice/every"


class TestReaders:
    def test_cards_run_as_printed_and_steps_load(self, report, hub, folder, run_client):
        repository = hub.repositories["alice/all"]
        steps = [
            sha for sha, message in repository.messages.items() if message.startswith("Training in progress, step")
        ]
        (folder / "steps.json").write_text(json.dumps(steps[:1]))
        read = run_client(READ, stranger=True)
        assert read["every"] == read["classifier"] == 2
        assert read["every shape"] == [1, 16, 32] and read["classifier shape"] == [1, 3]
        assert read["step 0"] == 16


class TestSteps:
    @pytest.mark.parametrize("name", ["every", "last", "all"])
    def test_every_step_is_a_model_that_loads(self, report, hub, name):
        steps = [files for message, files in commits(hub, name) if message.startswith("Training in progress")]
        assert len(steps) >= 2
        for files in steps:
            assert files.keys() >= MODEL
            card = files["README.md"].decode()
            assert f'"alice/{name}"' in card and "not stated" not in card

    def test_copies_to_push_are_removed(self, report, folder):
        assert not list((folder / "runs").glob("*/_push-*"))

    @pytest.mark.parametrize("name, kept", [("last", ["last-checkpoint"]), ("all", ["checkpoint-1", "checkpoint-2"])])
    def test_checkpoints_are_whole(self, report, hub, name, kept):
        files = set(commits(hub, name)[-1][1])
        for checkpoint in kept:
            wanted = {"model.safetensors", "config.json", "optimizer.pt", "trainer_state.json"} | CODE
            assert {f"{checkpoint}/{path}" for path in wanted} <= files


class TestSecrets:
    def test_no_token_is_written_or_said(self, report, hub, folder, tokens):
        contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for repo_id, repository in hub.repositories.items():
            for files in repository.commits.values():
                contents |= {(repo_id, path): content for path, content in files.items()}
        assert len(contents) > 100
        assert not [path for path, content in contents.items() if tokens.alice.encode() in content]
        assert tokens.alice not in report["printed"]


def test_a_push_that_is_refused_is_told_before_the_run(report, folder):
    assert "403" in report["failed"] and "rights" in report["failed"]
    assert not list((folder / "runs" / "failed").glob("checkpoint-*"))
