# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Options from a YAML file and flags."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from sparsejepa_hf import PRESETS, SparseJEPAConfig
from sparsejepa_hf.training.options import (
    OPTION_TYPES,
    DataArguments,
    ModelArguments,
    check_together,
    parse_options,
    write_options,
)


@pytest.fixture
def parse(tmp_path: Path):
    """Parses a mapping, written to a YAML file, and flags."""

    def run(options: dict | str | None = None, *flags: str):
        arguments = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--report_to", "none"]
        arguments += ["--dataset", "synthetic-scenes", *flags]
        if options is not None:
            path = tmp_path / "options.yaml"
            path.write_text(options if isinstance(options, str) else yaml.safe_dump(options), encoding="utf-8")
            arguments.insert(0, str(path))
        return parse_options(OPTION_TYPES, arguments)

    return run


def test_the_file_overrides_defaults_and_flags_override_the_file(parse):
    model, data, training = parse({"num_latents": 10, "seed": 3, "max_train_examples": 5}, "--seed", "4")
    assert (model.num_latents, data.max_train_examples, training.seed) == (10, 5, 4)
    model, data, training = parse({"num_latents": 10}, "--num_latents", "12", "--train_split", "validation")
    assert (model.num_latents, data.train_split) == (12, "validation")


def test_flags_alone_will_do(parse):
    model, data, training = parse(None, "--preset", "vit-small", "--dataset", "somewhere", "--max_steps", "3")
    assert (model.preset, data.dataset, training.max_steps) == ("vit-small", "somewhere", 3)


def test_types_survive_the_file(parse):
    model, data, training = parse(
        "learning_rate: 1e-4\nema_momentum: 0.5\nimage_mean: [0.1, 0.2, 0.3]\nimage_std: [0.4, 0.5, 0.6]\n"
        "use_grouping: false\nprobe: false\n"
        "streaming: true\nimage_size: [16, 32]\nlr_scheduler_kwargs: {min_lr: 1.0e-5}\nsave_strategy: epoch\n"
        "dataset_config_name: '1'\nmax_grad_norm: 2\n"
    )
    assert (training.learning_rate, training.ema_momentum, training.max_grad_norm) == (1e-4, 0.5, 2.0)
    assert data.image_mean == [0.1, 0.2, 0.3] and data.dataset_config_name == "1"
    assert model.use_grouping is False and data.probe is False and data.streaming is True
    assert model.image_size == [16, 32]
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert training.save_strategy == "epoch"


def test_null_says_nothing_where_nothing_is_an_answer_and_is_refused_elsewhere(parse):
    model, data, training = parse({"eval_split": None, "weight_decay_end": None, "num_latents": None})
    assert data.eval_split is None
    assert training.weight_decay_end is None and model.num_latents is None
    with pytest.raises(ValueError, match="sets seed to null; it needs a value"):
        parse({"seed": None})
    _, data, _ = parse({"eval_split": None}, "--eval_split", "validation")
    assert data.eval_split == "validation", "flags override null too"


