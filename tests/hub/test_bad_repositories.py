# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Repositories and disks that cannot serve: what is said; that nothing is unpickled, half loaded or half saved."""

import json
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from hub_server import GIT_ATTRIBUTES, Repository
from transformers import AutoModel, AutoModelForPreTraining

from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPAVisionModel


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model(make_model):
    return make_model(SparseJEPAForPreTraining)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def pickled(folder, trap):
    """The folder, with a pickle that is a trap in the place of its weights."""
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload(trap)}, folder / "pytorch_model.bin")


def truncate(folder, share=0.5):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


EVERY_WAY = (AutoModel, AutoModelForPreTraining, SparseJEPAForPreTraining, SparseJEPAVisionModel)


class TestFolders:
    @pytest.mark.parametrize("loader", EVERY_WAY)
    def test_no_weights(self, saved, loader):
        (saved / "model.safetensors").unlink()
        with pytest.raises(
            OSError, match=r"has no model.safetensors; expected what save_pretrained writes"
        ) as refused:
            loader.from_pretrained(saved)
        assert str(saved) in str(refused.value)

    @pytest.mark.parametrize("loader", EVERY_WAY)
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_a_truncated_file(self, saved, loader, share):
        truncate(saved, share)
        with pytest.raises(OSError, match="cannot be read .*whole safetensors files. Nothing was loaded") as refused:
            loader.from_pretrained(saved)
        assert str(saved) in str(refused.value)

    @pytest.mark.parametrize("loader", EVERY_WAY)
    @pytest.mark.parametrize("options", [{}, {"weights_only": False}], ids=str)
    def test_a_pickle_is_not_unpickled(self, saved, tmp_path, loader, options):
        pickled(saved, tmp_path / "trap")
        with pytest.raises(OSError, match="pytorch_model.bin, are not read"):
            loader.from_pretrained(saved, **options)
        assert not (tmp_path / "trap").exists()
        with pytest.raises(ValueError, match="use_safetensors is False"):
            loader.from_pretrained(saved, use_safetensors=False, **options)
        assert not (tmp_path / "trap").exists()

    def test_the_trap_works(self, saved, tmp_path):
        pickled(saved, tmp_path / "trap")
        torch.load(saved / "pytorch_model.bin", weights_only=False)
        assert (tmp_path / "trap").exists()

    def test_a_missing_part_of_several_is_named(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        part = sorted(tmp_path.glob("model-00002*"))[0]
        part.unlink()
        with pytest.raises(OSError, match=part.name):
            SparseJEPAForPreTraining.from_pretrained(tmp_path)

    def test_weights_of_several_files_still_load(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        again = SparseJEPAForPreTraining.from_pretrained(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))

    @pytest.mark.parametrize("loader", EVERY_WAY[2:])
    def test_another_family(self, saved, loader):
        (saved / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
        with pytest.raises(ValueError, match="type 'vit'; expected 'sparsejepa'. .*sparsejepa_hf.conversion"):
            loader.from_pretrained(saved)

    @pytest.mark.parametrize(
        "shape, said",
        [
            ((1, 3, 30, 30), "images are 30x30 pixels, but the model expects 32x32. Resize them"),
            ((1, 1, 32, 32), r"shape \(1, 1, 32, 32\); expected \(batch, 3, height, width\)"),
            ((3, 32, 32), r"shape \(3, 32, 32\); expected \(batch, 3, height, width\)"),
        ],
    )
    def test_images_of_another_shape(self, saved, shape, said):
        with pytest.raises(ValueError, match=said):
            AutoModel.from_pretrained(saved)(torch.zeros(shape))


# What a Hub serves, to a process without the package: the code that comes along refuses by itself.
LOAD = """
from transformers import AutoModel
for name in ("no-weights", "truncated", "pickled", "family", "secret", "nowhere"):
    report[name] = refusal(AutoModel.from_pretrained, f"alice/{name}", **trust)
report["trapped"] = (folder / "trap").exists()
"""


@pytest.fixture(scope="module")
def report(make_model, folder, hub, run_client):
    """Of a process that meets bad repositories."""

    def publish(name, change, private=False):
        source = folder / name
        make_model(SparseJEPAForPreTraining).save_pretrained(source)
        change(source)
        files = {path.name: path.read_bytes() for path in source.iterdir()}
        hub.repositories[f"alice/{name}"] = repository = Repository(private)
        repository.commit("main", {".gitattributes": GIT_ATTRIBUTES, **files}, "")
        shutil.rmtree(source)

    publish("no-weights", lambda source: (source / "model.safetensors").unlink())
    publish("truncated", truncate)
    publish("pickled", lambda source: pickled(source, folder / "trap"))
    publish("family", lambda source: (source / "config.json").write_text('{"model_type": "no-family"}'))
    publish("secret", lambda source: None, private=True)
    return run_client(LOAD, stranger=True)


class TestRepositories:
    def test_each_is_refused_in_words(self, report):
        assert "'alice/no-weights' has no model.safetensors" in report["no-weights"]
        assert "'alice/truncated' cannot be read" in report["truncated"] and "force_download" in report["truncated"]
        assert "'alice/pickled' has no model.safetensors" in report["pickled"] and "pickle" in report["pickled"]
        assert "no-family" in report["family"]
        for name in ("secret", "nowhere"):
            assert f"alice/{name} is not a local folder" in report[name] and "pass a token" in report[name]
        assert not any(str(text).startswith("accepted") for text in report.values())

    def test_nothing_is_unpickled(self, report, hub):
        assert report["trapped"] is False
        # It is not even fetched.
        assert not [request for request in hub.requests if request.endswith("pytorch_model.bin")]


class TestFullDisks:
    def test_nothing_is_written_where_the_model_has_no_room(self, saved, make_model, monkeypatch):
        before = {path.name: path.read_bytes() for path in saved.iterdir()}
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
        other = make_model(SparseJEPAForPreTraining, seed=1, num_hidden_layers=3)
        for folder in (saved, saved / "new"):
            with pytest.raises(OSError, match=r"has 1.0 MB free; expected at least 1\.\d MB, .*Nothing was written"):
                other.save_pretrained(folder)
        assert not list((saved / "new").iterdir())
        assert {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()} == before

    def test_room_that_ends_amid_the_weights_leaves_the_old_ones(self, saved, model, make_model):
        """As a quota does, which the free space does not show."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((saved / "model.safetensors").stat().st_size // 2, limits[1]))
        try:
            with pytest.raises(Exception, match="too large"):
                make_model(SparseJEPAForPreTraining, seed=1).save_pretrained(saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        again = SparseJEPAForPreTraining.from_pretrained(saved)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert {path.suffix for path in saved.iterdir()} == {".json", ".py", ".safetensors"}
