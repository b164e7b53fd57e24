# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The handler of Inference Endpoints, called as their container calls it."""

import base64
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.publishing import write_handler
from sparsejepa_hf.publishing.endpoint import REQUIREMENTS
from sparsejepa_hf.training import image_processor


ROOT = Path(__file__).parents[2]

# What the container does at its start and for each request: it puts the folder on the path, runs handler.py, and turns
# bodies into what the handler takes by their content type.
CONTAINER = """
import importlib.util, io, json, pathlib, sys
from PIL import Image

folder, requests = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler", pathlib.Path(folder) / "handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
for request in sorted(pathlib.Path(requests).iterdir()):
    body = request.read_bytes()
    is_image = request.suffix == ".png"
    data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")} if is_image else json.loads(body)
    try:
        answer = handler(data)
    except Exception as error:
        answer = {"error": str(error)}
    print("ANSWER", json.dumps(answer, allow_nan=False))
print("PACKAGE", "sparsejepa_hf" in sys.modules)
"""


@pytest.fixture(scope="module")
def make_folder(make_model, tmp_path_factory):
    def build(model_class=SparseJEPAForPreTraining, **options):
        folder = tmp_path_factory.mktemp("endpoint")
        make_model(model_class, **options).save_pretrained(folder)
        image_processor((32, 32), [0.4, 0.4, 0.4], [0.3, 0.3, 0.3]).save_pretrained(folder)
        write_handler(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def folder(make_folder):
    return make_folder()


def load_handler(folder):
    """The module that lies in the folder, and its handler."""
    spec = importlib.util.spec_from_file_location("handler_of_a_test", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def handler(folder):
    return load_handler(folder)[1]


def make_pixels(count=3, side=40):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def as_text(content):
    return base64.b64encode(content).decode()


FILES = [as_png(pixels) for pixels in make_pixels()]
TEXTS = [as_text(file) for file in FILES]


def expected_features(folder, kinds):
    """As the library's own evaluation computes them, from the same images."""
    processor = image_processor((32, 32), [0.4, 0.4, 0.4], [0.3, 0.3, 0.3])
    pixels = processor([Image.fromarray(image) for image in make_pixels()], do_normalize=False, do_rescale=False)
    images = torch.from_numpy(np.stack([np.asarray(image) for image in pixels["pixel_values"]])).to(torch.uint8)
    return {kind: values.numpy() for kind, values in load_encoder(folder).features(images, kinds).items()}


def test_features_and_groups_are_those_of_the_evaluation(folder, handler):
    expected = expected_features(folder, ["last/mean", "groups/mean"])
    for task, kind in (("features", "last/mean"), ("groups", "groups/mean")):
        found = handler({"inputs": TEXTS, "parameters": {"task": task}})
        assert np.allclose(found, expected[kind], atol=1e-5)
        of_patches = np.array(handler({"inputs": TEXTS, "parameters": {"task": task, "pool": False}}))
        assert of_patches.shape[:2] == (3, 64) and np.allclose(of_patches.mean(axis=1), found, atol=1e-5)


def test_an_image_may_come_as_text_as_bytes_as_an_address_of_data_or_opened_alone_or_in_a_list(handler):
    whole = handler({"inputs": TEXTS})
    forms = [TEXTS[0], FILES[0], f"data:image/png;base64,{TEXTS[0]}", Image.open(io.BytesIO(FILES[0]))]
    forms.append("\n".join(re.findall(".{1,76}", TEXTS[0])))
    for form in forms:
        assert np.allclose(handler({"inputs": form}), whole[0], atol=1e-5)
    assert np.allclose(handler({"inputs": forms}), [whole[0]] * len(forms), atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_will_do(handler, mode):
    file = io.BytesIO()
    Image.fromarray(make_pixels()[0]).convert(mode).save(file, "TIFF")
    assert np.isfinite(handler({"inputs": as_text(file.getvalue())})).all()


def test_a_classifier_names_its_likeliest_classes(make_folder):
    names = {"id2label": {0: "cat", 1: "dog", 2: "fish"}, "label2id": {"cat": 0, "dog": 1, "fish": 2}}
    folder = make_folder(SparseJEPAForImageClassification, **names)
    _, handler = load_handler(folder)
    found = handler({"inputs": TEXTS})
    for entries in found:
        scores = [entry["score"] for entry in entries]
        assert sum(scores) == pytest.approx(1) and scores == sorted(scores, reverse=True)
        assert {entry["label"] for entry in entries} == {"cat", "dog", "fish"}
    (best,) = handler({"inputs": TEXTS[0], "parameters": {"top_k": 1}})
    assert best["label"] == found[0][0]["label"] and best["score"] == pytest.approx(found[0][0]["score"])
    assert np.array(handler({"inputs": TEXTS[0], "parameters": {"task": "features"}})).shape == (32,)
    with pytest.raises(ValueError, match="The task is 'groups'; this checkpoint has 'classes', 'features'"):
        handler({"inputs": TEXTS[0], "parameters": {"task": "groups"}})


@pytest.mark.parametrize(
    ("model_class", "options"), [(SparseJEPAVisionModel, {}), (SparseJEPAForPreTraining, {"use_grouping": False})]
)
def test_a_checkpoint_without_groups_has_features_alone(make_folder, model_class, options):
    _, handler = load_handler(make_folder(model_class, **options))
    assert list(handler.tasks) == ["features"] and len(handler({"inputs": TEXTS})) == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "The request has no inputs"),
        (TEXTS, "The request has no inputs"),
        ({"inputs": None}, "Image 0 is a NoneType; expected the base64 text"),
        ({"inputs": []}, "The request has 0 images; expected 1 to 64"),
        ({"inputs": [TEXTS[0], {"bytes": TEXTS[0]}]}, "Image 1 is a dict"),
        ({"inputs": TEXTS[:1] * 65}, "The request has 65 images"),
        ({"inputs": "/etc/passwd"}, "Image 0 cannot be read .*expected the base64 text of a complete image file"),
        ({"inputs": "http://127.0.0.1/image.png"}, "Image 0 cannot be read"),
        ({"inputs": as_text(b"no image")}, "Image 0 cannot be read"),
        ({"inputs": as_text(FILES[0][:-900])}, "Image 0 cannot be read .*truncated"),
        ({"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"}, "Image 0 cannot be read"),
        ({"inputs": TEXTS[0], "parameters": {"task": "poetry"}}, "The task is 'poetry'; .*'features', 'groups'"),
        ({"inputs": TEXTS[0], "parameters": {"task": ["groups"]}}, r"The task is \['groups'\]"),
        ({"inputs": TEXTS[0], "parameters": {"top_k": 2}}, "The task 'features' has no parameter 'top_k'.*or pool"),
        ({"inputs": TEXTS[0], "parameters": {"pool": 1}}, "pool is 1; expected true or false"),
        ({"inputs": TEXTS[0], "parameters": "groups"}, "parameters is a str; expected an object"),
    ],
)
def test_what_is_no_request_is_refused_in_a_sentence(handler, data, said):
    with pytest.raises(ValueError, match=said):
        handler(data)


