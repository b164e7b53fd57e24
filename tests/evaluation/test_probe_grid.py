# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The grid of linear probes against torch's own SGD, each cell alone, its protocol and its checkpoints."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from torch import nn

from sparsejepa_hf.evaluation import probe_grid
from sparsejepa_hf.evaluation.probe_grid import _Heads, _Problem, _Recipe, linear_probe_grid
from sparsejepa_hf.evaluation.splits import validation_mask


SMALL = {"learning_rates": (1e-3, 1e-2, 0.1), "weight_decays": (0.0, 1e-2), "epochs": 3, "batch_size": 32}


def _problem(num_classes=4, widths=(6, 3), n=300, noise=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(num_classes, widths[0], generator=generator)
    maps = [torch.randn(widths[0], width, generator=generator) for width in widths]

    def sample(size):
        labels = torch.arange(size) % num_classes
        inputs = centres[labels] + noise * torch.randn(size, widths[0], generator=generator)
        return {f"kind{index}": 5 * inputs @ matrix + 3 for index, matrix in enumerate(maps)}, labels

    return *sample(n), *sample(n // 2)


def _grid(*data, **settings):
    return linear_probe_grid(*data, progress=False, **{**SMALL, **settings})


def _trained(features, targets, cells, recipe, rows=None):
    """The heads of one kind after training on some rows."""
    held_out = torch.ones(len(targets), dtype=torch.bool)
    held_out[torch.arange(len(targets)) if rows is None else rows] = False
    problem = _Problem({"kind": features}, targets, held_out, int(targets.max()) + 1, recipe)
    heads = problem._heads("kind", problem.fitted_rows, cells)
    with torch.no_grad(), probe_grid.tqdm(disable=True) as bar:
        problem._train({"kind": heads}, problem.fitted_rows, bar, 0, None)
    return heads


def _trained_by_torch(features, targets, rate, decay, recipe):
    inputs = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    layer = nn.Linear(features.shape[1], int(targets.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
    nesterov = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    optimizer = torch.optim.SGD(groups, lr=rate, **nesterov)
    total = recipe.epochs * recipe.steps(len(inputs))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    for epoch in range(recipe.epochs):
        for batch, _ in recipe.batches(torch.arange(len(inputs)), epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            scheduler.step()
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize(("rate", "decay"), [(1e-3, 0.0), (0.1, 1e-2), (0.5, 1e-4)])
def test_one_cell_is_torch_sgd_on_a_linear_layer(rate, decay, momentum):
    train, labels, _, _ = _problem(n=203)
    recipe = _Recipe(epochs=4, batch_size=32, momentum=momentum, seed=1)
    heads = _trained(train["kind0"], labels, [(rate, decay)], recipe)
    expected = _trained_by_torch(train["kind0"], labels, rate, decay, recipe)
    torch.testing.assert_close(heads.weight, expected, rtol=1e-5, atol=1e-5)


@given(
    num_classes=st.integers(2, 7),
    width=st.integers(1, 9),
    n=st.integers(8, 50),
    batch_size=st.integers(4, 60),
    cells=st.lists(
        st.tuples(st.sampled_from([1e-3, 0.05, 0.3]), st.sampled_from([0.0, 1e-2])), min_size=1, max_size=6
    ),
    entries=st.sampled_from([1, 100, 2**18]),
)
def test_the_batched_grid_is_each_cell_alone(num_classes, width, n, batch_size, cells, entries):
    generator = torch.Generator().manual_seed(n)
    features, targets = torch.randn(n, width, generator=generator), torch.arange(n) % num_classes
    recipe = _Recipe(epochs=2, batch_size=batch_size, momentum=0.9, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        # From one head per slab to all of them.
        patch.setitem(probe_grid._SLAB_ENTRIES, "cpu", entries)
        together = _trained(features, targets, cells, recipe).weight.view(len(cells), -1, width + 1)
        for cell, weight in zip(cells, together, strict=True):
            torch.testing.assert_close(
                weight, _trained(features, targets, [cell], recipe).weight, rtol=1e-4, atol=1e-5
            )


@given(
    num_classes=st.integers(2, 6),
    widths=st.lists(st.integers(1, 8), min_size=1, max_size=3).map(tuple),
    n=st.integers(40, 90),
    batch_size=st.integers(1, 100),
)
def test_results_have_one_cell_per_setting_and_one_prediction_per_sample(num_classes, widths, n, batch_size):
    train, labels, test, test_labels = _problem(num_classes, widths, n)
    result = _grid(train, labels, test, test_labels, epochs=1, batch_size=batch_size, validation_fraction=0.3)
    settings = [(cell.kind, cell.learning_rate, cell.weight_decay) for cell in result.grid]
    assert settings == [(kind, rate, decay) for kind in train for rate in (1e-3, 1e-2, 0.1) for decay in (0.0, 1e-2)]
    assert result.test_predictions.shape == test_labels.shape
    assert torch.isin(result.test_predictions, labels).all()
    assert set(result.best_per_kind) == set(train) and result.chosen in result.best_per_kind.values()
    assert max(cell.validation_accuracy for cell in result.grid) == result.validation_accuracy


def test_the_validation_accuracy_is_that_of_heads_that_never_saw_the_validation_samples():
    train, labels, test, test_labels = _problem()
    result = _grid(train, labels, test, test_labels, seed=5)
    held_out = validation_mask(labels, 0.1, seed=5)
    recipe = _Recipe(3, 32, 0.9, seed=5)
    for cell in result.grid:
        features = train[cell.kind]
        setting = [(cell.learning_rate, cell.weight_decay)]
        heads = _trained(features, labels, setting, recipe, rows=(~held_out).nonzero().flatten())
        fitted = features[~held_out]
        inputs = (features[held_out] - fitted.mean(dim=0)) / fitted.std(dim=0, correction=0)
        predictions = (inputs @ heads.weight[:, :-1].T + heads.weight[:, -1]).argmax(dim=1)
        assert cell.validation_accuracy == (predictions == labels[held_out]).double().mean().item()


def test_the_chosen_cell_is_refitted_on_all_samples_and_scored_on_the_test_set():
    train, labels, test, test_labels = _problem(num_classes=7, noise=4.0)
    result = _grid(train, labels, test, test_labels)
    features, unseen = train[result.chosen.kind], test[result.chosen.kind]
    setting = [(result.chosen.learning_rate, result.chosen.weight_decay)]
    heads = _trained(features, labels, setting, _Recipe(3, 32, 0.9, seed=0))
    inputs = (unseen - features.mean(dim=0)) / features.std(dim=0, correction=0)
    scores = inputs @ heads.weight[:, :-1].T + heads.weight[:, -1]
    assert torch.equal(result.test_predictions, scores.argmax(dim=1))
    assert result.test_accuracy == pytest.approx(accuracy_score(test_labels, result.test_predictions))
    assert result.test_balanced_accuracy == pytest.approx(
        balanced_accuracy_score(test_labels, result.test_predictions)
    )
    in_five = (scores.topk(5).indices == test_labels[:, None]).any(dim=1).double().mean().item()
    assert result.test_top5_accuracy == pytest.approx(in_five)
    recalls = recall_score(test_labels, result.test_predictions, average=None)
    assert list(result.test_class_accuracies.values()) == pytest.approx(recalls.tolist())


def test_the_choice_never_sees_the_test_set():
    train, labels, test, test_labels = _problem(num_classes=7, noise=4.0)
    first = _grid(train, labels, test, test_labels)
    order = torch.randperm(len(test_labels), generator=torch.Generator().manual_seed(3))
    second = _grid(train, labels, test, test_labels[order])
    assert first.grid == second.grid and first.chosen == second.chosen
    assert torch.equal(first.test_predictions, second.test_predictions)
    assert first.test_accuracy != second.test_accuracy


def test_separable_classes_are_told_apart_without_an_error():
    result = _grid(*_problem(noise=0.05), learning_rates=(1e-2, 0.1, 1.0), epochs=20)
    assert result.test_accuracy == result.test_balanced_accuracy == result.validation_accuracy == 1


def test_of_equal_accuracies_the_strongest_decay_then_the_smallest_rate_then_the_first_kind_is_taken():
    result = _grid(*_problem(noise=0.001), learning_rates=(0.1, 0.5), weight_decays=(0.0, 1e-4), epochs=20)
    ties = [cell for cell in result.grid if cell.validation_accuracy == 1]
    assert len(ties) > 1 and all(cell.validation_accuracy == 1 for cell in result.grid if cell.kind == "kind0")
    assert (result.chosen.kind, result.chosen.learning_rate, result.chosen.weight_decay) == ("kind0", 0.1, 1e-4)


def test_a_kind_of_noise_is_not_chosen():
    train, labels, test, test_labels = _problem(noise=0.5)
    generator = torch.Generator().manual_seed(0)
    train = {"noise": torch.randn(300, 6, generator=generator), **train}
    test = {"noise": torch.randn(150, 6, generator=generator), **test}
    result = _grid(train, labels, test, test_labels)
    assert result.chosen.kind != "noise"
    assert result.best_per_kind["noise"].validation_accuracy < result.chosen.validation_accuracy


def test_a_cell_that_diverges_is_marked_and_harms_no_other():
    data = _problem()
    healthy = _grid(*data, learning_rates=(1e-2, 0.1))
    poisoned = _grid(*data, learning_rates=(1e-2, 0.1, 1e38))
    failed = [cell for cell in poisoned.grid if cell.failed]
    assert failed and {cell.learning_rate for cell in failed} == {1e38}
    assert tuple(cell for cell in poisoned.grid if cell.learning_rate < 1) == healthy.grid
    assert poisoned.chosen == healthy.chosen
    assert torch.equal(poisoned.test_predictions, healthy.test_predictions)
    assert "NaN" not in json.dumps(poisoned.to_dict(), allow_nan=False)


def test_a_grid_that_diverges_everywhere_is_an_error():
    with pytest.raises(ValueError, match="All 2 cells of the grid diverged"):
        _grid(*_problem(), learning_rates=[1e38], weight_decays=[1e-2])


@pytest.mark.parametrize(
    ("learning_rates", "weight_decays", "expected"),
    [
        ((1e-2,), (0.0,), (False, False)),
        ((1e-5, 1e-2), (0.0, 1e30), (True, False)),
        ((1e-5, 1e-2, 1e38), (1e-3, 1e30), (False, True)),
    ],
)
def test_a_choice_at_the_edge_of_the_grid_is_flagged(learning_rates, weight_decays, expected):
    data = _problem(noise=3.0)
    result = _grid(*data, learning_rates=learning_rates, weight_decays=weight_decays)
    assert result.chosen.learning_rate == 1e-2 and result.chosen.weight_decay == min(weight_decays)
    assert tuple(result.at_grid_edge.values()) == expected


def _interrupt_after(monkeypatch, epochs):
    save = probe_grid._Checkpoint.save

    def interrupted(self, kinds, done):
        save(self, kinds, done)
        if done == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(probe_grid._Checkpoint, "save", interrupted)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_an_interrupted_grid_resumes_to_the_same_bits(tmp_path, monkeypatch, epochs):
    data = _problem(num_classes=7, noise=4.0)
    path = tmp_path / "new" / "grid.safetensors"
    with monkeypatch.context() as patch:
        _interrupt_after(patch, epochs)
        with pytest.raises(KeyboardInterrupt):
            _grid(*data, checkpoint=path)
    seen = []
    step = _Heads.step
    monkeypatch.setattr(_Heads, "step", lambda self, *args: (seen.append(len(self.decays)), step(self, *args))[1])
    resumed = _grid(*data, checkpoint=path)
    # Two kinds of heads take nine steps in each epoch that is left; a single head is refitted afterwards.
    assert seen.count(6) == 2 * 9 * (3 - epochs) and seen.count(1) == 30
    states = [_state(path)]
    path.unlink()
    whole = _grid(*data, checkpoint=path)
    states.append(_state(path))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert resumed.grid == whole.grid and resumed.chosen == whole.chosen
    assert torch.equal(resumed.test_predictions, whole.test_predictions)
    assert resumed.seconds > 0 and resumed.cpu_seconds > 0
    assert [file.name for file in path.parent.iterdir()] == ["grid.safetensors"]


def _state(path):
    with probe_grid.safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    "change",
    [
        lambda data, settings: data[0]["kind1"][17].add_(1e-3),
        lambda data, settings: data[1].copy_(data[1].flip(0)),
        lambda data, settings: settings.update(seed=1),
        lambda data, settings: settings.update(epochs=4),
        lambda data, settings: settings.update(learning_rates=(1e-3, 1e-2, 0.2)),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(tmp_path, change):
    data, settings = _problem(), {"checkpoint": tmp_path / "grid.safetensors"}
    _grid(*data, **settings)
    change(data, settings)
    with pytest.raises(ValueError, match="written with other features, labels or settings"):
        _grid(*data, **settings)


def test_a_checkpoint_does_not_depend_on_the_test_set(tmp_path):
    train, labels, test, test_labels = _problem()
    first = _grid(train, labels, test, test_labels, checkpoint=tmp_path / "grid.safetensors")
    again = _grid(train, labels, test, test_labels.flip(0), checkpoint=tmp_path / "grid.safetensors")
    assert torch.equal(first.test_predictions, again.test_predictions)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        _grid(*_problem(), checkpoint=path)
    assert path.read_text() == "not a checkpoint"


def test_an_explicit_validation_set_is_chosen_on_and_then_fitted_too():
    train, labels, test, test_labels = _problem()
    fitted, held_out = ({kind: x[rows] for kind, x in train.items()} for rows in (slice(0, 240), slice(240, 300)))
    given = _grid(fitted, labels[:240], test, test_labels, validation=(held_out, labels[240:]))
    alone = _grid(fitted, labels[:240], held_out, labels[240:], validation=(held_out, labels[240:]))
    assert given.grid == alone.grid
    heads = _trained(
        train[given.chosen.kind],
        labels,
        [(given.chosen.learning_rate, given.chosen.weight_decay)],
        _Recipe(3, 32, 0.9, seed=0),
    )
    inputs = (test[given.chosen.kind] - heads.mean) / heads.scale
    assert torch.equal(given.test_predictions, (inputs @ heads.weight[:, :-1].T + heads.weight[:, -1]).argmax(dim=1))


def test_class_numbers_may_have_gaps_and_classes_have_names():
    train, labels, test, test_labels = _problem()
    dense = _grid(train, labels, test, test_labels)
    names = [f"name {label}" for label in range(8)]
    sparse = _grid(train, labels * 2 + 1, test, test_labels * 2 + 1, class_names=names)
    assert torch.equal(sparse.test_predictions, dense.test_predictions * 2 + 1)
    assert list(sparse.test_class_accuracies) == ["name 1", "name 3", "name 5", "name 7"]
    assert list(sparse.test_class_accuracies.values()) == list(dense.test_class_accuracies.values())


def test_rescaling_shifting_and_constant_columns_change_nothing():
    train, labels, test, test_labels = _problem()
    first = _grid(train, labels, test, test_labels)

    def changed(features):
        return {kind: torch.cat([8 * x, torch.full((len(x), 1), 7.3)], dim=1) for kind, x in features.items()}

    second = _grid(changed(train), labels, changed(test), test_labels)
    assert first.grid == second.grid and torch.equal(first.test_predictions, second.test_predictions)


def test_the_global_random_state_and_the_features_are_untouched_and_inference_mode_is_allowed():
    data = _problem()
    before, copies = torch.get_rng_state(), {kind: x.clone() for kind, x in data[0].items()}
    expected = _grid(*data)
    with torch.inference_mode():
        result = _grid(*data)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(data[0][kind], copies[kind]) for kind in copies)
    assert result.grid == expected.grid


def test_the_result_is_ready_for_json_and_counts_its_work():
    result = _grid(*_problem(n=320))
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["chosen"]["validation_accuracy"] == result.validation_accuracy and len(written["grid"]) == 12
    width = {"kind0": 7, "kind1": 4}
    fitted = 320 - int(validation_mask(torch.arange(320) % 4, 0.1, 0).sum())
    products = 6 * fitted * sum(width.values()) + 320 * width[result.chosen.kind]
    assert result.flops == 2 * 2 * 3 * 4 * products


@pytest.mark.cuda
def test_an_accelerator_finds_the_same_grid():
    data = _problem()
    expected, result = _grid(*data), _grid(*data, device="cuda")
    for ours, theirs in zip(result.grid, expected.grid, strict=True):
        assert ours.validation_accuracy == pytest.approx(theirs.validation_accuracy, abs=0.05)
    assert (result.test_predictions == expected.test_predictions).double().mean() > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": ()}, "learning_rates is empty"),
        ({"learning_rates": (0.0,)}, "learning_rates holds 0.0"),
        ({"weight_decays": (-1e-4,)}, "weight_decays holds -0.0001"),
        ({"weight_decays": (float("inf"),)}, "weight_decays holds inf"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"optimizer": "lars"}, "optimizer is 'lars'"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"num_classes": 3}, "train_labels holds the label 3"),
        ({"class_names": ["a", "b"]}, "train_labels holds the label 3"),
        ({"class_names": ["a", "b"], "num_classes": 4}, "class_names holds 2 names"),
    ],
)
def test_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        _grid(*_problem(), **settings)


def _without(label):
    def change(data):
        kept = data[1] != label
        return {kind: x[kept] for kind, x in data[0].items()}, data[1][kept], data[2], data[3]

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: ({}, *d[1:]), ValueError, "no feature kind"),
        (lambda d: ({"kind0": d[0]["kind0"]}, *d[1:]), ValueError, "test holds the feature kinds"),
        (lambda d: ({**d[0], "kind0": d[0]["kind0"][:, :2]}, *d[1:]), ValueError, "same number is expected"),
        (lambda d: ({**d[0], "kind1": d[0]["kind1"] / 0}, *d[1:]), ValueError, "NaN or infinite"),
        (lambda d: ({**d[0], "kind1": d[0]["kind1"].long()}, *d[1:]), TypeError, "train_features is torch.int64"),
        (lambda d: ({k: x[:0] for k, x in d[0].items()}, d[1][:0], *d[2:]), ValueError, "train_features has shape"),
        (lambda d: (d[0], d[1][1:], *d[2:]), ValueError, "one label per feature row"),
        (lambda d: (d[0], torch.zeros_like(d[1]), *d[2:]), ValueError, "only the class 0"),
        (lambda d: (*d[:3], d[3] - 1), ValueError, "holds the label -1"),
        (_without(2), ValueError, r"test_labels holds the classes \[2\], which train_labels lacks"),
    ],
)
def test_refuses_wrong_data(change, error, message):
    with pytest.raises(error, match=message):
        _grid(*change(_problem()))


def test_a_test_class_that_the_train_set_lacks_may_count_as_an_error():
    train, labels, test, test_labels = _without(2)(_problem(noise=0.05))
    result = _grid(train, labels, test, test_labels, learning_rates=[0.1], allow_unseen_classes=True, epochs=20)
    assert result.test_class_accuracies["2"] == 0
    assert result.test_accuracy == pytest.approx((test_labels != 2).double().mean().item())
