# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The step and its alternatives do the same work, and the record says what was measured."""

import copy
import json
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import yaml

from benchmarks import step as benchmark
from benchmarks.alternatives.ijepa_loop import StraightforwardLoop, copy_layers
from benchmarks.alternatives.lightly_ijepa import LightlyLoop
from benchmarks.harness.bare_step import BareStep
from benchmarks.harness.records import ROOT, render
from sparsejepa_hf import SparseJEPAForPreTraining


@pytest.fixture
def ijepa(make_config):
    """I-JEPA with a predictor of one layer, in which no context token has yet seen a mask token."""
    torch.manual_seed(0)
    return SparseJEPAForPreTraining(make_config(use_grouping=False, predictor_num_hidden_layers=1)).train()


@pytest.fixture
def batch(make_images, masks):
    return make_images(), masks["context_mask"], masks["target_mask"]


def loop_of(model: SparseJEPAForPreTraining) -> StraightforwardLoop:
    """The loop with the weights of one of our models without grouping."""
    loop, ours = StraightforwardLoop(model.config), model.sparsejepa
    for theirs, encoder in ((loop.encoder, ours.context_encoder), (loop.target_encoder, ours.target_encoder)):
        theirs.patch_embed.load_state_dict(encoder.embeddings.patch_embeddings.projection.state_dict())
        theirs.norm.load_state_dict(encoder.layernorm.state_dict())
        copy_layers(encoder.layers, theirs.blocks)
    trunk = ours.predictor.trunk
    loop.predictor.embed.load_state_dict(trunk.embed.state_dict())
    loop.predictor.head.load_state_dict(ours.predictor.head.projection.state_dict())
    loop.predictor.norm.load_state_dict(trunk.layernorm.state_dict())
    loop.predictor.mask_token.data.copy_(trunk.mask_token.data[0])
    copy_layers(trunk.layers, loop.predictor.blocks)
    return loop


@pytest.mark.parametrize("unfused", [False, True])
def test_from_the_same_weights_the_loop_computes_our_loss_and_gradients(ijepa, batch, unfused):
    loop = loop_of(ijepa)
    theirs = loop.loss(*batch)
    if unfused:
        loop.unfuse_attention()
        # Called, it would fail.
        with mock.patch.object(F, "scaled_dot_product_attention", None):
            theirs = loop.loss(*batch)
    ours = ijepa(*batch).loss
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    ours.backward()
    theirs.backward()
    projection = ijepa.sparsejepa.context_encoder.embeddings.patch_embeddings.projection
    for mine, their in (
        (ijepa.sparsejepa.predictor.trunk.mask_token.grad[0], loop.predictor.mask_token.grad),
        (projection.weight.grad, loop.encoder.patch_embed.weight.grad),
    ):
        assert mine.abs().max() > 0
        torch.testing.assert_close(their, mine, rtol=1e-3, atol=1e-6)


def test_a_step_of_the_loop_trains_and_the_target_follows(ijepa, batch):
    loop = StraightforwardLoop(ijepa.config, momentum=0.9)
    before = copy.deepcopy(loop.target_encoder.state_dict())
    first = loop(*batch)
    for name, value in loop.target_encoder.state_dict().items():
        torch.testing.assert_close(value, torch.lerp(before[name], loop.encoder.state_dict()[name], 0.1))
    for _ in range(10):
        last = loop(*batch)
    assert last < first


