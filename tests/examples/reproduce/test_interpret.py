# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Groups of several seeds: what is measured, and a table that says what the record says."""

import json
from pathlib import Path

import pytest

from examples.reproduce import interpret, publish
from sparsejepa_hf.interpret import Measure, Null, Section


MODELS = Path(__file__).parents[3] / "model_cards"


def explanation(values):
    null = Null("draws", (0.0, 0.2))
    measures = tuple(Measure(f"m{place}", value, (null,), unit="nats") for place, value in enumerate(values))
    sections = [
        Section("objects", "Objects?", measures, "Yes."),
        Section("factors", "Factors?", (), "No data.", {}, False),
    ]
    return {"sections": {section.key: section.to_dict() for section in sections}}


RECORD = {
    "num_images": 1234,
    "dataset": "pictures",
    "split": "test",
    "explanations": [explanation([0.5, 0.1]), explanation([0.7, 0.15])],
}


def test_the_table_has_means_ranges_nulls_and_how_many_models_exceed_them():
    text = interpret.render(RECORD)
    assert "1,234 images of pictures (test), 2 models" in text
    assert "| m0 (nats) | 0.6 (0.5 to 0.7) | draws: 0.1 | 2 of 2 |" in text
    assert "| m1 (nats) | 0.125 (0.1 to 0.15) | draws: 0.1 | 0 of 2 |" in text
    assert text.endswith("**Factors?**\n\nNo data.")


def test_a_record_is_rendered_into_a_page(tmp_path):
    path, page = tmp_path / "results.json", tmp_path / "page.md"
    path.write_text(json.dumps(RECORD), encoding="utf-8")
    page.write_text("<!-- results/results.json -->\n<!-- end -->\n", encoding="utf-8")
    interpret.main(["--render", str(path), "--into", str(page)])
    assert interpret.render(RECORD) in page.read_text(encoding="utf-8")
    assert path.with_suffix(".png").stat().st_size > 1000


def test_two_models_are_measured_on_the_same_images_against_each_other(tmp_path):
    model, twin = (str(MODELS / f"{name}-vit-micro-cifar100") for name in ("sparsejepa", "ijepa"))
    path = tmp_path / "results.json"
    flags = ["--baselines", twin, "--dataset", "synthetic-scenes", "--max_examples", "60", "--probe_examples", "80"]
    interpret.main(["--checkpoints", model, *flags, "--results", str(path)])
    record = json.loads(path.read_text(encoding="utf-8"))
    (found,) = record["explanations"]
    assert found["checkpoint"] == "sparsejepa-vit-micro-cifar100" and found["num_images"] == 60
    nulls = {null["name"] for null in found["sections"]["objects"]["measures"][0]["nulls"]}
    assert any("baseline" in name for name in nulls) and any("untrained" in name for name in nulls)
    assert not found["sections"]["stability"]["is_measured"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--checkpoints and --dataset are needed"),
        (["--checkpoints", "a", "b", "--baselines", "c", "--dataset", "d"], "1 baselines are given for 2 checkpoints"),
    ],
)
def test_what_is_missing_is_said(flags, message, capsys):
    with pytest.raises(SystemExit):
        interpret.parse(flags)
    assert message in capsys.readouterr().err


def test_a_published_folder_loads_as_the_run_did(tmp_path, monkeypatch):
    run = MODELS / "sparsejepa-vit-micro-cifar100"
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    options = "preset: vit-micro\ndataset: somewhere\noutput_dir: nowhere\nseed: 7\nuse_cpu: true\n"
    (copy / "pretraining_options.yaml").write_text(options, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    publish.main([str(copy), "model_cards/mine", "--dataset", "My images"])
    folder = tmp_path / "model_cards" / "mine"
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| data | My images |" in card and "| seed | 7 |" in card and "nowhere" not in card
    assert (folder / "modeling_sparsejepa.py").readlink() == Path("../../src/sparsejepa_hf/modeling_sparsejepa.py")
