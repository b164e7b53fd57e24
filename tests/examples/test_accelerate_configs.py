# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The configurations in `examples/accelerate_configs` are what Accelerate reads, and name what this package has."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sparsejepa_hf import modeling_sparsejepa


ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml"))
ENGINES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED", "multi_node": "MULTI_GPU"}


def test_there_is_one_for_each_engine_and_for_several_machines():
    assert {path.stem for path in CONFIGS} == set(ENGINES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_configuration(path):
    """Its loader refuses unknown keys, but not those of an engine, which must be flags of the launcher."""
    config = load_config_from_file(str(path))
    assert config.distributed_type == ENGINES[path.stem] and config.num_processes % config.num_machines == 0
    flags = {action.dest for action in launch_command_parser()._actions}
    for engine in (config.fsdp_config, config.deepspeed_config):
        assert set(engine) <= flags


def test_fsdp2_shards_layers_of_the_model_and_saves_what_is_loaded():
    fsdp = load_config_from_file(str(ROOT / "examples/accelerate_configs/fsdp2.yaml")).fsdp_config
    assert hasattr(modeling_sparsejepa, fsdp["fsdp_transformer_layer_cls_to_wrap"])
    assert (fsdp["fsdp_version"], fsdp["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_documentation_names_a_configuration(path):
    assert f"examples/accelerate_configs/{path.name}" in (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