def test_large_requests_are_refused_before_anything_is_decoded(folder, monkeypatch):
    """Many megapixels of one colour are a file of a few kilobytes."""
    module, handler = load_handler(folder)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(module, "MAX_PIXELS", 4000)
    with pytest.raises(ValueError, match="The images have 4,800 pixels; expected at most 4,000 in a request"):
        handler({"inputs": TEXTS})
    monkeypatch.setattr(module, "MAX_BYTES", len(TEXTS[0]))
    with pytest.raises(ValueError, match="The images take .* bytes; expected at most"):
        handler({"inputs": TEXTS[:2]})


def test_numbers_that_are_not_finite_are_no_answer(folder):
    _, handler = load_handler(folder)
    with torch.no_grad():
        next(handler.model.parameters()).fill_(torch.nan)
        handler.encoder.target_encoder.layernorm.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        handler({"inputs": TEXTS[0]})


def test_it_serves_where_the_package_is_not_installed(run_stranger, folder, handler, tmp_path):
    """With the code that the checkpoint carries, from a process that cannot import the package."""
    requests, empty = tmp_path / "requests", tmp_path / "elsewhere"
    requests.mkdir()
    empty.mkdir()
    parameters = {"task": "groups", "pool": False}
    (requests / "0.json").write_text(json.dumps({"inputs": TEXTS, "parameters": parameters}))
    (requests / "1.png").write_bytes(FILES[0])
    (requests / "2.json").write_text(json.dumps({"inputs": "no base64"}))
    hidden = "import sys; sys.modules['sparsejepa_hf'] = None\n"
    done = run_stranger(hidden + CONTAINER, folder, requests, work=empty)
    answers = [json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if "ANSWER" in line]
    assert np.allclose(answers[0], handler({"inputs": TEXTS, "parameters": parameters}), atol=1e-5)
    assert np.allclose(answers[1], handler({"inputs": TEXTS[0]}), atol=1e-5)
    assert answers[2]["error"].startswith("Image 0 cannot be read")


def test_what_the_container_installs_are_the_package_s_floors(folder):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert (folder / "requirements.txt").read_text().split() == list(REQUIREMENTS)
    assert all(f'"{requirement}"' in setup for requirement in REQUIREMENTS)


def test_a_folder_without_a_checkpoint_gets_no_handler(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json; expected the folder of a run"):
        write_handler(tmp_path)
    assert not list(tmp_path.iterdir())
