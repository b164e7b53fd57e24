# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run watches."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from transformers import TrainerControl, TrainerState

from sparsejepa_hf.evaluation import extract_features, knn_accuracy, rankme
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTrainingOutput
from sparsejepa_hf.training import monitors
from sparsejepa_hf.training.monitors import (
    CollapseGuard,
    FeatureMonitor,
    KNNMonitor,
    LossParts,
    Throughput,
    comparison_device,
    full_float32,
    group_weight_statistics,
    labelled_images,
    optimality_statistics,
)


def alone(values):
    """The average over the processes of a run that has one."""
    return values


def losses(prediction, kl, sparsity):
    parts = {"prediction_loss": prediction, "kl_loss": kl, "sparsity_loss": sparsity}
    return SparseJEPAForPreTrainingOutput(**{name: torch.tensor(float(value)) for name, value in parts.items()})


def features(tokens):
    return SparseJEPAForPreTrainingOutput(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))


# ---- the sparsity of W ----


def test_statistics_of_a_w_written_by_hand():
    """Three groups of width 2 over four latents: column norms 5, 0, 13, 0 / 0, 0, 13, 0 / none."""
    weight = torch.zeros(3, 2, 4)
    weight[0, :, 0] = torch.tensor([3.0, 4.0])
    weight[0, :, 2] = torch.tensor([5.0, -12.0])
    weight[1, :, 2] = torch.tensor([0.0, 13.0])
    assert group_weight_statistics(weight) == {
        "zero_columns": pytest.approx(9 / 12),
        "groups_per_living_latent": pytest.approx((1 + 2) / 2),
        "selectivity": pytest.approx((1 + 1 - math.log(2) / math.log(3)) / 2),
        "dead_latents": 2.0,
        "dead_groups": 1.0,
        "mean_column_norm": pytest.approx((5 + 13 + 13) / 12),
    }


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_statistics_agree_with_one_another(seed, groups, size, latents):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, size, latents, generator=generator)
    weight *= (torch.rand(groups, 1, latents, generator=generator) > 0.5).float()
    found = group_weight_statistics(weight)
    living = latents - found["dead_latents"]
    held = groups * latents * (1 - found["zero_columns"])
    assert found["groups_per_living_latent"] * living == pytest.approx(held, abs=1e-4)
    assert -1e-6 <= found["selectivity"] <= 1 + 1e-6
    reordered = weight[torch.randperm(groups, generator=generator)][:, :, torch.randperm(latents, generator=generator)]
    assert group_weight_statistics(reordered) == pytest.approx(found, abs=1e-5)
    scaled = group_weight_statistics(3 * weight)
    assert scaled["selectivity"] == pytest.approx(found["selectivity"], abs=1e-5)


def test_selectivity_is_zero_in_all_groups_alike_and_one_in_a_single_group():
    everywhere, single = torch.ones(4, 2, 5), torch.zeros(4, 2, 5)
    single[1] = 1.0
    assert group_weight_statistics(everywhere)["selectivity"] == pytest.approx(0.0, abs=1e-6)
    assert group_weight_statistics(single)["selectivity"] == pytest.approx(1.0, abs=1e-6)
    assert group_weight_statistics(torch.zeros(4, 2, 5))["selectivity"] == 0.0


def test_optimality_is_told_apart_for_columns_that_are_zero_and_others():
    """λ = 1: gradients 3 and 0.5 of two zero columns exceed it by 2 and 0; two others miss −λ·W/‖W‖ by 0 and 1."""
    weight = torch.tensor([[[0.0, 0.0, 2.0, -5.0]]])
    gradient = torch.tensor([[[3.0, 0.5, -1.0, 2.0]]])
    assert optimality_statistics(weight, gradient, 1.0) == {
        "group_gradient_norm": pytest.approx(1.0),
        "kkt_residual_zero": pytest.approx(1.0),
        "kkt_residual_nonzero": pytest.approx(0.5),
    }


def test_only_exact_zeros_count_as_zero():
    weight = torch.full((1, 2, 2), 1e-12)
    assert group_weight_statistics(weight)["zero_columns"] == 0.0
    assert group_weight_statistics(torch.zeros(1, 2, 2))["zero_columns"] == 1.0


