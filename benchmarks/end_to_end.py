# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a whole pre-training run costs beyond its bare steps, in parts.

A run of `examples/pretrain.py`, with its data set, Trainer, logs, TensorBoard and monitors, takes turns with bare
steps of the same model, batch and token counts on images and masks that lie ready. A kNN measurement of the recipe's
size is timed alone and shared out over the recipe's knn_steps, as a log is over its logging_steps.
"""

import argparse
import contextlib
import dataclasses
import functools
import runpy
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import yaml
from torch.utils.benchmark import timer
from transformers.trainer_callback import CallbackHandler

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.data import BatchAugmentation, normalize_images
from sparsejepa_hf.evaluation import extract_features, knn_accuracy
from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.training import SparseJEPATrainer

from .harness.bare_step import BareStep
from .harness.records import ROOT, format_table, origin_line, parser, start, write
from .harness.timing import seconds_of, speedup, summary


CONFIGS = ROOT / "examples" / "configs"
# The same on both sides, and so large that their difference is the clock's noise.
SAME = ("forward", "backward")
LOADING, AUGMENTATION, LOGGING, KNN = "data loading", "augmentation", "logging", "kNN"
CALLBACKS, REST = "EMA, proximal step, callbacks", "rest of the loop"
# Methods whose calls are counted, in the run and in the bare steps.
PARTS = (
    (SparseJEPAForPreTraining, "forward", "forward"),
    (torch.Tensor, "backward", "backward"),
    (torch.optim.AdamW, "step", "optimizer"),
    (BatchAugmentation, "forward", AUGMENTATION),
    (MultiBlockMaskSampler, "sample_slots", "masks"),
    (CallbackHandler, "call_event", CALLBACKS),
    (BareStep, "follow_up", CALLBACKS),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to measure: `blocks` turns of `block` steps; `overrides` are flags over the recipe's options."""

    name: str
    recipe: str
    batch: int
    block: int
    blocks: int
    overrides: tuple[str, ...] = ()


_SMALL, _VIT_TINY = ("width 96 x 3", "cifar100-cpu.yaml", 16), ("ViT-Tiny", "cifar100-vit-tiny.yaml", 256)
_SIZES = "--hidden_size 24 --num_hidden_layers 1 --predictor_num_hidden_layers 1 --predictor_hidden_size 24"
CASES = {
    "full": (Case(*_SMALL, block=20, blocks=20), Case(*_VIT_TINY, block=4, blocks=6)),
    "short": (Case(*_SMALL, block=10, blocks=6), Case(*_VIT_TINY, block=2, blocks=2)),
    "smoke": (Case("width 24 x 1", "cifar100-cpu.yaml", 8, block=2, blocks=2, overrides=tuple(_SIZES.split())),),
}


class Parts:
    """Seconds of named parts since the last `take`. A part within another one counts as the outer one."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._is_open = False

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted as `name`."""

        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._is_open:
                return call(*args, **kwargs)
            self._is_open, begin = True, timer()
            try:
                return call(*args, **kwargs)
            finally:
                self._is_open = False
                self._seconds[name] += timer() - begin

        return counted

    def take(self) -> dict[str, float]:
        seconds, self._seconds = dict(self._seconds), Counter()
        return seconds


class Turns:
    """Times blocks of a run's steps, each from the begin of a step to that of another, and bare steps in between.

    Args:
        block: steps of a block.
        parts: what counts the parts of both sides.
    """

    def __init__(self, block: int, parts: Parts) -> None:
        self.trainer: SparseJEPATrainer | None = None
        self.seconds: dict[str, list[float]] = {"run": [], "bare": []}
        self.parts: dict[str, list[dict[str, float]]] = {"run": [], "bare": []}
        self.log_seconds: list[float] = []
        self._block, self._parts = block, parts

    def before_step(self, trainer: SparseJEPATrainer) -> None:
        """To be called before each step of the run. The first block of either side warms up."""
        if self.trainer is None:
            self.trainer, self._bare = trainer, bare_step(trainer)
        step = trainer.state.global_step
        if step == 0 or step % self._block:
            return
        if step > self._block:
            # A block's last step logs, which is shared out over the steps between two logs of the recipe.
            seconds, parts = timer() - self._begin, self._parts.take()
            self.log_seconds.append(parts.pop(LOGGING))
            self._note("run", seconds - self.log_seconds[-1], parts)
        self._parts.take()
        seconds = seconds_of(self._bare, self._block) * self._block
        if step > self._block:
            self._note("bare", seconds, self._parts.take())
        self._parts.take()
        self._begin = timer()

    def _note(self, side: str, seconds: float, parts: dict[str, float]) -> None:
        self.seconds[side].append(seconds / self._block)
        each = {name: part / self._block for name, part in parts.items()}
        self.parts[side].append(each | {REST: (seconds - sum(parts.values())) / self._block})