def test_from_the_same_weights_lightly_computes_the_loss_of_the_loop(ijepa, batch):
    pytest.importorskip("lightly", reason="lightly is not installed: pip install -e '.[benchmark]'")
    lightly, loop = LightlyLoop(ijepa.config), StraightforwardLoop(ijepa.config)
    for encoder, other in ((lightly.encoder.vit, loop.encoder), (lightly.target_encoder.vit, loop.target_encoder)):
        other.patch_embed.load_state_dict(encoder.patch_embed.proj.state_dict())
        other.blocks.load_state_dict(encoder.blocks.state_dict())
        other.norm.load_state_dict(encoder.norm.state_dict())
        other.positions = encoder.pos_embed.detach().clone()
    decoder = lightly.predictor.decoder
    loop.predictor.embed.load_state_dict(lightly.predictor.predictor_embed.state_dict())
    loop.predictor.head.load_state_dict(lightly.predictor.predictor_proj.state_dict())
    loop.predictor.blocks.load_state_dict(decoder.blocks.state_dict())
    loop.predictor.norm.load_state_dict(decoder.norm.state_dict())
    loop.predictor.mask_token.data.copy_(decoder.mask_token.data)
    loop.predictor.positions = decoder.pos_embed.detach().clone()
    torch.testing.assert_close(lightly.loss(*batch), loop.loss(*batch), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"use_grouping": False, "sparsity_weight": 0.0}], ids=["grouping", "plain"])
def test_a_bare_step_is_the_trainer_s_step(make_trainer, make_dataset, config):
    """From the same weights, images and masks, with no noise drawn, they end at the same weights."""
    trainer = make_trainer(
        {"variational": False, "kl_weight": 0.0, "sparsity_weight": 6e-3, **config},
        make_dataset(8, floats=True, labels=False),
        max_steps=1,
        weight_decay=0.0,
        learning_rate=1e-2,
        warmup_steps=0,
        lr_scheduler_type="constant",
        sparsity_warmup_steps=0,
        ema_momentum=0.99,
        ema_momentum_end=0.99,
    )
    model, seen = copy.deepcopy(trainer.model), []
    trainer.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    views = {name: seen[0][name] for name in ("pixel_values", "context_mask", "target_mask")}
    loss = BareStep(model, learning_rate=1e-2, weight_decay=0.0, momentum=0.99)(**views)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    found = dict(trainer.model.named_parameters())
    for name, expected in model.named_parameters():
        # Adam blows rounding up where the gradient is zero, as that of a key's bias is.
        if "k_proj.bias" not in name:
            torch.testing.assert_close(found[name], expected, rtol=0.0, atol=1e-6, msg=name)
    moved = " ".join(name for name, p in model.named_parameters() if not torch.equal(p, start[name]))
    assert "target_encoder" in moved and "predictor" in moved


def test_the_smoke_run_writes_a_record_that_renders_to_what_it_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "matmul_peak", lambda *args: {"flops": 1e9, "rows": 1, "inner": 2, "columns": 3})
    threads = str(torch.get_num_threads())
    benchmark.main(["--effort", "smoke", "--results_dir", str(tmp_path), "--threads", threads])
    path = tmp_path / "benchmark_step_cpu_smoke.json"
    record = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == render(record) + "\n"
    assert render(record) in capsys.readouterr().out
    rows = {(row["candidate"], row["precision"]): row for row in record["cases"][0]["rows"]}
    loop, ours = (rows[name, "fp32"] for name in (benchmark.STRAIGHTFORWARD, benchmark.OURS_IJEPA))
    assert (benchmark.OURS, "bf16") in rows
    assert loop["counted_flops_per_image"] > ours["counted_flops_per_image"]
    assert loop["peak_tensor_bytes"] > ours["peak_tensor_bytes"]


def test_the_first_candidate_is_the_loop_and_none_comes_twice():
    devices = (("cpu", benchmark.CASES), ("cuda:0", benchmark.CUDA_CASES))
    for device, case in ((device, case) for device, cases in devices for case in cases["full"]):
        found = benchmark.candidates(case, device)
        assert found[0] == (benchmark.STRAIGHTFORWARD, "fp32", benchmark.EAGER) and len(set(found)) == len(found)
        assert any(benchmark.COMPILED in mode for *_, mode in found) == case.compiled


def test_a_gpu_s_short_case_has_the_batch_of_the_vit_tiny_recipe():
    """A CPU's batch leaves it idle."""
    recipe = yaml.safe_load((ROOT / "examples" / "configs" / "cifar100-vit-tiny.yaml").read_text())
    (case,) = benchmark.CUDA_CASES["short"]
    assert case.batch == recipe["per_device_train_batch_size"]
