# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run costs beyond its steps is counted right."""

import copy
import json

import pytest
import torch

from benchmarks import end_to_end
from benchmarks.harness.bare_step import BareStep


# ---- counting ----


def test_parts_are_exclusive_and_add_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: now[0])
    parts = end_to_end.Parts()

    def pass_time(seconds):
        now[0] += seconds

    inner = parts.watched("inner", pass_time)

    def outer_call():
        pass_time(1.0)
        inner(5.0)
        pass_time(2.0)
        inner(7.0)

    parts.watched("outer", outer_call)()
    pass_time(100.0)
    assert parts.take() == {"outer": pytest.approx(3.0), "inner": pytest.approx(12.0)}
    assert parts.take() == {}


def test_what_is_under_way_when_the_parts_are_taken_begins_anew(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: now[0])
    parts = end_to_end.Parts()
    parts.enter("open")
    now[0] = 3.0
    assert parts.take() == {"open": 3.0}
    now[0] = 10.0
    parts.take()
    now[0] = 11.0
    parts.leave()
    assert parts.take() == {"open": 1.0}


def test_an_error_in_a_part_is_passed_on_and_closes_it():
    parts = end_to_end.Parts()

    def fail():
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        parts.watched("failing", fail)()
    parts.watched("next", lambda: None)()
    assert set(parts.take()) == {"failing", "next"}


def test_costs_of_a_record_written_by_hand():
    case = {
        "bare": {"median_s": 2.0},
        "watched_bare_s": 2.5,
        "excess": 0.10,
        "log_s": 4.0,
        "logging_steps": 50,
        "knn_s": 30.0,
        "knn_steps": 300,
        "parts": {
            "forward": {"run_s": 1.5, "bare_s": 1.0},
            "clip": {"run_s": 0.06, "bare_s": 0.02},
            "data loading": {"run_s": 0.10},
            "augmentation": {"run_s": 0.06},
            "masks": {"run_s": 0.02},
        },
    }
    assert end_to_end.costs(case) == {
        "whole": pytest.approx(0.10 + 4.0 / 50 / 2.0 + 0.1 / 2.0),
        "added": pytest.approx((0.04 + 0.10 + 0.06 + 0.02 + 0.1) / 2.5),
        "added_without_input": pytest.approx((0.04 + 0.02 + 0.1) / 2.5),
        "knn": pytest.approx(0.1 / 2.0),
    }


# ---- both sides compute the same ----


@pytest.mark.parametrize("config", [{}, {"use_grouping": False, "sparsity_weight": 0.0}], ids=["grouping", "plain"])
def test_a_bare_step_is_the_trainer_s_step(make_trainer, make_dataset, config):
    """From the same weights, images and masks, without what is drawn, they end at the same weights."""
    config = {"variational": False, "kl_weight": 0.0, "sparsity_weight": 6e-3, **config}
    trainer = make_trainer(
        config,
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
    views = trainer._training_views
    trainer._training_views = lambda *args: seen.append(views(*args)) or seen[-1]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    bare = BareStep(model, learning_rate=1e-2, weight_decay=0.0, momentum=0.99)
    loss = bare(**seen[0])
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    found = dict(trainer.model.named_parameters())
    for name, expected in model.named_parameters():
        # Adam blows rounding up where the gradient is zero, as that of a key's bias is.
        if "k_proj.bias" not in name:
            torch.testing.assert_close(found[name], expected, rtol=0.0, atol=1e-6, msg=name)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, start[name])]
    assert any("target_encoder" in name for name in moved) and any("predictor" in name for name in moved)


def test_the_bare_step_runs_at_the_run_s_batch_and_token_counts(make_trainer):
    trainer = make_trainer(num_target_blocks=2, num_target_patches=4, num_context_patches=5)
    pixel_values, context_mask, target_mask = end_to_end.bare_step(trainer).args
    assert pixel_values.shape == (8, 3, 16, 16)
    assert context_mask.shape == (8, 5) and target_mask.shape == (8, 2, 4)


# ---- the command ----


def test_a_smoke_run_writes_a_record_that_renders_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    end_to_end.main(["--effort", "smoke", "--threads", "1", "--results_dir", str(tmp_path)])
    path = tmp_path / "benchmark_end_to_end_cpu_smoke.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert end_to_end.render(record) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    (case,) = record["cases"]
    assert case["run"]["n"] == case["bare"]["n"] == 2
    expected = {"data loading", "augmentation", "masks", "latent noise", "monitors", "logging", "callbacks", "EMA"}
    assert expected | {"forward", "backward", "clip", "optimizer", "proximal step"} <= set(case["parts"])
    shared = {name for name, part in case["parts"].items() if "bare_s" in part}
    assert shared == {"forward", "backward", "clip", "optimizer", "zero gradients", "EMA", "proximal step"}
    assert case["patches"] == 64 and case["batch"] == 8
    assert case["knn_s"] > 0 and case["knn_examples"] == 100 and case["knn_steps"] == 781


def test_images_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="no-such-folder"):
        end_to_end.main(["--effort", "smoke", "--results_dir", str(tmp_path), "--dataset", "/no-such-folder"])
