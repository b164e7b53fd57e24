# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fixtures: tiny trainers and runs on a 4x4 grid, and what one reads off them."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining
from sparsejepa_hf.training import SparseJEPATrainer, SparseJEPATrainingArguments, image_processor


# Every train() collects garbage: a second's work where it goes through all that the libraries hold, and a tenth of it
# where that is set aside.
gc.freeze()

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "predictor_hidden_size": 16,
    "predictor_num_hidden_layers": 1,
    "predictor_num_attention_heads": 2,
}

SMALL: dict[str, Any] = {
    **SIZES,
    "predictor_intermediate_size": 32,
    "num_groups": 4,
    "num_latents": 6,
    "group_size": 3,
    "generator_hidden_size": 5,
    "sparsity_weight": 1e-2,
    "kl_weight": 1e-2,
}

# Nothing here tests a default of a hyper-parameter: what matters to a test is said here or in the test.
FAST: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "logging_steps": 1,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "ema_momentum": 0.9,
    "ema_momentum_end": 0.99,
    "seed": 7,
    "monitor_samples": 8,
    "collapse_min_std": 0.0,
    "collapse_min_rank": 0.0,
}

# Two steps of a pre-training run, as the command `pretrain` takes it from a file or flags.
TINY_RUN: dict[str, Any] = {
    **SIZES,
    "dataset": "synthetic-scenes",
    "sparsity_weight": 0.1,
    "kl_weight": 1e-3,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}

# Measured, so never the same twice.
TIMINGS = ("images_per_second", "runtime", "samples_per_second", "steps_per_second")


class Images(Dataset):
    """Seeded uint8 images of four classes: each a colour gradient of its own under noise."""

    def __init__(
        self, count: int = 48, size: int = 16, labels: bool = True, seed: int = 0, random_labels: bool = False
    ):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 4 if labels else None
        if random_labels:
            self.labels = torch.randint(4, (count,), generator=generator)
        ramp = torch.linspace(0, 1, size)
        planes = torch.stack([p.expand(size, size) for p in (ramp[:, None], ramp, ramp.flip(0))])
        images = torch.stack([planes.roll(i % 4, 0) * (0.4 + 0.2 * (i % 4)) for i in range(count)])
        images = images + 0.3 * torch.rand(images.shape, generator=generator)
        self.pixel_values = (images * 180).clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"pixel_values": self.pixel_values[index]}
        return example if self.labels is None else {**example, "labels": int(self.labels[index])}


class FloatImages(Images):
    """The same as normalised floats."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        return {**example, "pixel_values": example["pixel_values"].float() / 127.5 - 1.0}


class Recorder(TrainerCallback):
    """Keeps `read(model, optimizer)` as it is after each optimizer step, EMA and proximal step included."""

    def __init__(self, read: Callable[[Any, Any], Any]):
        self._read = read
        self.values: list[Any] = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.values.append(self._read(model, optimizer))


@pytest.fixture(scope="session")
def make_small_config() -> Callable[..., SparseJEPAConfig]:
    """Builds configurations of width 32 with one layer on a 4x4 grid."""

    return lambda **overrides: SparseJEPAConfig(**{**SMALL, **overrides})


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., dict[str, Any]]:
    """Options of a tiny pre-training run of two steps; keyword arguments override or add."""
    return lambda **options: {**TINY_RUN, **options}


@pytest.fixture
def checkpoint(tmp_path: Path, make_small_config) -> str:
    """A folder as pre-training leaves it, normalisation included."""
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    SparseJEPAForPreTraining(make_small_config(num_hidden_layers=2)).save_pretrained(folder)
    image_processor((16, 16), [0.4, 0.4, 0.4], [0.3, 0.3, 0.3]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder split/class/i.png: noise of 16 pixels in three tints, 20 of each to train on and 12 to test.

    The classes are named 1 to 3, so they may be counts. The first test image of each also occurs in train.
    """
    root, generator = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for channel, name in enumerate("123"):
        pixels = generator.integers(0, 160, (32, 16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 90
        pixels[20] = pixels[0]
        for split, chosen in (("train", range(20)), ("test", range(20, 32))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in chosen:
                Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def as_flags() -> Callable[..., list[str]]:
    """Options as the words of a command line; those that are None are left out."""

    def build(**options: Any) -> list[str]:
        words: list[str] = []
        for name, value in options.items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return build


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    return lambda *args, floats=False, **kwargs: (FloatImages if floats else Images)(*args, **kwargs)


@pytest.fixture(scope="session")
def record() -> type[Recorder]:
    return Recorder


@pytest.fixture
def make_trainer(tmp_path: Path, make_small_config) -> Callable[..., SparseJEPATrainer]:
    """Builds a trainer. `config` overrides the model's configuration, `model_seed` its weights; the rest are training
    arguments."""
    built: list[SparseJEPATrainer] = []

    def build(
        config: dict[str, Any] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        knn_datasets: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        model_seed: int = 0,
        **arguments: Any,
    ) -> SparseJEPATrainer:
        arguments.setdefault("output_dir", str(tmp_path / f"run-{len(built)}"))
        torch.manual_seed(model_seed)
        model = SparseJEPAForPreTraining(make_small_config(**(config or {})))
        trainer = SparseJEPATrainer(
            model=model,
            args=SparseJEPATrainingArguments(**{**FAST, **arguments}),
            train_dataset=Images() if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            knn_datasets=knn_datasets,
            callbacks=callbacks,
        )
        built.append(trainer)
        return trainer

    return build


@pytest.fixture(scope="session")
def weights_of() -> Callable[[Any], dict[str, Tensor]]:
    """A copy of every parameter of a trainer's model, by name."""
    return lambda trainer: {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.fixture(scope="session")
def logs_of() -> Callable[[Any], list[dict[str, float]]]:
    """What a trainer logged, without what a clock measured."""

    def read(trainer: SparseJEPATrainer) -> list[dict[str, float]]:
        history = trainer.state.log_history
        return [{k: v for k, v in entry.items() if not k.endswith(TIMINGS)} for entry in history]

    return read


@pytest.fixture(scope="session")
def train_logs_of(logs_of) -> Callable[[Any], list[dict[str, float]]]:
    """The entries of single training steps."""
    return lambda trainer: [entry for entry in logs_of(trainer) if "prediction_loss" in entry]


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[..., None]:
    """Compares two dictionaries of tensors: to the bit, or up to `atol`."""

    def check(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 0.0) -> None:
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")

    return check
