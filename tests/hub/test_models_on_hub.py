# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What is pushed by `push_to_hub` loads from the Hub: in other processes, with the package and without it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.training import image_processor


CLASSES = {
    "pretraining": "SparseJEPAForPreTraining",
    "whole": "SparseJEPAModel",
    "encoder": "SparseJEPAVisionModel",
    "classifier": "SparseJEPAForImageClassification",
    "backbone": "SparseJEPABackbone",
}
CODE = {f"{part}_sparsejepa.py" for part in ("configuration", "modeling", "image_processing", "image_decoding")}

PUSH = """
import sparsejepa_hf
from huggingface_hub import HfApi
from transformers import AutoImageProcessor

api = HfApi()
for name, model_class in json.loads((folder / "classes.json").read_text()).items():
    getattr(sparsejepa_hf, model_class).from_pretrained(folder / name).push_to_hub(f"alice/{name}")
    AutoImageProcessor.from_pretrained(folder / name).push_to_hub(f"alice/{name}")
    report[name] = api.model_info(f"alice/{name}").__dict__ | {"card_data": None}

def push(name, repo_id, **kwargs):
    model = sparsejepa_hf.SparseJEPAForPreTraining.from_pretrained(folder / name)
    return model.push_to_hub(repo_id, **kwargs).oid

report["first"] = push("pretraining", "alice/versions")
api.create_tag("alice/versions", tag="v1")
push("second", "alice/versions")
push("third", "alice/versions", revision="trial")
push("pretraining", "alice/secret", private=True)
api.create_repo("alice/collection")
api.upload_folder(repo_id="alice/collection", folder_path=folder / "second", path_in_repo="encoders/second")
model = sparsejepa_hf.SparseJEPAVisionModel.from_pretrained(folder / "encoder")
model.push_to_hub("alice/tagged", tags=["mine"])
report["tagged"] = api.model_info("alice/tagged").tags
report["next"] = sparsejepa_hf.SparseJEPAVisionModel(model.config).model_tags
report = json.loads(json.dumps(report, default=str))
"""

LOAD = """
if not trust["trust_remote_code"]:
    import sparsejepa_hf
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, pipeline

inputs, secret = torch.load(folder / "inputs.pt"), (folder / "token.txt").read_text()
tensors = {}

@torch.no_grad()
def features(name, **kwargs):
    model = AutoModel.from_pretrained(name, **kwargs, **trust)
    report.setdefault("modules", []).append(type(model).__module__.split(".")[0])
    return model(inputs["pixel_values"]).last_hidden_state

for name in ("pretraining", "whole", "encoder", "classifier", "backbone"):
    tensors[name] = features(f"alice/{name}")
tensors["main"] = features("alice/versions")
for name, revision in (("tag", "v1"), ("sha", report_of_push["first"]), ("branch", "trial")):
    tensors[name] = features("alice/versions", revision=revision)
tensors["private"] = features("alice/secret", token=secret)
tensors["folder"] = features(snapshot_download("alice/pretraining"))
report["no token"] = refusal(features, "alice/secret")
report["no such tag"] = refusal(features, "alice/versions", revision="v2")
report["subfolder"] = refusal(features, "alice/collection", subfolder="encoders/second")
if not trust["trust_remote_code"]:
    tensors["subfolder"] = features("alice/collection", subfolder="encoders/second")
with torch.no_grad():
    tensors["loss"] = AutoModelForPreTraining.from_pretrained("alice/pretraining", **trust)(**inputs).loss
    classifier = AutoModelForImageClassification.from_pretrained("alice/classifier", **trust)
    tensors["logits"] = classifier(inputs["pixel_values"]).logits
    backbone = AutoBackbone.from_pretrained("alice/pretraining", out_indices=[0, 2], **trust)
    tensors["stem"], tensors["map"] = backbone(inputs["pixel_values"]).feature_maps

image = Image.open(folder / "image.png")
extract = pipeline(model="alice/pretraining", **trust)
tensors["piped features"] = extract(image, return_tensors=True)
processor = AutoImageProcessor.from_pretrained("alice/pretraining", **trust)
with torch.no_grad():
    own = AutoModel.from_pretrained("alice/pretraining", **trust)(**processor(image, return_tensors="pt"))
tensors["own features"] = own.last_hidden_state
classify = pipeline(model="alice/classifier", **trust)
report["tasks"] = [extract.task, classify.task]
report["classes"] = [row["label"] for row in classify(image)]
torch.save(tensors, folder / "tensors.pt")
"""


@pytest.fixture(scope="module")
def models(make_model, folder):
    """Models by name, saved into folders of these names with an image processor beside each."""
    labels = {"id2label": {0: "ant", 1: "bee", 2: "cow"}, "label2id": {"ant": 0, "bee": 1, "cow": 2}}
    made = {
        name: make_model(getattr(sparsejepa_hf, model_class), **(labels if name == "classifier" else {}))
        for name, model_class in CLASSES.items()
    }
    made |= {name: make_model(SparseJEPAForPreTraining, seed=seed) for name, seed in (("second", 1), ("third", 2))}
    for name, model in made.items():
        model.save_pretrained(folder / name)
        image_processor((32, 32)).save_pretrained(folder / name)
    return made