def test_lists_of_text_arrive_whole(parse, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("report_to: [tensorboard]\ndebug: []\ninclude_for_metrics: []\n", encoding="utf-8")
    _, _, training = parse_options(
        OPTION_TYPES, [str(path), "--dataset", "x", "--output_dir", str(tmp_path), "--use_cpu"]
    )
    assert training.report_to == ["tensorboard"] and training.include_for_metrics == []


@pytest.mark.parametrize(
    ("key", "meant"), [("learning_rat", "learning_rate"), ("num_latent", "num_latents"), ("eval_splits", "eval_split")]
)
def test_an_unknown_key_is_refused_with_the_likely_meaning(parse, key, meant):
    with pytest.raises(ValueError, match=f"unknown key '{key}'. Did you mean '{meant}'"):
        parse({key: 1})


def test_an_unknown_key_without_a_likely_meaning_is_refused_too(parse):
    with pytest.raises(ValueError, match="unknown key 'zzzzqqqq'"):
        parse({"zzzzqqqq": 1})


@pytest.mark.parametrize("flags", [["--learning_rat", "1"], ["--num_laten", "3"], ["--unheard_of", "1"]])
def test_unknown_and_abbreviated_flags_are_refused(parse, flags, capsys):
    with pytest.raises(SystemExit):
        parse({}, *flags)
    assert f"unrecognized arguments: {' '.join(flags)}" in capsys.readouterr().err


def test_a_missing_file_and_a_file_that_holds_no_mapping_are_refused(parse, tmp_path):
    with pytest.raises(ValueError, match="There is no file .*nowhere.yaml"):
        parse_options(OPTION_TYPES, [str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ValueError, match="holds a list; expected a mapping"):
        parse("- seed\n- 3\n")


def test_the_help_can_be_printed(capsys):
    """argparse reads a bare per cent sign in a help text as a format."""
    with pytest.raises(SystemExit) as stopped:
        parse_options(OPTION_TYPES, ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for option_type in OPTION_TYPES:
        assert all(f"--{f.name}" in printed for f in dataclasses.fields(option_type) if f.init)


# ---- the model's configuration ----


# For every field, a value that is no preset's.
CONFIG_VALUES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.125,
    "initializer_range": 0.03,
    "patch_projection_scale": 2.0,
    "layer_norm_eps": 1e-5,
    "image_size": 40,
    "patch_size": 2,
    "num_channels": 1,
    "qkv_bias": False,
    "predictor_type": "mlp",
    "predictor_hidden_size": 24,
    "predictor_num_hidden_layers": 1,
    "predictor_num_attention_heads": 2,
    "predictor_intermediate_size": 20,
    "use_grouping": False,
    "num_groups": 3,
    "num_latents": 7,
    "group_size": 5,
    "generator_hidden_size": 6,
    "variational": False,
    "latent_position": "encoder",
    "latent_residual": True,
    "loss_type": "mse",
    "target_normalization": "none",
    "sparsity_weight": 0.5,
    "sparsity_mode": "penalty",
    "kl_weight": 0.25,
}
OWN_FIELDS = {name for name in SparseJEPAConfig.__annotations__ if name != "model_type" and name[0] != "_"}


def test_the_values_above_cover_every_field_of_the_configuration():
    assert set(CONFIG_VALUES) == OWN_FIELDS


@pytest.mark.parametrize("name", sorted(CONFIG_VALUES))
def test_every_field_of_the_configuration_is_a_flag_and_a_key_and_reaches_the_model(parse, name):
    value = CONFIG_VALUES[name]
    # Widths that the value of a single field must fit.
    fitting = {"num_attention_heads": ("hidden_size", 192), "hidden_size": ("num_groups", 8)}.get(name)
    extra = [] if fitting is None else [f"--{fitting[0]}", str(fitting[1])]
    by_flag = parse(None, f"--{name}", str(value), *extra)[0].build_config()
    by_key = parse({name: value}, *extra)[0].build_config()
    assert getattr(by_flag, name) == getattr(by_key, name) == value
    assert getattr(SparseJEPAConfig.from_preset("vit-tiny"), name) != value


def test_without_options_the_configuration_is_the_preset_s(parse):
    for preset in PRESETS:
        config = parse(None, "--preset", preset)[0].build_config()
        assert config.to_dict() == SparseJEPAConfig.from_preset(preset).to_dict()


def test_an_impossible_configuration_is_refused_when_it_is_built(parse):
    with pytest.raises(ValueError, match="num_groups is 7"):
        parse({"num_groups": 7})[0].build_config()
    with pytest.raises(ValueError, match="preset is 'vit-giant'; expected one of 'vit-micro'"):
        parse({"preset": "vit-giant"})


# ---- the options that a run writes down ----


def values_of(option) -> dict:
    return {f.name: getattr(option, f.name) for f in dataclasses.fields(option) if f.init}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--report_to", "tensorboard"],
        ["--eval_strategy", "steps", "--eval_steps", "5", "--save_strategy", "epoch", "--weight_decay_end", "0.4"],
        [
            "--image_size",
            "8",
            "--use_grouping",
            "false",
            "--no_probe",
            "--crop",
            "resized",
            "--crop_scale",
            "0.5",
            "1",
        ],
        ["--lr_scheduler_type", "linear", "--warmup_steps", "0.2", "--gradient_checkpointing", "--max_steps", "7"],
        ["--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}', "--crop_scale", "0.5", "1", "--seed", "5"],
    ],
)
def test_the_written_options_parse_into_the_same_options(parse, tmp_path, flags):
    options = parse(None, *flags)
    write_options(str(tmp_path / "run"), *options)
    again = parse_options(OPTION_TYPES, [str(tmp_path / "run" / "pretraining_options.yaml")])
    for option, other in zip(options, again, strict=True):
        assert values_of(option) == values_of(other)


def test_a_null_that_was_asked_for_survives_being_written(parse, tmp_path):
    """Where nothing is not the default, leaving the line out would bring the default back."""
    options = parse({"ddp_find_unused_parameters": None})
    assert parse({})[2].ddp_find_unused_parameters is not None
    write_options(str(tmp_path / "run"), *options)
    again = parse_options(OPTION_TYPES, [str(tmp_path / "run" / "pretraining_options.yaml")])
    assert again[2].ddp_find_unused_parameters is None


def test_secrets_are_not_written_down(parse, tmp_path):
    write_options(str(tmp_path / "run"), *parse(None, "--hub_token", "hf_0123"))
    text = (tmp_path / "run" / "pretraining_options.yaml").read_text(encoding="utf-8")
    assert "hf_0123" not in text and "hub_token" not in text


def test_options_of_the_three_kinds_do_not_share_a_name():
    """One flat YAML file serves all three."""
    names = [f.name for option_type in OPTION_TYPES for f in dataclasses.fields(option_type) if f.init]
    assert len(names) == len(set(names))
    assert {f.name for f in dataclasses.fields(ModelArguments)} == OWN_FIELDS | {"preset"}
    assert all(f.metadata["help"] for f in dataclasses.fields(DataArguments))


# ---- what a file can hold ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ndataset: x\nseed: 2\n", "the key 'seed' is on line 1 and on line 3"),
        ("lr_scheduler_kwargs: {min_lr: 1, min_lr: 2}\n", "the key 'min_lr' is on line 1 and on line 1"),
        ("seed: 1\n\tdataset: x\n", r"line 2: found character '\\t'"),
        ("seed: [1, 2]\n", "line 1 sets seed to a list; expected an integer"),
        ("seed: 1.5\n", "line 1 sets seed to '1.5'; expected an integer"),
        ("\nprobe: perhaps\n", "line 2 sets probe to 'perhaps'; expected true or false"),
        ("image_mean: [a]\n", "line 1 sets image_mean to a list; expected a list of numbers"),
        ("seed: !!python/object/apply:os.getcwd []\n", "it has the tag .*os.getcwd; expected a plain value"),
        ("lr_scheduler_kwargs: !!python/name:os.getcwd\n", "it has the tag .*os.getcwd; expected a plain value"),
        ("lr_scheduler_kwargs: {min_lr: !!timestamp x}\n", "line 1 sets lr_scheduler_kwargs to a mapping; it cannot"),
        ("[" * 2000, "nested too deeply"),
        ("save_strategy: never\n", "save_strategy is 'never'; expected one of no, steps, epoch, best"),
        ("weight_decay: -1\n", "weight_decay is -1.0; expected a finite number of at least 0"),
        ("image_std: [0.5, 0, 0.5]\n", r"image_std is \[0.5, 0.0, 0.5\]; expected numbers, each above 0"),
        ("image_mean: [0.5]\n", "Of image_mean and image_std one is given alone"),
        ("image_mean: [0.5]\nimage_std: [0.5, 0.5]\n", r"image_mean is \[0.5\] and image_std"),
        ("shuffle_buffer: 0\n", "shuffle_buffer is 0; expected a finite number of at least 1"),
        ("dataset_seed: 99999999999999999999\n", r"dataset_seed is 9{20}; expected an integer below 2\*\*63"),
        ("train_split: ''\n", "train_split is empty; expected a text"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_its_line_or_its_option(parse, text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_bytes("dataset: Bücher\n".encode("latin-1"))
    with pytest.raises(ValueError, match="options.yaml is not UTF-8: byte 10 is 0xfc"):
        parse_options(OPTION_TYPES, [str(path)])


def test_a_plain_value_is_the_text_that_stands_there(parse):
    """YAML would make false of no, a number of 1.10 and a date of 2026-01-01, and leave 1e-3 a text."""
    model, data, training = parse(
        "save_strategy: no\ndataset_config_name: 1.10\ntrain_split: 2026-01-01\nrun_name: off\nlearning_rate: 1e-3\n"
        "probe: off\nlr_scheduler_kwargs: {min_lr: 1e-5}\nimage_mean: [0, .5, 1e-1]\nimage_std: [1, 1, 1]\n"
        "max_steps: 1_000\n"
        "seed: &seed 3\ndata_seed: *seed\n<<: {warmup_steps: 7}\n"
    )
    assert training.save_strategy == "no" and training.run_name == "off" and data.probe is False
    assert (data.dataset_config_name, data.train_split) == ("1.10", "2026-01-01")
    assert (training.learning_rate, training.max_steps, training.warmup_steps) == (1e-3, 1000, 7)
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5} and data.image_mean == [0.0, 0.5, 0.1]
    assert training.seed == training.data_seed == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--load_size", "16"], "load_size is 16; expected at least image_size 32"),
        (["--load_size", "48"], "load_size is 48 and image_size 32, which only crop resized"),
        (["--crop_padding", "32"], "crop_padding is 32; expected less than image_size 32"),
        (["--eval_strategy", "steps"], "eval_strategy is 'steps', but eval_split is none"),
        (["--num_target_patches", "64"], "num_target_patches is 64"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_images_are_loaded(parse, flags, said):
    model, data, training = parse(None, *flags)
    with pytest.raises(ValueError, match=said):
        check_together(data, training, model.build_config())


def test_a_model_that_no_memory_holds_is_refused_by_its_options(parse):
    with pytest.raises(ValueError, match="num_latents is 1000000000000; .* GB of memory. Lower num_latents"):
        parse({"num_latents": 10**12})[0].build_config()