def bare_step(trainer: SparseJEPATrainer) -> Callable[[], Any]:
    """A bare step of the Trainer's kind of model, at its batch and token counts, on images made here."""
    config, args = trainer.model.config, trainer.args
    masks = trainer.mask_sampler(args.train_batch_size, 0, device=args.device)
    images = torch.randn(args.train_batch_size, config.num_channels, *config.image_sides).to(args.device)
    model = SparseJEPAForPreTraining(config).to(args.device)
    return functools.partial(BareStep(model, args.bf16, args.learning_rate), images, *masks)


def measure(case: Case, options: argparse.Namespace, watch_parts: bool) -> dict[str, Any]:
    """Runs `examples/pretrain.py` on a case, and bare steps between its steps.

    Returns:
        Sizes, the seconds a step of both sides, the seconds of each part a step and of a log. Without `watch_parts`
        the seconds of a kNN measurement too.
    """
    parts = Parts()
    turns = Turns(case.block, parts)
    load = parts.watched(LOADING, SparseJEPATrainer.get_batch_samples)
    log = parts.watched(LOGGING, SparseJEPATrainer._maybe_log_save_evaluate)

    def get_batch_samples(trainer: SparseJEPATrainer, *args: Any, **kwargs: Any) -> Any:
        turns.before_step(trainer)
        return load(trainer, *args, **kwargs)

    script = ROOT / "examples" / "pretrain.py"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        patch = functools.partial(mock.patch.object, SparseJEPATrainer)
        stack.enter_context(patch("get_batch_samples", get_batch_samples))
        stack.enter_context(patch("_maybe_log_save_evaluate", log))
        for owner, method, name in PARTS if watch_parts else ():
            stack.enter_context(mock.patch.object(owner, method, parts.watched(name, getattr(owner, method))))
        stack.enter_context(mock.patch.object(sys, "argv", [str(script), *flags(case, options, folder)]))
        runpy.run_path(str(script), run_name="__main__")
    return _result(case, turns) | ({} if watch_parts else {"knn_s": knn_seconds(turns.trainer)})


def flags(case: Case, options: argparse.Namespace, folder: str) -> list[str]:
    """The command line of `examples/pretrain.py` for a case."""
    values: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": case.batch,
        # A warm-up block, the measured ones, and the step whose begin ends the last one.
        "max_steps": case.block * (case.blocks + 1) + 1,
        "logging_steps": case.block,
        "save_strategy": "no",
        "dataset": "synthetic-scenes",
        "max_train_examples": 4 * case.batch,
        "label_column": "label",
        "eval_split": "none",
        "knn_steps": 0,
        "probe": "false",
        "disable_tqdm": "true",
        "seed": options.seed,
        "use_cpu": options.device == "cpu",
    }
    if options.effort != "full":
        values["knn_max_examples"] = 100
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [str(CONFIGS / case.recipe), *words, *case.overrides]


def knn_seconds(trainer: SparseJEPATrainer) -> float:
    """Seconds of one kNN measurement, with as many images as the run's options allow, made here."""
    args, config, processor = trainer.args, trainer.model.config, trainer.processing_class
    count = args.knn_max_examples
    images = torch.randint(0, 256, (2, count, config.num_channels, *config.image_sides), dtype=torch.uint8)
    labels = torch.arange(count) % 100
    normalize = functools.partial(normalize_images, mean=processor.image_mean, std=processor.image_std)

    def knn() -> None:
        encoder = trainer.model.sparsejepa
        bank, heldout = (extract_features(encoder, part, preprocess=normalize).to(args.device) for part in images)
        knn_accuracy(bank, labels, heldout, labels, k=min(args.knn_k, count))

    return seconds_of(knn)


def _result(case: Case, turns: Turns) -> dict[str, Any]:
    trainer, recipe = turns.trainer, yaml.safe_load((CONFIGS / case.recipe).read_text(encoding="utf-8"))
    sampler, log = trainer.mask_sampler, statistics.median(turns.log_seconds)
    parts: dict[str, dict[str, float]] = {LOGGING: {"run_s": log / recipe["logging_steps"]}}
    for side, blocks in turns.parts.items():
        for name in {name for block in blocks for name in block}:
            median = statistics.median(block.get(name, 0.0) for block in blocks)
            parts.setdefault(name, {})[f"{side}_s"] = median
    return {
        "name": case.name,
        "recipe": case.recipe,
        "batch": case.batch,
        "patches": sampler.num_patches,
        "context_patches": sampler.num_context_patches,
        "target_patches": [sampler.num_target_blocks, sampler.num_target_patches],
        "steps_a_block": case.block,
        "run": summary(turns.seconds["run"]),
        "bare": summary(turns.seconds["bare"]),
        # The median over blocks of the two sides' times of one block.
        "excess": speedup(turns.seconds["run"], turns.seconds["bare"]) - 1.0,
        "excess_of_blocks": [run / bare - 1.0 for run, bare in zip(*turns.seconds.values(), strict=True)],
        "log_s": log,
        "logging_steps": recipe["logging_steps"],
        "knn_steps": recipe["knn_steps"],
        "knn_examples": trainer.args.knn_max_examples,
        "parts": parts,
    }