# ---- loss parts ----


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 3), min_size=1, max_size=6))
def test_each_loss_part_s_mean_is_given_since_it_was_last_read(rows):
    meter = LossParts()
    meter.on_outputs(losses(1e6, 1e6, 1e6))
    meter.metrics(alone)
    for row in rows:
        meter.on_outputs(losses(*row))
    expected = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert list(meter.metrics(alone).values()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert meter.metrics(alone) == {}, "nothing was added since"


def test_the_loss_parts_keep_no_gradient_graph_alive():
    meter = LossParts()
    loss = torch.ones((), requires_grad=True) * 2
    meter.on_outputs(SparseJEPAForPreTrainingOutput(prediction_loss=loss, kl_loss=loss, sparsity_loss=loss))
    assert meter._sums.grad_fn is None


def test_the_average_over_processes_is_taken_of_the_means():
    meter = LossParts()
    meter.on_outputs(losses(2, 4, 6))
    assert list(meter.metrics(lambda values: values / 2).values()) == [1.0, 2.0, 3.0]


@given(st.lists(st.sampled_from([1.0, 2.0, math.nan, math.inf]), min_size=1, max_size=8))
def test_of_the_parts_the_first_batch_that_is_not_finite_is_remembered_or_the_last_one(values):
    meter = LossParts()
    for value in values:
        meter.on_outputs(losses(1, value, 0))
    expected = next((value for value in values if not math.isfinite(value)), values[-1])
    assert float(meter.last()["kl_loss"]) == pytest.approx(expected, nan_ok=True)


# ---- features ----


@given(st.lists(st.integers(2, 7), min_size=1, max_size=6), st.integers(2, 12), st.integers(0, 2**31))
def test_rankme_is_of_the_most_recent_images_of_whole_batches(sizes, window_size, seed):
    """The window keeps the fewest last batches that hold `num_samples` images, all while there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, 3, 8, generator=generator) for size in sizes]
    window = FeatureMonitor(window_size)
    for batch in batches:
        window.on_outputs(features(batch))
    kept: list[torch.Tensor] = []
    for batch in reversed(batches):
        if sum(map(len, kept)) >= window_size:
            break
        kept.insert(0, batch)
    expected = float(rankme(torch.cat(kept).mean(dim=1)))
    assert window.metrics(alone)["rankme"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [1, 8])
def test_what_the_next_step_writes_into_the_outputs_memory_changes_no_statistic(size):
    """As a replayed CUDA graph does; and the window holds no memory of the outputs."""
    generator = torch.Generator().manual_seed(0)
    window, meter = FeatureMonitor(16), LossParts()
    outputs = features(torch.randn(size, 3, 6, generator=generator))
    parts = losses(1.0, 2.0, 3.0)
    for _ in range(2):
        window.on_outputs(outputs)
    meter.on_outputs(parts)
    expected = window.metrics(alone)
    for tensor in (*outputs.values(), *parts.values()):
        tensor.fill_(0.5)
    assert window.metrics(alone) == expected
    assert list(meter.metrics(alone).values()) == [float(part) for part in meter.last().values()] == [1.0, 2.0, 3.0]
    held = {tensor.untyped_storage().data_ptr() for tensor in (*window._pooled, *window._targets)}
    assert held.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in outputs.values())


def test_target_std_is_zero_when_all_images_look_alike_and_one_at_most():
    window = FeatureMonitor(64)
    one_image = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    window.on_outputs(features(one_image.expand(8, 5, 16)))
    assert window.metrics(alone)["target_std"] == pytest.approx(0.0, abs=1e-6)
    window.on_outputs(features(torch.randn(512, 5, 16, generator=torch.Generator().manual_seed(1))))
    assert 0.9 < window.metrics(alone)["target_std"] <= 1.0


def test_target_std_does_not_see_the_scale_of_the_features_but_their_dependence_on_the_image():
    """Targets are normalised, so features that shrink all together are no collapse; shared positions are."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(32, 5, 16, generator=generator)
    positions = torch.randn(1, 5, 16, generator=generator)

    def spread(tokens):
        window = FeatureMonitor(64)
        window.on_outputs(features(tokens))
        return window.metrics(alone)["target_std"]

    assert spread(1000 * tokens) == pytest.approx(spread(tokens), rel=1e-3)
    assert spread(0.01 * tokens + positions) < 0.05 * spread(tokens)


def test_one_image_has_no_spread_to_report():
    window = FeatureMonitor(4)
    assert window.metrics(alone) == {}
    window.on_outputs(features(torch.randn(1, 3, 4)))
    assert window.metrics(alone) == {}


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_where_a_batch_is_one_image_the_spread_is_of_the_last_16(count, seed):
    images = torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(seed))
    window = FeatureMonitor(64)
    # Images of another distribution, in a batch that has a spread of its own, leave nothing behind.
    window.on_outputs(features(100 * images[:1].expand(4, 3, 8)))
    for image in images.split(1):
        window.on_outputs(features(image))
    together = FeatureMonitor(64)
    together.on_outputs(features(images[-16:]))
    expected = together.metrics(alone)["target_std"]
    assert window.metrics(alone)["target_std"] == pytest.approx(expected, rel=1e-5)


