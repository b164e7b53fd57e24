# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa export`: what it writes is what the functions of the library write."""

import base64
import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModel, IJepaModel

from sparsejepa_hf import commands
from sparsejepa_hf.commands import export
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAVisionModel
from sparsejepa_hf.training import image_processor


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def features(checkpoint, pixels):
    with torch.no_grad():
        return AutoModel.from_pretrained(checkpoint)(pixels).last_hidden_state


def test_the_encoder_is_a_plain_i_jepa(checkpoint, tmp_path, pixels, features):
    export.main([checkpoint, str(tmp_path / "out"), "--to", "encoder"])
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is IJepaModel
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, features, rtol=0, atol=1e-5)


def test_timm_has_the_encoder(make_small_config, tmp_path, pixels):
    # timm can save no other epsilon.
    torch.manual_seed(0)
    model = SparseJEPAVisionModel(make_small_config(layer_norm_eps=1e-6)).eval()
    model.save_pretrained(tmp_path / "model")
    image_processor((16, 16)).save_pretrained(tmp_path / "model")
    export.main([str(tmp_path / "model"), str(tmp_path / "out"), "--to", "timm"])
    exported = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        features = model(pixels).last_hidden_state
        torch.testing.assert_close(exported.forward_features(pixels), features, rtol=0, atol=1e-5)


def test_an_onnx_graph_gives_the_features_of_any_number_of_images(checkpoint, tmp_path, pixels, features):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export.main([checkpoint, str(tmp_path / "out" / "model.onnx"), "--to", "onnx"])
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for count in (1, 2):
        found = session.run(["last_hidden_state"], {"pixel_values": pixels[:count].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), features[:count], rtol=0, atol=1e-5)


def test_an_endpoint_s_folder_serves_and_holds_the_whole_checkpoint(checkpoint, images, tmp_path, capsys):
    folder = tmp_path / "endpoint"
    (Path(checkpoint) / "README.md").write_text("# A card", encoding="utf-8")
    export.main([checkpoint, str(folder), "--to", "endpoint"])
    assert capsys.readouterr().out == f"Written: {folder}\n"
    before, after = (load_file(Path(place) / "model.safetensors") for place in (checkpoint, folder))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert (folder / "README.md").read_text(encoding="utf-8") == "# A card"
    assert {"handler.py", "requirements.txt", "modeling_sparsejepa.py"} <= {path.name for path in folder.iterdir()}
    spec = importlib.util.spec_from_file_location("exported_handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = base64.b64encode(next((images / "test" / "1").iterdir()).read_bytes()).decode()
    assert len(module.EndpointHandler(str(folder))({"inputs": image, "parameters": {"task": "groups"}})) == 4


def test_a_checkpoint_without_a_processor_leaves_no_half_of_an_export(checkpoint, tmp_path):
    (Path(checkpoint) / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="preprocessor"):
        export.main([checkpoint, str(tmp_path / "endpoint"), "--to", "endpoint"])
    assert not (tmp_path / "endpoint").exists()


def test_nothing_is_overwritten(checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for place in (tmp_path / "mine", tmp_path / "mine" / "file"):
        with pytest.raises(FileExistsError, match="exists already; choose another place"):
            export.main([checkpoint, str(place), "--to", "encoder"])


@pytest.mark.parametrize("kind", ["encoder", "timm", "onnx", "endpoint"])
def test_a_checkpoint_that_is_not_there_is_said_in_a_sentence(kind, tmp_path):
    with pytest.raises(SystemExit, match="^sparsejepa export: .*nowhere', where no model was found"):
        commands.main(["export", str(tmp_path / "nowhere"), str(tmp_path / "out"), "--to", kind])
    assert not list(tmp_path.iterdir())
