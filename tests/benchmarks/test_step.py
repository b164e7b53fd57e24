# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The step and its alternatives do the same work, and the record says what was measured."""

import copy
import itertools
import json
import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import yaml
from scipy.optimize import brentq

from benchmarks import step as benchmark
from benchmarks.alternatives.ijepa_loop import StraightforwardLoop
from benchmarks.alternatives.lightly_ijepa import LightlyLoop
from benchmarks.alternatives.official_ijepa import OfficialLoop
from benchmarks.harness.bare_step import BareStep
from benchmarks.harness.records import render
from sparsejepa_hf import SparseJEPAForPreTraining


@pytest.fixture
def ijepa(make_config):
    """I-JEPA with a predictor of one layer, in which no context token has yet seen a mask token."""
    torch.manual_seed(0)
    return SparseJEPAForPreTraining(make_config(use_grouping=False, predictor_num_hidden_layers=1)).train()


@pytest.fixture
def batch(make_images, masks):
    images = make_images()
    return images, masks["context_mask"], masks["target_mask"]


class TestStraightforwardLoop:
    @pytest.mark.parametrize("unfused", [False, True])
    def test_from_the_same_weights_it_computes_our_loss_and_gradients(self, ijepa, batch, unfused):
        loop = StraightforwardLoop(ijepa.config)
        loop.load(ijepa)
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
        for mine, their in (
            (ijepa.sparsejepa.predictor.trunk.mask_token.grad[0], loop.predictor.mask_token.grad),
            (
                ijepa.sparsejepa.context_encoder.embeddings.patch_embeddings.projection.weight.grad,
                loop.encoder.patch_embed.weight.grad,
            ),
        ):
            assert mine.abs().max() > 0
            torch.testing.assert_close(their, mine, rtol=1e-3, atol=1e-6)

    def test_a_step_trains_and_the_target_follows(self, ijepa, batch):
        loop = StraightforwardLoop(ijepa.config, momentum=0.9)
        before = copy.deepcopy(loop.target_encoder.state_dict())
        first = loop(*batch)
        for name, value in loop.target_encoder.state_dict().items():
            expected = torch.lerp(before[name], loop.encoder.state_dict()[name], 0.1)
            torch.testing.assert_close(value, expected)
        for _ in range(20):
            last = loop(*batch)
        assert last < first


class TestLightly:
    def test_from_the_same_weights_it_computes_the_straightforward_loss(self, ijepa, batch):
        pytest.importorskip("lightly", reason="lightly is not installed: pip install -e '.[benchmark]'")
        lightly, loop = LightlyLoop(ijepa.config), StraightforwardLoop(ijepa.config)
        for encoder, other in (
            (lightly.encoder.vit, loop.encoder),
            (lightly.target_encoder.vit, loop.target_encoder),
        ):
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

    def test_oblong_images_are_refused(self, make_config):
        pytest.importorskip("lightly", reason="lightly is not installed: pip install -e '.[benchmark]'")
        with pytest.raises(ValueError, match="expected squares"):
            LightlyLoop(make_config(use_grouping=False, image_size=[32, 64]))


STAND_IN = """
import torch
from torch import nn
class VisionTransformer(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, qkv_bias):
        super().__init__()
        self.project = nn.Conv2d(3, embed_dim, patch_size, patch_size)
    def forward(self, x, masks=None):
        x = self.project(x).flatten(2).transpose(1, 2)
        return x if masks is None else apply(x, masks)
class VisionTransformerPredictor(nn.Module):
    def __init__(self, num_patches, embed_dim, predictor_embed_dim, depth, num_heads, mlp_ratio, qkv_bias):
        super().__init__()
        self.project = nn.Linear(embed_dim, embed_dim)
    def forward(self, x, masks_x, masks):
        pooled = self.project(x.mean(1, keepdim=True))
        return torch.cat([pooled.expand(-1, mask.shape[1], -1) for mask in masks])
def apply(x, masks):
    return torch.cat([x.gather(1, mask[..., None].expand(-1, -1, x.shape[-1])) for mask in masks])
"""


class TestOfficialCode:
    def test_a_checkout_with_its_interface_trains(self, ijepa, batch, tmp_path, monkeypatch):
        """A stand-in with the interface of the official code, which is not ours to carry."""
        for name, text in (
            ("models/vision_transformer.py", STAND_IN),
            ("masks/utils.py", "from src.models.vision_transformer import apply as apply_masks\n"),
        ):
            path = tmp_path / "src" / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
        monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.split(".")[0] != "src"})
        # Its `masks` folder imports from the checkout too, after its path has left sys.path.
        loop = OfficialLoop(tmp_path, ijepa.config)
        losses = [loop(*batch) for _ in range(20)]
        assert losses[-1] < losses[0]

    def test_another_folder_is_refused(self, ijepa, tmp_path):
        with pytest.raises(FileNotFoundError, match="--reference"):
            OfficialLoop(tmp_path, ijepa.config)