def costs(case: dict[str, Any]) -> dict[str, float]:
    """What a run costs beyond bare steps, as shares of the bare step's time.

    Returns:
        `whole`: by the step times of the two sides, logs and kNN included. `added`: the sum of the parts' differences
        and kNN, without forward and backward, against the bare step of the run that counted the parts.
        `added_without_input`: the same without data loading and augmentation. `knn`: kNN alone, which is in all three.
    """
    bare, watched_bare = case["bare"]["median_s"], case["watched_bare_s"]
    differences = {n: p.get("run_s", 0.0) - p.get("bare_s", 0.0) for n, p in case["parts"].items()}
    added = {name: seconds for name, seconds in differences.items() if name not in SAME}
    own = sum(seconds for name, seconds in added.items() if name not in (LOADING, AUGMENTATION))
    knn = case["knn_s"] / case["knn_steps"]
    return {
        "whole": case["excess"] + (case["log_s"] / case["logging_steps"] + knn) / bare,
        "added": (sum(added.values()) + knn) / watched_bare,
        "added_without_input": (own + knn) / watched_bare,
        "knn": knn / bare,
    }


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    options = parser(__doc__).parse_args(argv)
    origin, measured = start(options), []
    for case in CASES[options.effort]:
        if options.repeats is not None:
            case = dataclasses.replace(case, blocks=options.repeats)
        # Counting parts waits for a GPU at each of them, so the times of the two sides come from a run of their own.
        whole, watched = (measure(case, options, watch_parts) for watch_parts in (False, True))
        measured.append({**whole, "parts": watched["parts"], "watched_bare_s": watched["bare"]["median_s"]})
    write("end_to_end", options, origin, {"cases": measured})


def render(record: dict[str, Any]) -> str:
    """Step times of both sides, the cost of the run in per cent, and its parts."""
    columns = [("model", "{name} ({recipe})"), ("batch", "{batch}"), ("tokens: all, context, targets", "{tokens}")]
    columns += [("run, ms a step", "{run_ms:.1f}"), ("bare step, ms", "{bare_ms:.1f}")]
    columns += [("images/s, run", "{run_rate:.1f}"), ("images/s, bare", "{bare_rate:.1f}")]
    columns += [("blocks", "{count} × {steps_a_block} steps")]
    columns += [("lowest to highest cost of a block, logs and kNN apart", "{lowest:+.1f} to {highest:+.1f} %")]
    columns += [("cost, % of the bare step", "{whole:+.1f} %"), ("of its own parts", "{added:+.1f} %")]
    columns += [("without loading, augmentation", "{added_without_input:+.1f} %"), ("of it kNN", "{knn:+.1f} %")]
    rows, tables = [], []
    for case in record["cases"]:
        blocks, each = case["target_patches"]
        bare, knn = case["bare"]["median_s"], case["knn_s"] / case["knn_steps"]
        run = case["run"]["median_s"] + case["log_s"] / case["logging_steps"] + knn
        rows.append(
            {
                **case,
                "tokens": f"{case['patches']}, {case['context_patches']}, {blocks} x {each}",
                "run_ms": 1e3 * run,
                "bare_ms": 1e3 * bare,
                "run_rate": case["batch"] / run,
                "bare_rate": case["batch"] / bare,
                "count": len(case["excess_of_blocks"]),
                "lowest": 100 * min(case["excess_of_blocks"]),
                "highest": 100 * max(case["excess_of_blocks"]),
                **{name: 100 * cost for name, cost in costs(case).items()},
            }
        )
        images = f"{case['knn_examples']:,} images"
        tables.append(
            f"{case['name']}, batch {case['batch']}: parts of a step; kNN: {images} among {images}, "
            f"{case['knn_s']:.1f} s every {case['knn_steps']:,} steps"
        )
        tables.append(_parts_table(case["parts"] | {KNN: {"run_s": knn}}, case["watched_bare_s"]))
    note = (
        "A run is `examples/pretrain.py` with logs, TensorBoard and monitors; logging and kNN are shared out over the "
        "recipe's logging_steps and knn_steps; checkpoints, evaluation at the end, the start and decoding into memory "
        "are left out. Cost: the median over blocks of steps; of its own parts: the sum of the differences below, "
        "forward and backward left out. The parts come from a second run, beside bare steps of its own. "
    )
    return "\n\n".join([format_table(columns, rows), *tables, note + origin_line(record)])


def _parts_table(parts: dict[str, dict[str, float]], bare_step_s: float) -> str:
    columns = [("part", "{name}"), ("run, ms", "{run:.3f}"), ("bare step, ms", "{bare:.3f}")]
    columns.append(("difference, % of the bare step", "{share:+.2f}"))
    rows = []
    for name, part in sorted(parts.items(), key=lambda item: -max(item[1].values())):
        run, bare = part.get("run_s", 0.0), part.get("bare_s", 0.0)
        rows.append({"name": name, "run": 1e3 * run, "bare": 1e3 * bare, "share": 100 * (run - bare) / bare_step_s})
    return format_table(columns, rows)


if __name__ == "__main__":
    main()
