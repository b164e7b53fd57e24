# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa probe`, as a user calls it."""

import json

import pytest

from sparsejepa_hf.commands import probe


def test_one_checkpoint_is_probed_and_a_missing_data_set_is_an_error_at_the_end(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Not probed: gone"):
        probe.main(["pixels", "--tasks", f"mine={images}", "gone=nowhere", "--low_shot", "0.5"])
    printed = capsys.readouterr().out
    assert "linear" in printed and "RankMe" in printed
    results = json.loads((tmp_path / "runs" / "linear_probe" / "pixels-mine-gone.json").read_text())["results"]
    assert results["mine"]["accuracy"] == 1 and "failed" in results["gone"]
    # A probe that measured nothing leaves nothing.
    with pytest.raises(SystemExit, match="Not probed: mine"):
        probe.main(["nowhere/at/all", "--tasks", f"mine={images}"])
    assert len(list((tmp_path / "runs" / "linear_probe").glob("*.json"))) == 1


def test_shares_of_the_labels_are_named_or_none_is_wanted(capsys):
    """A flag without a share asks for nothing, so it is refused."""
    settings = [
        probe.probe_settings(probe.parse(["x", "--tasks", "y", *flags])) for flags in ([], ["--low_shot", "0"])
    ]
    assert [one.low_shot for one in settings] == [(0.01, 0.1), ()]
    with pytest.raises(SystemExit):
        probe.parse(["x", "--tasks", "y", "--low_shot"])
    assert "--low_shot: expected at least one argument" in capsys.readouterr().err
