# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa embed`: the features of the library, beside what tells which image they are of."""

import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from sparsejepa_hf.commands import embed
from sparsejepa_hf.data import load_image_dataset
from sparsejepa_hf.evaluation import extract_feature_set, load_encoder


KINDS = ["last/mean", "groups/mean"]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """So that a few images fill several groups of rows."""
    monkeypatch.setattr(embed, "_ROWS", 7)


def features_of(path, kind):
    return np.array(datasets.Dataset.from_parquet(str(path))[kind], dtype=np.float32)


def test_a_folder_s_features_lie_beside_their_paths_and_classes(images, checkpoint, tmp_path, capsys):
    output = tmp_path / "out" / "features.parquet"
    embed.main([checkpoint, "--dataset", str(images), "--output", str(output), "--feature_kinds", *KINDS])
    assert f"Features of 60 of 60 images of train: {output}" in capsys.readouterr().out
    written = datasets.Dataset.from_parquet(str(output))
    expected = extract_feature_set(load_encoder(checkpoint), load_image_dataset(images), kinds=KINDS)
    for kind in KINDS:
        assert np.array_equal(features_of(output, kind), expected[kind].numpy())
    assert written["row"] == list(range(60))
    names = written.features["label"].names
    assert all(f"/train/{names[row['label']]}/" in row["path"] for row in written)
    file = pq.ParquetFile(output)
    assert file.num_row_groups == 9 and file.schema_arrow.field("last/mean").type.list_size == 32


def test_images_that_cannot_be_decoded_are_named_and_the_others_keep_their_rows(images, checkpoint, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(images / "test" / "1", folder)
    (folder / "20.png").write_bytes(b"no image")
    embed.main([checkpoint, "--dataset", str(folder), "--output", str(tmp_path / "features")])
    told = capsys.readouterr()
    assert told.err.count("Not decodable:") == 1 and f"Not decodable: {folder / '20.png'}" in told.err
    assert "Features of 11 of 12 images of train, 1 could not be decoded and were left out" in told.out
    written = datasets.Dataset.from_parquet(str(tmp_path / "features" / "train.parquet"))
    paths = load_image_dataset(folder).cast_column("image", datasets.Image(decode=False))["image"]
    assert len(written) == 11 and all(paths[row["row"]]["path"] == row["path"] for row in written)
    assert "label" not in written.column_names


def test_images_in_parquet_files_and_raw_pixels_will_do(tmp_path):
    embed.main(["pixels", "--dataset", "synthetic-scenes", "--split", "test", "--output", str(tmp_path)])
    written = datasets.Dataset.from_parquet(str(tmp_path / "test.parquet"))
    assert written.column_names == ["row", "path", "label", "pixels"] and set(written["path"]) == {None}


def test_nothing_is_overwritten_unless_it_is_asked_for(images, checkpoint, tmp_path):
    output = tmp_path / "features.parquet"
    output.write_text("mine")
    words = [checkpoint, "--dataset", str(images), "--output", str(output)]
    with pytest.raises(FileExistsError, match="features.parquet exists; choose another --output, or pass --overwrite"):
        embed.main(words)
    assert output.read_text() == "mine"
    embed.main([*words, "--overwrite"])
    assert len(features_of(output, "last/mean")) == 60


def test_a_file_is_complete_or_absent(images, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(embed.pa, "table", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed.main([checkpoint, "--dataset", str(images), "--output", str(tmp_path / "features.parquet")])
    assert not list(tmp_path.glob("*.parquet")) + list(tmp_path.glob(".*.partial"))
