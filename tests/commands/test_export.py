# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa export`: what it writes is what the functions of the library write."""

import base64
import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sparsejepa_hf.commands import export


def test_an_endpoint_s_folder_serves_and_holds_the_whole_checkpoint(checkpoint, images, tmp_path, capsys):
    folder = tmp_path / "endpoint"
    export.main([checkpoint, str(folder), "--to", "endpoint"])
    assert capsys.readouterr().out == f"Written: {folder}\n"
    before, after = (load_file(Path(place) / "model.safetensors") for place in (checkpoint, folder))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
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
