# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Where accuracy peaks and where it falls, chosen on the validation part and never on test."""

import pytest

from examples.reproduce.sweep import OF_W, axis_points, falls_at, peak, plot, point, point_name, render


LAMBDAS = [0, 0.01, 0.1, 1.0]


def make_record(validation=(0.20, 0.22, 0.25, 0.10), test=(0.5, 0.4, 0.3, 0.2), ijepa=0.21, seeds=2):
    names = {0.1: "SparseJEPA"} | {v: point_name({"sparsity_weight": v}) for v in LAMBDAS if v != 0.1}
    accuracies = {names[v]: pair for v, pair in zip(LAMBDAS, zip(validation, test, strict=True), strict=True)}
    accuracies["I-JEPA"] = (ijepa, 0.35)
    evaluations, runs = [], []
    for method, (held_out, tested) in accuracies.items():
        for seed in range(seeds):
            noise = 0.01 * (seed - (seeds - 1) / 2)
            figures = {"validation_accuracy": held_out + noise, "accuracy": tested, "knn_accuracy": 0.1}
            evaluations.append({"task": "cifar100", "method": method, "seed": seed, **figures})
            of_w = enumerate(("zero_columns", *OF_W.values()))
            last = {} if method == "I-JEPA" else {name: place + 0.5 for place, name in of_w}
            runs.append({"method": method, "seed": seed, "last": last, "train_seconds": 1.0})
    return {
        "tasks": {"cifar100": {}},
        "evaluations": evaluations,
        "runs": runs,
        "axes": {"sparsity_weight": LAMBDAS},
        "base": {"sparsity_weight": 0.1},
        "variants": [],
    }


def test_each_statistic_of_w_stands_in_its_own_column():
    (row,) = [line for line in render(make_record()).splitlines() if line.startswith("| 0.1 |")]
    assert row.split(" | ")[4:11] == ["50.0 %", "1.5", "2.5", "3.5", "4.5", "5.5", "6.5"]


def test_a_point_is_named_by_what_differs_from_the_recipe():
    assert point_name({}) == "SparseJEPA"
    assert point_name({"sparsity_weight": 0.001, "variational": False}) == "SparseJEPA, λ = 0.001, variational = False"


def test_the_recipes_own_value_is_the_recipes_run():
    points = axis_points(make_record(), "sparsity_weight")
    assert list(points) == LAMBDAS
    assert points[0.1] == point(make_record(), "SparseJEPA", "0.1")


def test_numbers_are_walked_in_their_order_not_as_they_were_typed():
    record = make_record()
    record["axes"] = {"sparsity_weight": LAMBDAS[::-1]}
    assert list(axis_points(record, "sparsity_weight")) == LAMBDAS


def test_a_point_is_the_mean_over_its_seeds():
    p = point(make_record(), "SparseJEPA", "0.1")
    assert (p["validation"], p["test"], p["seeds"]) == (pytest.approx(0.25), pytest.approx(0.3), 2)
    assert p["validation_std"] == pytest.approx(0.01 / 2**0.5)


def test_the_peak_is_chosen_on_the_validation_part_alone():
    """Test accuracy falls all along, and changes nothing."""
    assert peak(axis_points(make_record(), "sparsity_weight")) == 0.1
    reversed_test = make_record(test=(0.2, 0.3, 0.4, 0.5))
    assert peak(axis_points(reversed_test, "sparsity_weight")) == 0.1


@pytest.mark.parametrize(
    "validation, expected",
    [
        ((0.20, 0.22, 0.25, 0.10), 1.0),
        ((0.25, 0.10, 0.20, 0.15), 0.01),
        ((0.25, 0.10, 0.22, 0.15), 1.0),
        ((0.25, 0.24, 0.23, 0.22), None),
        ((0.20, 0.22, 0.23, 0.25), None),
    ],
)
def test_it_falls_where_it_stays_below_i_jepa_beyond_the_peak(validation, expected):
    points = axis_points(make_record(validation), "sparsity_weight")
    assert falls_at(points, 0.21) == expected


def test_the_table_marks_peak_and_fall():
    lines = render(make_record()).splitlines()
    assert [line for line in lines if line.endswith("| peak |")][0].startswith("| 0.1 | 25.0 ± 0.7 |")
    assert [line for line in lines if "falls below I-JEPA" in line][0].startswith("| 1 |")
    assert "peak, not above I-JEPA" in render(make_record(ijepa=0.3))


def test_variants_are_ranked_beside_the_recipe():
    record = make_record()
    name = point_name({"latent_position": "encoder"})
    for seed in range(2):
        figures = {"validation_accuracy": 0.3, "accuracy": 0.3, "knn_accuracy": 0.1}
        record["evaluations"].append({"task": "cifar100", "method": name, "seed": seed, **figures})
    record["variants"] = [name]
    text = render(record)
    assert text.index("latent_position = encoder") < text.index("as the recipe has it")


def test_a_point_that_failed_is_shown_as_not_measured():
    record = make_record()
    name = point_name({"sparsity_weight": 0})
    for entry in record["evaluations"]:
        if entry["method"] == name:
            del entry["validation_accuracy"], entry["accuracy"], entry["knn_accuracy"]
            entry["failed"] = "x"
    assert axis_points(record, "sparsity_weight")[0]["validation"] is None
    assert "| 0 | – | – | – |" in render(record)


def test_the_plot_is_drawn(tmp_path):
    plot(make_record(), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