# ---- collapse ----


class Weights(SimpleNamespace):
    """λ and β at their full strength."""

    has_full_sparsity = has_full_kl = True


@pytest.fixture
def check():
    """Shows logs of a step to one guard; whether it stops the run. Its monitor holds `num_images`, the model 8 latents
    and, by default, a small λ and β."""
    guards = []

    def check(logs, step=1, action="warn", num_images=64, mode="proximal", **weights):
        if not guards:
            args = SimpleNamespace(collapse_min_std=0.1, collapse_min_rank=3.0, collapse_action=action)
            weights = {"sparsity_weight": 1e-3, "kl_weight": 1e-3, **weights}
            loss_weights = Weights(
                config=SimpleNamespace(num_latents=8, sparsity_mode=mode, target_normalization="layer_norm"), **weights
            )
            guards.append(CollapseGuard(args, SimpleNamespace(num_images=num_images), loss_weights))
        control = TrainerControl()
        guards[0].on_log(None, TrainerState(global_step=step), control, logs=logs)
        return control.should_training_stop

    return check


HEALTHY = {
    "target_std": 0.1,
    "rankme": 3.0,
    "prediction_loss": 0.1,
    "kl_loss": 16.0,
    "sparsity_loss": 40.0,
    "dead_latents": 5.0,
    "group_gradient_norm": 2e-3,
}
LOW_STD, LOW_RANK = {**HEALTHY, "target_std": 0.01}, {**HEALTHY, "rankme": 1.5}
EMPTY, SILENT = {**HEALTHY, "dead_latents": 8.0}, {**HEALTHY, "kl_loss": 0.07}


def test_a_run_at_the_floors_is_healthy(hear_warnings, check):
    assert not check(HEALTHY, action="stop")
    assert not check({"knn_accuracy": 0.1}), "nothing measured is no collapse"
    assert not hear_warnings.messages


def test_the_rank_of_a_few_images_says_nothing(hear_warnings, check):
    assert not check(LOW_RANK, action="stop", num_images=15)
    assert not hear_warnings.messages


@pytest.mark.parametrize("action", ["warn", "stop"])
@pytest.mark.parametrize(
    ("logs", "found", "advised", "weights"),
    [
        (LOW_STD, "Collapse at step 12: target_std is 0.01, its floor 0.1", "ema_momentum", {}),
        (LOW_RANK, "Collapse at step 12: rankme is 1.5, its floor 3", "ema_momentum", {}),
        (EMPTY, "8 of 8 latents belong to no group. sparsity_weight is 1000", "smaller sparsity_weight", {}),
        (SILENT, "the KL is 0.0088 nats a latent, its floor 0.01. kl_weight is 0.01", "smaller kl_weight", {}),
        (HEALTHY, "it is 100, which makes 1.6e+03 of the loss, and prediction 0.1", "below 0.006", {"kl_weight": 1e2}),
        ({**HEALTHY, "prediction_loss": 2e4, "kl_loss": 1e9}, "the prediction loss is 2e+04", "learning_rate", {}),
    ],
    ids=["spread", "rank", "groups", "posterior", "share", "divergence"],
)
def test_an_alarm_says_what_was_seen_and_what_to_do(hear_warnings, check, logs, found, advised, weights, action):
    weights = {"sparsity_weight": 1e3, "kl_weight": 1e-2, **weights}
    assert check(logs, 12, action, **weights) == (action == "stop")
    (message,) = hear_warnings.messages
    assert found in message and advised in message and "step 12" in message
    assert message.endswith("The run stops here." if action == "stop" else "The run goes on.")


