# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What is counted without values equals what a real step has, and the estimate follows from it by hand."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import cluster
from benchmarks.harness.resources import counted_flops
from sparsejepa_hf import MultiBlockMaskSampler, SparseJEPAForPreTraining


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "distributed.md"
OPTIONS = argparse.Namespace(
    batch=10,
    peak_tflops=1.0,
    mfu=0.5,
    memory_gb=1.0,
    memory_bandwidth_gb_s=4.0,
    network_gb_s=2.0,
    epochs=2,
    images=3600,
)
COUNTED = {"trained": 10**8, "average": 5 * 10**7, "layer": 10**6, "rest": 10**6}
COUNTED |= {"flops_per_image": 10**11, "activation_bytes_per_image": 10**6}


def test_counts_without_values_are_those_of_a_real_step(make_config):
    config = make_config(num_hidden_layers=3)
    counted = cluster.count(config)
    model = SparseJEPAForPreTraining(config)
    model.freeze_target_encoder()
    kept, flops = [], []
    for batch in (1, 2):
        masks = MultiBlockMaskSampler(config.grid_size)(batch, 0)
        images = torch.randn(batch, 3, *config.image_sides)
        kept.append(cluster.kept_bytes(model, lambda: model(images, *masks).loss))  # noqa: B023
        flops.append(counted_flops(lambda: model(images, *masks).loss.backward()))  # noqa: B023
    assert counted["activation_bytes_per_image"] == kept[1] - kept[0] > 0
    assert counted["flops_per_image"] == flops[1] - flops[0] > 0
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (True, False)]
    assert [counted["trained"], counted["average"]] == sizes
    layers = sum(
        p.numel() for n, p in model.named_parameters() if ".layers." in n and not n.endswith("position_embeddings")
    )
    assert counted["rest"] == sum(sizes) - layers and 0 < counted["layer"] < layers


def test_ddp_by_hand():
    found = cluster.estimate(COUNTED, "DDP", 2, OPTIONS)
    # 4 bytes each of weights, average, gradient, bucket and two moments; 2 of the casts.
    assert found["weight_bytes"] == 4 * (1 + 0.5 + 1 + 1 + 2) * 1e8 + 2 * 1.5e8
    assert (found["activation_bytes"], found["fits"]) == (1e7, False)
    assert found["sent_bytes"] == 4e8 and found["exchange_s"] == pytest.approx(0.2)
    assert found["compute_s"] == pytest.approx(2.0) and found["follow_up_s"] == pytest.approx(4 * 8.5e8 / 4e9)
    assert found["images_per_second"] == pytest.approx([20 / 3.05, 20 / 2.85])
    assert found["run_hours"] == pytest.approx([2 * 2.85 / 20, 2 * 3.05 / 20])


def test_more_gpus_hold_less_each_under_fsdp2_and_the_same_under_ddp():
    shards = [cluster.estimate(COUNTED, "FSDP2", n, OPTIONS)["weight_bytes"] for n in (1, 2, 4)]
    gathered = 2 * 3e6
    assert shards == pytest.approx([gathered + 4 * 4.5e8 / n for n in (1, 2, 4)])
    assert len({cluster.estimate(COUNTED, "DDP", n, OPTIONS)["weight_bytes"] for n in (1, 2, 4)}) == 1
    assert cluster.estimate(COUNTED, "FSDP2", 1, OPTIONS)["sent_bytes"] == 0


def test_the_page_shows_the_record_and_the_record_follows_from_its_own_counts():
    record = json.loads((ROOT / "results" / f"{cluster.NAME}.json").read_text(encoding="utf-8"))
    assert f"<!-- results/{cluster.NAME}.json -->\n{cluster.render(record)}\n<!-- end -->" in PAGE.read_text("utf-8")
    options = argparse.Namespace(**record["assumed"])
    again = [cluster.estimate(record["counted"], e["engine"], e["num_gpus"], options) for e in record["estimates"]]
    assert again == record["estimates"]
    assert record["measured_share_of_peak"] == cluster.measured_shares(ROOT / "results")