STRENGTH = 1e-3


def proximal_column(column, gradient, metric, rate, strength):
    """A column after the proximal step in the metric and after the look at a hundred steps, by a scalar root."""
    scaled = metric * column
    result = torch.zeros_like(column)
    if scaled.norm() > rate * strength:

        def excess(norm):
            return float((scaled / (metric * norm + rate * strength)).norm()) - 1.0

        norm = brentq(excess, 0.0, 2.0 * float(column.norm()), xtol=1e-14)
        result = column * metric * norm / (metric * norm + rate * strength)
    stays = (gradient - metric * result / (100 * rate)).norm() > strength
    return result * stays


class TestBareStep:
    def test_it_is_one_step_of_everything_that_a_step_has(self, make_config, batch):
        """Against the step written out with a loop over tensors, unfused AdamW and a loop over W's columns."""
        config = make_config(sparsity_weight=STRENGTH, variational=False)
        torch.manual_seed(0)
        model = SparseJEPAForPreTraining(config).train()
        other = copy.deepcopy(model)
        BareStep(model, learning_rate=0.01, momentum=0.9)(*batch)

        trained = [parameter for parameter in other.parameters() if parameter.requires_grad]
        group_weight = other.sparsejepa.predictor.grouping.group_weight
        groups = [{"params": [p]} | ({"weight_decay": 0.0} if p is group_weight else {}) for p in trained]
        optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.05, foreach=False)
        other(*batch).loss.backward()
        norm = torch.stack([parameter.grad.norm() for parameter in trained]).norm()
        for parameter in trained:
            parameter.grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))
        optimizer.step()
        encoders = other.sparsejepa
        with torch.no_grad():
            for target, source in zip(
                encoders.target_encoder.parameters(), encoders.context_encoder.parameters(), strict=True
            ):
                target.copy_(0.9 * target + 0.1 * source)
            moved = group_weight.clone()
            for g, j in itertools.product(range(group_weight.shape[0]), range(group_weight.shape[2])):
                gradient = group_weight.grad[g, :, j]
                # √v̂ + ε after one step.
                metric = gradient.abs() + 1e-8
                group_weight[g, :, j] = proximal_column(group_weight[g, :, j], gradient, metric, 0.01, STRENGTH)
            grouping = encoders.predictor.grouping
            latents, width = grouping.latent_mean.weight.shape
            for row in grouping.latent_mean.weight:
                row.mul_(min(1.0, math.sqrt(2 * width / (width + latents)) / float(row.norm())))
            for matrix in (*grouping.generator_in_weight, *grouping.generator_out_weight):
                bound = math.sqrt(2 * matrix.numel() / sum(matrix.shape))
                matrix.mul_(min(1.0, bound / float(matrix.norm())))
        zero, before = (torch.linalg.vector_norm(w, dim=1) == 0 for w in (group_weight, moved))
        assert zero.any() and not zero.all() and not before.any(), "the step reached no column, or all"
        for (name, mine), their in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(
                mine, their, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_the_smoke_run_writes_a_record_that_renders_to_what_it_printed(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    benchmark.main(["--effort", "smoke", "--results_dir", str(tmp_path), "--threads", threads])
    path = tmp_path / "benchmark_step_cpu_smoke.json"
    record = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == render(record) + "\n"
    assert render(record) in capsys.readouterr().out
    (case,) = record["cases"]
    rows = {(row["candidate"], row["precision"]): row for row in case["rows"]}
    names = {name for name, _ in rows}
    assert {benchmark.STRAIGHTFORWARD, benchmark.OURS_IJEPA, benchmark.OURS} <= names
    for name in (benchmark.OURS_IJEPA, benchmark.OURS):
        assert rows[name, "fp32"]["counted_flops_per_image"] == case["flops_per_image"][name]["total"]
    repeated = rows[benchmark.STRAIGHTFORWARD, "fp32"]
    assert repeated["counted_flops_per_image"] > rows[benchmark.OURS_IJEPA, "fp32"]["counted_flops_per_image"]
    assert repeated["peak_tensor_bytes"] > rows[benchmark.OURS_IJEPA, "fp32"]["peak_tensor_bytes"]


def test_a_gpu_s_short_case_has_the_batch_of_the_vit_tiny_recipe():
    """A CPU's batch leaves it idle."""
    recipe = yaml.safe_load((benchmark.records.ROOT / "examples" / "configs" / "cifar100-vit-tiny.yaml").read_text())
    (case,) = benchmark.CUDA_CASES["short"]
    assert case.batch == recipe["per_device_train_batch_size"]


def test_its_command_runs_from_the_root_of_the_checkout():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--help"],
        cwd=benchmark.records.ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "--reference" in done.stdout
