# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A push takes place whole or not at all, and another try succeeds."""

import pytest
from hub_server import Fault, sha256

from sparsejepa_hf import SparseJEPAForPreTraining


# The client tries an upload six times before it gives up.
TRIES = 6

PUSH = """
from huggingface_hub import HfApi
from sparsejepa_hf import SparseJEPAForPreTraining

api, tokens = HfApi(), json.loads((folder / "tokens.json").read_text())
first = SparseJEPAForPreTraining.from_pretrained(folder / "first")
second = SparseJEPAForPreTraining.from_pretrained(folder / "second")

def sizes(repo_id):
    return {file.path: file.size for file in api.list_repo_tree(repo_id)}

def weight(model):
    return model.group_weight.flatten()[:3].tolist()

report["cut"] = refusal(first.push_to_hub, "alice/model")
report["sizes after the cut"] = sizes("alice/model")
report["load"] = refusal(SparseJEPAForPreTraining.from_pretrained, "alice/model")
report["retry"] = refusal(first.push_to_hub, "alice/model")
report["sizes after the retry"] = sizes("alice/model")

report["updates"] = [refusal(second.push_to_hub, "alice/model") for _ in range(3)]
report["weight after updates"] = weight(SparseJEPAForPreTraining.from_pretrained("alice/model"))
report["update"] = refusal(second.push_to_hub, "alice/model")
report["weight after update"] = weight(SparseJEPAForPreTraining.from_pretrained("alice/model"))
report["weights"] = weight(first), weight(second)

report["another's"] = refusal(first.push_to_hub, "alice/model", token=tokens["bob"])
report["no token"] = refusal(first.push_to_hub, "bob/mine", token=False)
report["no user's token"] = refusal(first.push_to_hub, "bob/mine", token="hf_nobodys")
"""


@pytest.fixture(scope="module")
def report(make_model, folder, run_client, hub, tokens):
    """Of one process that pushes beside faults: cut uploads, then updates that fail at three places."""
    for seed, name in enumerate(("first", "second")):
        make_model(SparseJEPAForPreTraining, seed=seed).save_pretrained(folder / name)
    (folder / "tokens.json").write_text(f'{{"bob": "{tokens.bob}"}}')
    first, second = (sha256((folder / name / "model.safetensors").read_bytes()) for name in ("first", "second"))
    hub.faults = [
        # The first push fails. Of the second, the client's first try does.
        Fault("PUT", first, cut_after=1000, times=TRIES + 1),
        Fault("PUT", second, status=503, times=TRIES),
        # The push that succeeded is spared; of the next, one commit is refused and one is cut.
        Fault("POST", "/commit/", status=500, spared=1),
        Fault("POST", "/commit/", cut_after=200, spared=1),
    ]
    return run_client(PUSH, token=tokens.alice)


def test_every_fault_took_place(report, hub):
    assert not any(fault.times for fault in hub.faults)


def test_a_cut_upload_leaves_nothing(report):
    assert not report["cut"].startswith("accepted")
    assert list(report["sizes after the cut"]) == [".gitattributes"]
    assert report["load"].startswith("OSError: 'alice/model' has no model.safetensors")


def test_another_try_succeeds(report, folder):
    assert report["retry"].startswith("accepted")
    sizes = report["sizes after the retry"]
    assert {"config.json", "modeling_sparsejepa.py", "README.md"} <= set(sizes)
    assert sizes["model.safetensors"] == (folder / "first" / "model.safetensors").stat().st_size


def test_an_update_that_fails_leaves_the_old_model(report):
    first, second = report["weights"]
    assert not any(update.startswith("accepted") for update in report["updates"])
    assert report["weight after updates"] == first != second
    assert report["update"].startswith("accepted") and report["weight after update"] == second


def test_who_may_not_write_is_told_so(report, hub):
    assert "403" in report["another's"] and "rights" in report["another's"]
    assert "401" in report["no token"] and "401" in report["no user's token"]
    assert "bob/mine" not in hub.repositories


def test_no_token_is_said(report, tokens):
    assert not [token for token in (tokens.alice, tokens.bob, "hf_nobodys") if token in report["printed"]]