def test_the_penalty_counts_as_a_part_of_the_loss_only_where_it_is_one(hear_warnings, check):
    assert not check(HEALTHY, action="stop", sparsity_weight=1e3)
    assert not hear_warnings.messages


def test_a_penalty_that_drowns_the_prediction_raises_an_alarm(hear_warnings, check):
    assert check(HEALTHY, action="stop", mode="penalty", sparsity_weight=1e3)
    assert "Too large a sparsity_weight" in hear_warnings.messages[0]


def test_after_a_collapse_of_the_features_no_regulariser_is_blamed(hear_warnings, check):
    """The prediction loss is near zero then, and less than any regulariser."""
    check({**LOW_STD, "prediction_loss": 1e-6}, kl_weight=1e-2)
    (message,) = hear_warnings.messages
    assert message.startswith("Collapse")


def test_one_collapse_is_one_warning_and_a_second_collapse_another(hear_warnings, check):
    for logs in (LOW_STD, {"knn_accuracy": 0.1}, LOW_STD, LOW_RANK):
        check(logs)
    assert len(hear_warnings.messages) == 1
    check({**LOW_RANK, "dead_latents": 8.0})
    assert len(hear_warnings.messages) == 2
    check(HEALTHY)
    check(LOW_STD)
    assert len(hear_warnings.messages) == 3


# ---- throughput ----


