# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa explain`, as a user calls it."""

import json
from pathlib import Path

import pytest

from sparsejepa_hf.commands import explain


MODELS = Path(__file__).parents[2] / "model_cards"


def test_a_checkpoint_gives_a_page_figures_and_numbers(tmp_path, capsys):
    page, figures, results = tmp_path / "out" / "page.html", tmp_path / "figures", tmp_path / "results.json"
    flags = [
        "--dataset",
        "synthetic-scenes",
        "--max_examples",
        "60",
        "--report",
        page,
        "--figures",
        figures,
        "--results",
        results,
    ]
    explain.main([str(MODELS / "sparsejepa-vit-micro-cifar100"), *map(str, flags)])
    printed = capsys.readouterr().out
    assert f"Groups: {page}" in printed and "Do groups follow objects?" in printed
    assert "synthetic-scenes, test" in page.read_text(encoding="utf-8")
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg"}
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["num_images"] == 60 and found["sections"]["objects"]["is_measured"] and "commit" in found
    assert found["checkpoint"] == "sparsejepa-vit-micro-cifar100"


@pytest.mark.parametrize("checkpoint", ["ijepa-vit-micro-cifar100", "nowhere"])
def test_what_is_no_sparsejepa_is_said(checkpoint, tmp_path, capsys):
    flags = ["--dataset", "synthetic-scenes", "--max_examples", "20", "--report", str(tmp_path / "page.html")]
    if checkpoint == "nowhere":
        with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
            explain.main([str(tmp_path / checkpoint), *flags])
    else:
        explain.main([str(MODELS / checkpoint), *flags])
        assert "This checkpoint is an I-JEPA" in capsys.readouterr().out
        assert (tmp_path / "page.html").is_file()