@pytest.fixture(scope="module")
def pushed(models, folder, run_client, tokens):
    """The report of the process that pushed all models."""
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return run_client(PUSH, token=tokens.alice)


@pytest.fixture(scope="module", params=["package", "no package"])
def loaded(request, pushed, folder, run_client, tokens, make_images, make_masks):
    """(report, tensors, whether it was without the package) of a process that loads everything."""
    torch.save({"pixel_values": make_images(), **make_masks()}, folder / "inputs.pt")
    (folder / "token.txt").write_text(tokens.alice)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    stranger = request.param == "no package"
    report = run_client(f"report_of_push = {{'first': {pushed['first']!r}}}\n" + LOAD, stranger=stranger)
    return report, torch.load(folder / "tensors.pt"), stranger


class TestPushing:
    @pytest.mark.parametrize("name", CLASSES)
    def test_a_repository_holds_weights_code_configuration_processor_and_card(self, pushed, hub, name):
        files = set(hub.repositories[f"alice/{name}"].files())
        assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} | CODE <= files
        assert not {file for file in files if file.endswith((".bin", ".pt", ".pkl"))}

    @pytest.mark.parametrize("name", CLASSES)
    def test_the_hub_knows_task_library_and_tags(self, pushed, name):
        task = "image-classification" if name == "classifier" else "image-feature-extraction"
        assert pushed[name]["pipeline_tag"] == task
        assert pushed[name]["library_name"] == "transformers"
        assert {"sparsejepa", "jepa", "vision", "safetensors", "custom_code"} <= set(pushed[name]["tags"])

    def test_tags_of_a_push_stay_with_it(self, pushed):
        assert {"mine", "sparsejepa"} <= set(pushed["tagged"])
        assert "mine" not in pushed["next"]

    def test_a_push_is_one_commit(self, pushed, hub):
        repository = hub.repositories["alice/encoder"]
        assert list(repository.messages.values()) == ["initial commit", "Upload model", "Upload processor"]

    def test_no_token_is_written_or_said(self, pushed, hub, folder, tokens):
        texts = [
            content for r in hub.repositories.values() for files in r.commits.values() for content in files.values()
        ]
        texts += [pushed["printed"].encode()]
        texts += [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "token.txt"]
        assert len(texts) > 50 and not [text for text in texts if tokens.alice.encode() in text]


class TestLoading:
    def test_the_code_is_whose_it_should_be(self, loaded):
        report, _, stranger = loaded
        assert set(report["modules"]) == {"transformers_modules" if stranger else "sparsejepa_hf"}

    @pytest.mark.parametrize("name", [*CLASSES, "main", "tag", "sha", "branch", "private", "folder"])
    def test_features_are_those_of_the_model_that_was_pushed(self, loaded, models, make_images, name):
        source = {
            "main": "second",
            "branch": "third",
            **dict.fromkeys(("tag", "sha", "private", "folder"), "pretraining"),
        }
        model = models[source.get(name, name)]
        encoder = model if name == "encoder" else model.base_model
        with torch.no_grad():
            expected = encoder(make_images()).last_hidden_state
        assert torch.equal(loaded[1][name], expected)

    def test_loss_and_logits_are_those_of_the_models_that_were_pushed(self, loaded, models, make_images, make_masks):
        tensors = loaded[1]
        with torch.no_grad():
            assert torch.equal(tensors["loss"], models["pretraining"](make_images(), **make_masks()).loss)
            assert torch.equal(tensors["logits"], models["classifier"](make_images()).logits)

    def test_maps_are_those_of_the_layers_asked_for(self, loaded, models, make_images):
        encoder, tensors = models["pretraining"].sparsejepa.target_encoder, loaded[1]
        with torch.no_grad():
            layers = encoder.layernorm(encoder.embeddings(make_images())), encoder(make_images())
        for found, expected in zip((tensors["stem"], tensors["map"]), layers, strict=True):
            torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected)

    def test_a_subfolder_serves_those_who_have_the_package(self, loaded, models, make_images):
        """transformers looks for a repository's code at its root alone."""
        report, tensors, stranger = loaded
        if stranger:
            assert (
                "modeling_sparsejepa.py" in report["subfolder"] or "configuration_sparsejepa.py" in report["subfolder"]
            )
        else:
            with torch.no_grad():
                expected = models["second"].base_model(make_images()).last_hidden_state
            assert torch.equal(tensors["subfolder"], expected)

    def test_pipelines_find_task_and_processor_by_the_name_alone(self, loaded):
        report, tensors, _ = loaded
        assert report["tasks"] == ["image-feature-extraction", "image-classification"]
        assert torch.equal(tensors["piped features"], tensors["own features"])
        assert sorted(report["classes"]) == ["ant", "bee", "cow"]

    def test_a_private_repository_is_refused_without_a_token(self, loaded, tokens):
        message = loaded[0]["no token"]
        assert message.startswith("OSError") and "alice/secret" in message and "token" in message
        assert tokens.alice not in loaded[0]["printed"]

    def test_a_revision_that_is_not_there_is_named(self, loaded):
        assert "v2" in loaded[0]["no such tag"] and not loaded[0]["no such tag"].startswith("accepted")