def test_time_in_monitors_does_not_count_as_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(monitors.time, "perf_counter", lambda: now[0])
    throughput = Throughput()
    throughput.on_train_begin(SimpleNamespace(world_size=2), None, None)

    def step(images, seconds):
        throughput.on_outputs(SimpleNamespace(pooler_output=torch.zeros(images // 2, 4)))
        now[0] += seconds
        throughput.on_step_end(None, None, None)

    def rate():
        return throughput.metrics(alone)["images_per_second"]

    def measure(seconds, end, **kwargs):
        now[0] += seconds
        end(None, None, None, **kwargs)

    measure(50.0, throughput.on_log, logs={"knn_accuracy": 0.5})
    step(30, 2.0)
    measure(100.0, throughput.on_log, logs={"knn_accuracy": 0.5})
    step(30, 4.0)
    assert rate() == pytest.approx(10.0)
    measure(0.0, throughput.on_log, logs={"loss": 0.5})
    measure(70.0, throughput.on_evaluate)
    measure(30.0, throughput.on_save)
    step(8, 2.0)
    assert rate() == pytest.approx(4.0)


# ---- where features are compared ----


def test_features_are_compared_on_a_gpu_and_elsewhere_on_the_cpu():
    assert comparison_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert comparison_device(torch.device("mps")) == comparison_device(torch.device("cpu")) == torch.device("cpu")


def test_what_the_monitor_logs_is_the_knn_accuracy_of_the_encoder_s_features(make_trainer, make_dataset, logs_of):
    bank, heldout = make_dataset(24), make_dataset(16, seed=1, random_labels=True)
    trainer = make_trainer(knn_steps=1, knn_k=3, max_steps=2, knn_datasets=(bank, heldout))
    trainer.train()
    encoder = trainer.model.sparsejepa
    sets = [
        part
        for data in (bank, heldout)
        for part in (extract_features(encoder, data.pixel_values, preprocess=trainer.normalize), data.labels)
    ]
    logged = [entry["knn_accuracy"] for entry in logs_of(trainer) if "knn_accuracy" in entry]
    assert logged[-1] == knn_accuracy(*sets, k=3)


def test_at_a_step_of_a_run_it_is_measured_once_and_after_the_run_anew(make_trainer, make_dataset, monkeypatch):
    """The best checkpoint may lie in the model after the run, at the same step."""
    calls = []
    monkeypatch.setattr(monitors, "knn_accuracy", lambda *sets, k: calls.append(k) or len(calls) / 10)
    options = {"knn_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = make_trainer(knn_datasets=(make_dataset(8), make_dataset(8)), eval_dataset=make_dataset(8), **options)
    trainer.train()
    history = trainer.state.log_history
    assert [entry["knn_accuracy"] for entry in history if "knn_accuracy" in entry] == [0.1, 0.2, 0.3]
    assert [entry["eval_knn_accuracy"] for entry in history if "eval_knn_accuracy" in entry] == [0.2, 0.3]
    assert [trainer.evaluate()["eval_knn_accuracy"] for _ in range(2)] == [0.4, 0.5]
    assert "test_knn_accuracy" not in trainer.predict(make_dataset(8)).metrics


def test_a_monitor_begins_a_run_with_nothing_of_the_run_before(make_trainer, train_logs_of):
    """Nor of one that ran out of memory and begins again."""
    first, second = (make_trainer(max_steps=1) for _ in range(2))
    second._loss_parts.on_outputs(losses(1e6, 1e6, 1e6))
    window = next(c for c in second.callback_handler.callbacks if isinstance(c, FeatureMonitor))
    window.on_outputs(features(torch.randn(8, 3, 32)))
    for trainer in (first, second):
        trainer.train()
    assert train_logs_of(second) == train_logs_of(first)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
def test_the_bank_lies_on_the_gpu_when_neighbours_are_looked_for(make_trainer, make_dataset, monkeypatch):
    """On tensors that only say that they are CUDA's."""
    found = []
    monkeypatch.setattr(monitors, "knn_accuracy", lambda bank, *sets, k: found.append(bank.device.type) or 0.0)
    trainer = make_trainer()
    monitor = KNNMonitor(make_dataset(8), make_dataset(8), trainer.normalize, lambda logs: None)
    args = SimpleNamespace(device=torch.device("cuda"), knn_k=3)
    monkeypatch.setattr(monitors, "extract_features", lambda encoder, images, preprocess: torch.zeros(len(images), 4))
    monitor._sets = [(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))] * 2
    with FakeTensorMode(allow_non_fake_inputs=True):
        monitor._measure(args, trainer.model)
    assert found == ["cuda"]


def test_rounding_to_tf32_is_off_inside_and_as_it_was_after():
    matmul = torch.backends.cuda.matmul
    for before in ("none", "tf32"):
        matmul.fp32_precision = before
        try:
            with full_float32():
                assert matmul.fp32_precision != "tf32"
            assert matmul.fp32_precision == before
        finally:
            matmul.fp32_precision = "none"


# ---- labelled images ----


@pytest.mark.parametrize(("count", "limit"), [(10, 4), (10, 10), (10, 99), (7, 3), (5, 1)])
def test_labelled_images_are_evenly_spaced_without_repeats_from_the_first_on(make_dataset, count, limit):
    dataset = make_dataset(count)
    dataset.labels = torch.arange(count)
    images, labels = labelled_images(dataset, limit)
    assert len(labels) == min(count, limit)
    gaps = labels.diff().tolist()
    ideal = (count - 1) / max(1, min(count, limit) - 1)
    assert all(math.floor(ideal) <= gap <= math.ceil(ideal) for gap in gaps)
    assert labels[0] == 0 and (limit == 1 or labels[-1] == count - 1)
    assert torch.equal(images, dataset.pixel_values[labels])


@pytest.mark.parametrize("count", [2**24 + 1, 2**24 + 3, 2**24 + 4, 10**9 + 7])
def test_no_index_lies_beyond_the_end_of_a_large_data_set(count):
    """float32 holds no odd numbers from 2**24 on: the last index would round up."""

    class Large:
        def __len__(self):
            return count

        def __getitem__(self, index):
            assert 0 <= index < count
            return {"pixel_values": torch.zeros(3, 1, 1, dtype=torch.uint8), "labels": index}

    _, labels = labelled_images(Large(), 5)
    assert labels[-1] == count - 1


def test_data_without_labels_is_refused(make_dataset):
    with pytest.raises(ValueError, match=r"needs examples with 'pixel_values' and 'labels'.*\['pixel_values'\]"):
        labelled_images(make_dataset(4, labels=False), 4)
