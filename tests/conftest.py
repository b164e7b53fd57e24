# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: tiny models, seeded images and masks, and real data where it is there."""

import os


# Before transformers is imported: no test may ask the network for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

from sparsejepa_hf import SparseJEPAConfig  # noqa: E402
from sparsejepa_hf.masking import MultiBlockMaskSampler  # noqa: E402


# Beside this file; pytest puts its folder on the path.
pytest_plugins = ["tiny_trainers"]

# Where the long form of tests/reliability writes down what was broken on purpose, and held.
_RECORD = os.environ.get("SPARSEJEPA_RELIABILITY_RECORD")
DATA_DIR = Path(os.environ.get("SPARSEJEPA_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))

# Tiny tensors: more threads cost more than they give, and xdist's workers have a core each at most.
_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", _THREADS)))
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# The same examples in every run: a failure seen once is seen again.
hypothesis.settings.register_profile(
    "sparsejepa",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("sparsejepa")

# Widths that differ from one another, so that no two axes can be confused; weights large enough to matter.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 4,
    "predictor_hidden_size": 24,
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 3,
    "predictor_intermediate_size": 40,
    "num_groups": 4,
    "num_latents": 6,
    "group_size": 3,
    "generator_hidden_size": 5,
    "initializer_range": 0.1,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def run_stranger() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a process of its own, with caches of its own in the folder `work` and none of this one's settings.

    An editable installation could put the package on any path: the code hides it by `sys.modules[...] = None`.
    """

    def run(code: str, *arguments: str | Path, work: Path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        environment |= {"HF_HOME": str(work / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session")
def make_config() -> Callable[..., SparseJEPAConfig]:
    """Builds tiny configurations: an 8x8 grid, width 32, two layers; keyword arguments override."""
    return lambda **overrides: SparseJEPAConfig(**{**TINY, **overrides})


@pytest.fixture
def tiny_config(make_config) -> SparseJEPAConfig:
    return make_config()


@pytest.fixture(scope="session")
def make_model(make_config) -> Callable[..., Any]:
    """Builds a tiny model in evaluation mode whose every parameter is random (biases and norms too), from one seed."""

    def build(model_class: type, seed: int = 0, **overrides: Any):
        torch.manual_seed(seed)
        model = model_class(make_config(**overrides))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Tensor]:
    """Seeded white-noise images (B, C, H, W)."""

    def build(batch_size: int = 2, size: tuple[int, int] = (32, 32), channels: int = 3, seed: int = 0) -> Tensor:
        return torch.randn(batch_size, channels, *size, generator=torch.Generator().manual_seed(seed))

    return build


@pytest.fixture
def pixel_values(make_images) -> Tensor:
    return make_images()


@pytest.fixture(scope="session")
def make_masks() -> Callable[..., dict[str, Tensor]]:
    """Context and target masks, as keyword arguments of a model."""

    def build(batch_size: int = 2, grid_size: tuple[int, int] = (8, 8), step: int = 0, **options: Any):
        context_mask, target_mask = MultiBlockMaskSampler(grid_size, **options)(batch_size, step)
        return {"context_mask": context_mask, "target_mask": target_mask}

    return build


@pytest.fixture
def masks(make_masks) -> dict[str, Tensor]:
    return make_masks()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets; skips where there is none."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"no real data at {DATA_DIR}")
    return DATA_DIR


@pytest.fixture
def hear_warnings(monkeypatch, caplog):
    """pytest's caplog, hearing transformers' loggers too."""
    monkeypatch.setattr(transformers.utils.logging._get_library_root_logger(), "propagate", True)
    previous = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    yield caplog
    transformers.logging.set_verbosity(previous)


@pytest.fixture(scope="module")
def runs_in_process() -> Iterator[None]:
    """Pre-training processes of experiments run inside this one: starting Python takes longer than training here."""

    def run(command, stdout, stderr, env):
        script, *flags = command[1:]
        patch.setattr(sys, "argv", [script, *flags])
        try:
            with contextlib.redirect_stdout(stdout):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as ending:
            return subprocess.CompletedProcess(command, int(ending.code or 0))
        except Exception as error:
            stdout.write(f"{type(error).__name__}: {error}\n")
            return subprocess.CompletedProcess(command, 1)
        return subprocess.CompletedProcess(command, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("examples.reproduce.runs.subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
        yield


@pytest.fixture
def record_fault() -> Callable[..., None]:
    """`record_fault(kind, fault, injected=n, held=n, **figures)`: a row of the published table of faults.

    Rows are appended to the file that `SPARSEJEPA_RELIABILITY_RECORD` names; without it nothing is written. Tests call
    it after their assertions: what did not hold fails, and is never written as held.
    """

    def record(kind: str, fault: str, *, injected: int, held: int, **figures: Any) -> None:
        if _RECORD is not None:
            row = {"kind": kind, "fault": fault, "injected": injected, "held": held, **figures}
            with Path(_RECORD).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return record
