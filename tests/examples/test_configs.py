# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The recipes in `examples/configs`."""

from pathlib import Path

import pytest
import yaml

from examples.reproduce.queue import read_queue
from sparsejepa_hf import PRESETS
from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.training import FINE_TUNING_OPTION_TYPES, OPTION_TYPES, parse_options
from sparsejepa_hf.training import options as built_in


RECIPES = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))
QUEUES = [path for path in RECIPES if path.stem.startswith("queue-")]
FINE_TUNING = [path for path in RECIPES if path.stem.endswith("-finetune")]
CONFIGS = [path for path in RECIPES if path not in FINE_TUNING + QUEUES]


def read(path: Path, *flags: str):
    flags = ("--use_cpu", "--report_to", "none", *flags)
    if "dataset" not in yaml.safe_load(path.read_text(encoding="utf-8")):
        flags = ("--dataset", "data/mine", "--output_dir", "runs/mine", *flags)
    return parse_options(OPTION_TYPES, [str(path), *flags])


def test_there_are_recipes():
    assert "demo" in {path.stem for path in CONFIGS}


def test_the_package_has_the_recipes_by_name(tmp_path, monkeypatch):
    """An installed package has no checkout to take a file from; a file of one's own goes first."""
    assert set(built_in.RECIPES) == {path.stem for path in CONFIGS + FINE_TUNING}
    monkeypatch.chdir(tmp_path)
    assert parse_options(OPTION_TYPES, ["demo", "--report_to", "none"])[1].dataset == "textured-scenes"
    Path("demo").write_text("dataset: mine\noutput_dir: out\nuse_cpu: true")
    assert parse_options(OPTION_TYPES, ["demo", "--report_to", "none"])[1].dataset == "mine"
    with pytest.raises(ValueError, match="no file dem; expected .* built-in recipe .*cifar100-cpu, .*demo, "):
        parse_options(OPTION_TYPES, ["dem"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_describes_a_model_whose_masks_exist_on_its_grid(path):
    model, data, training = read(path)
    config = model.build_config()
    sampler = MultiBlockMaskSampler(
        config.grid_size,
        num_target_blocks=training.num_target_blocks,
        num_target_patches=training.num_target_patches,
        num_context_patches=training.num_context_patches,
        target_aspect_ratio=tuple(training.target_aspect_ratio),
    )
    context_mask, target_mask = sampler(4, 0)
    assert max(context_mask.max(), target_mask.max()) < config.num_patches
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    assert training.crop == "resized" or (data.load_size or side) == side, "a padded crop takes images of the side"
    assert not data.streaming or training.max_steps > 0, "a stream has no epochs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_sparse_and_one_flag_makes_its_i_jepa_baseline(path):
    """Every comparison rests on it: same data, seed, steps, masks, schedule and encoders."""
    sparse, plain = (read(path, *flags) for flags in ([], ["--use_grouping", "false"]))
    assert sparse[1:] == plain[1:]
    sparse, plain = sparse[0].build_config(), plain[0].build_config()
    assert sparse.use_grouping and sparse.sparsity_weight > 0, "SparseJEPA without sparsity is no SparseJEPA"
    different = {name for name, value in sparse.to_dict().items() if plain.to_dict()[name] != value}
    assert different == {"use_grouping", "sparsity_weight", "kl_weight"}
    assert not plain.use_grouping and plain.sparsity_weight == plain.kl_weight == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_s_preset_says_what_its_encoder_is(path):
    """No width or depth beside it that contradicts its name; the predictor is the recipe's own matter."""
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    of_encoder = {name for name in PRESETS[options["preset"]] if not name.startswith("predictor_")}
    assert not options.keys() & of_encoder


def test_the_demo_s_scenes_are_those_that_their_name_alone_gives():
    """What reads a checkpoint later, such as a probe, names the data set and no more."""
    _, data, training = read(next(path for path in CONFIGS if path.stem == "demo"))
    assert (data.dataset, data.scene_max_objects) == ("textured-scenes", None)
    assert training.horizontal_flip == 0, "a flip turns rising stripes into falling ones"


@pytest.mark.parametrize("path", FINE_TUNING, ids=lambda path: path.stem)
def test_a_fine_tuning_recipe_begins_from_what_its_twin_writes(path):
    """Same data, and the checkpoint of the pre-training recipe of the same name."""
    model, data, training = parse_options(FINE_TUNING_OPTION_TYPES, [str(path), "--use_cpu", "--report_to", "none"])
    _, twin_data, twin_training = read(path.with_name(path.name.replace("-finetune", "")))
    assert model.model_name_or_path == twin_training.output_dir
    assert (data.dataset, data.label_column) == (twin_data.dataset, twin_data.label_column)
    assert data.test_split == twin_data.eval_split
    assert training.layer_decay < 1


@pytest.mark.parametrize("path", QUEUES, ids=lambda path: path.stem)
def test_a_queue_compares_methods_of_one_budget_seed_by_seed(path, tmp_path):
    queue = read_queue(path, path.parents[2], [], tmp_path, dataset="data/mine")
    assert [run.seed for _, run in queue] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    resolved = [runs.resolve(run) for runs, run in queue]
    assert {options["dataset"] for options in resolved} == {"data/mine"}
    same = (
        "num_train_epochs",
        "ema_momentum_end",
        "learning_rate",
        "per_device_train_batch_size",
        "max_train_examples",
    )
    assert len({tuple(options[name] for name in same) for options in resolved}) == 1
    assert all(options["save_strategy"] == "epoch" for options in resolved)
    assert [options.get("use_grouping") for options in resolved[:3]] == [False, None, None]
    assert [options.get("latent_residual") for options in resolved[:3]] == [None, None, True]
