# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a whole pre-training run costs beyond its bare steps, in parts.

`examples/pretrain.py`'s run (`pretrain` itself: data set, Trainer, logs, TensorBoard, monitors) takes turns with bare
steps of the same model, batch and token counts: forward, backward, clipping, AdamW, EMA and proximal step on images
and masks that lie ready. A kNN measurement of the recipe's size is timed alone and shared out over its knn_steps, as a
log is over its logging_steps.
"""

import argparse
import contextlib
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.records import table
from sparsejepa_hf.training import callbacks, pretraining, trainer
from sparsejepa_hf.training.command_line import parse_options
from sparsejepa_hf.training.monitors import KNNMonitor

from .harness.bare_step import BareStep
from .harness.records import ROOT, origin_line, parser, start, write
from .harness.timing import speedup, summary, synchronize


CONFIGS = ROOT / "examples" / "configs"
_TINY = ["hidden_size=24", "num_hidden_layers=1", "predictor_num_hidden_layers=1", "predictor_hidden_size=24"]
# The same on both sides, and so large that their difference is the clock's noise.
SAME = ("forward", "backward")
LOADING, AUGMENTATION, LOGGING, KNN = "data loading", "augmentation", "logging", "kNN"
STEP = "rest of the loop"


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to measure: `blocks` turns of `block` steps; `overrides` of the recipe as NAME=VALUE."""

    name: str
    recipe: str
    batch: int
    block: int
    blocks: int
    overrides: tuple[str, ...] = ()


def cases(effort: str, repeats: int | None) -> list[Case]:
    """The runs of an effort; `repeats` replaces their number of turns."""
    small, vit_tiny = ("width 96 x 3", "cifar100-cpu.yaml", 64), ("ViT-Tiny", "cifar100-vit-tiny.yaml", 256)
    if effort == "smoke":
        found = [Case("width 24 x 1", "cifar100-cpu.yaml", 8, 2, 2, tuple(_TINY))]
    elif effort == "short":
        found = [Case(*small, block=10, blocks=6), Case(*vit_tiny, block=2, blocks=2)]
    else:
        found = [Case(*small, block=20, blocks=20), Case(*vit_tiny, block=4, blocks=6)]
    return [case if repeats is None else dataclasses.replace(case, blocks=repeats) for case in found]


class Parts:
    """Exclusive seconds of named parts: what a part calls that is a part too is not counted twice."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[list[Any]] = []
        self._synchronize = synchronize

    def enter(self, name: str) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._open:
            self._credit(now)
        self._open.append([name, now])

    def leave(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        self._credit(now)
        self._open.pop()
        if self._open:
            self._open[-1][1] = now

    def _credit(self, now: float) -> None:
        name, since = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since

    def take(self) -> dict[str, float]:
        """Seconds since the last call; parts that are under way begin anew."""
        if self._open:
            now = time.perf_counter()
            self._credit(now)
            self._open[-1][1] = now
        seconds, self.seconds = self.seconds, {}
        return seconds

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted as `name`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return counted

    def watch(self, holder: Any, attribute: str, name: str) -> None:
        """Counts calls of an attribute of an object as `name`."""
        call = getattr(holder, attribute)
        counted = self.watched(name, call)
        # Learning rate schedules look for their mark on the optimizer's step.
        counted.__dict__.update(getattr(call, "__dict__", {}))
        setattr(holder, attribute, counted)


class TakeTurns(TrainerCallback):
    """Times blocks of the Trainer's steps, from a step's begin to the next step's, and bare steps between them."""

    def __init__(self, block: int, device: torch.device, parts: dict[str, Parts]) -> None:
        self.bare: Callable[[], Any] | None = None
        self.seconds: dict[str, list[float]] = {"run": [], "bare": []}
        self.parts: list[dict[str, dict[str, float]]] = []
        self.log_seconds: list[float] = []
        self._block, self._device, self._watch = block, device, parts
        self._begin: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The first block of either side warms up.
        if state.global_step == 0 or state.global_step % self._block:
            return
        if self._begin is not None:
            run, run_parts = self._clock() - self._begin, self._watch["run"].take()
            bare, bare_parts = self._bare_block(), self._watch["bare"].take()
            # A block's last step logs; that is shared out over the steps between two logs of the recipe.
            log = run_parts.pop(LOGGING, 0.0)
            self.log_seconds.append(log)
            self.seconds["run"].append((run - log) / self._block)
            self.seconds["bare"].append(bare / self._block)
            self.parts.append({"run": run_parts, "bare": bare_parts})
        else:
            self._bare_block()
        for parts in self._watch.values():
            parts.take()
        self._begin = self._clock()

    def _bare_block(self) -> float:
        begin = self._clock()
        for _ in range(self._block):
            self.bare()
        return self._clock() - begin

    def _clock(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


def watch_run(run: Any, parts: Parts) -> contextlib.ExitStack:
    """Counts the parts of a [`SparseJEPATrainer`]'s steps until the stack that is returned is closed."""
    stack = contextlib.ExitStack()
    for holder, attribute, name in (
        (run, "get_batch_samples", LOADING),
        (run, "_prepare_inputs", "to the device"),
        (run, "_clip_grad_norm", "clip"),
        (run, "floating_point_ops", "counting operations"),
        (run.mask_sampler, "sample_slots", "masks"),
        (run._losses, "add", "monitors"),
        (run._features, "add", "monitors"),
        (run._throughput, "add", "monitors"),
        (run.model, "forward", "forward"),
        (run.model, "train", "training mode"),
        (run.model, "zero_grad", "zero gradients"),
        (run.accelerator, "backward", "backward"),
        (run.callback_handler, "call_event", "callbacks"),
    ):
        parts.watch(holder, attribute, name)
    if run._augmentation is not None:
        parts.watch(run._augmentation, "forward", AUGMENTATION)
    _watch_logs(run, parts)
    for module, attribute, name in (
        (trainer, "normal", "latent noise"),
        (callbacks, "ema_update_", "EMA"),
        (callbacks, "group_lasso_step_", "proximal step"),
        (callbacks, "hold_scales_", "proximal step"),
    ):
        watched = parts.watched(name, getattr(module, attribute))
        stack.enter_context(mock.patch.object(module, attribute, watched))
    # Made later, at the run's begin, and wrapped by Accelerate.
    create = run._prepare_for_training

    def prepare(*args: Any, **kwargs: Any) -> Any:
        prepared = create(*args, **kwargs)
        parts.watch(run.optimizer, "step", "optimizer")
        parts.watch(run.lr_scheduler, "step", "learning rate")
        return prepared

    run._prepare_for_training = prepare
    return stack


def _watch_logs(run: Any, parts: Parts) -> None:
    plain, logging = run._maybe_log_save_evaluate, parts.watched(LOGGING, run._maybe_log_save_evaluate)

    def log(*args: Any, **kwargs: Any) -> Any:
        return (logging if run.control.should_log else plain)(*args, **kwargs)

    run._maybe_log_save_evaluate = log
    # Callbacks inside, TensorBoard's among them, belong to the log.
    call_event = run.callback_handler.call_event

    def unless_logging(event: str, *args: Any, **kwargs: Any) -> Any:
        if event == "on_log":
            return type(run.callback_handler).call_event(run.callback_handler, event, *args, **kwargs)
        return call_event(event, *args, **kwargs)

    run.callback_handler.call_event = unless_logging


def measure(case: Case, options: argparse.Namespace, watch_parts: bool) -> dict[str, Any]:
    """Runs `pretrain` on a case, and bare steps between its steps.

    Returns:
        Sizes, both sides' seconds a step, the parts' seconds a step, seconds a log and steps between logs; without
        `watch_parts` seconds of a kNN measurement too.
    """
    device = torch.device(options.device)
    # The run's log is timed apart in any case; it waits for what the steps before it left to the device.
    parts = {side: Parts(partial(synchronize, device)) for side in ("run", "bare")}
    turns = TakeTurns(case.block, device, parts)
    built: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def build(*args: Any, **kwargs: Any) -> Any:
            run = trainer.SparseJEPATrainer(*args, callbacks=[turns], **kwargs)
            turns.bare = bare_step(run, parts["bare"] if watch_parts else None)
            if watch_parts:
                stack.enter_context(watch_run(run, parts["run"]))
            else:
                _watch_logs(run, parts["run"])
            built.append(run)
            return run

        stack.enter_context(mock.patch.object(pretraining, "SparseJEPATrainer", build))
        pretraining.pretrain(*parse_options(pretraining.OPTION_TYPES, flags(case, options, folder)))
    return _result(case, built[0], turns) | ({} if watch_parts else {"knn_s": knn_seconds(built[0])})


def flags(case: Case, options: argparse.Namespace, folder: str) -> list[str]:
    """The command line of `examples/pretrain.py` for a case."""
    values: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": case.batch,
        # A warm-up block, the measured ones, and the step whose begin ends the last.
        "max_steps": case.block * (case.blocks + 1) + 1,
        "logging_steps": case.block,
        "save_strategy": "no",
        "eval_split": "none",
        "knn_steps": 0,
        "probe": "false",
        "disable_tqdm": "true",
        "seed": options.seed,
        "use_cpu": str(torch.device(options.device).type == "cpu").lower(),
        "dataset": options.dataset or "synthetic-scenes",
    }
    if options.dataset is None:
        values |= {"max_train_examples": 4 * case.batch, "label_column": "label"}
    if options.effort != "full":
        values["knn_max_examples"] = 100
    given = dict(override.split("=", 1) for override in case.overrides)
    return [str(CONFIGS / case.recipe), *(text for k, v in (values | given).items() for text in (f"--{k}", str(v)))]


def bare_step(run: Any, parts: Parts | None = None) -> Callable[[], Tensor]:
    """A bare step of a copy of the Trainer's model, at its batch and token counts, on images made here; with `parts`,
    its parts are counted."""
    config, args = run.model.config, run.args
    sampler: MultiBlockMaskSampler = run.mask_sampler
    masks = sampler(args.train_batch_size, 0, device=args.device)
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(args.train_batch_size, config.num_channels, *config.image_sides, generator=generator)
    watched = {} if parts is None else {"watched": parts.watched}
    step = BareStep(copy.deepcopy(run.model).to(args.device), learning_rate=args.learning_rate, **watched)
    return partial(step, images.to(args.device), *masks)


def knn_seconds(run: Any) -> float:
    """Seconds of one kNN measurement, with as many images as the run's options allow, made here."""
    args, count = run.args, run.args.knn_max_examples
    generator = torch.Generator().manual_seed(args.seed)
    sides = (run.model.config.num_channels, *run.model.config.image_sides)
    pixels = torch.randint(0, 256, (count, *sides), generator=generator, dtype=torch.uint8)
    images: Any = [{"pixel_values": image, "labels": index % 100} for index, image in enumerate(pixels)]
    monitor = KNNMonitor(images, images, run.normalize, lambda logs: None, run._throughput)
    # Past its first step a run does not measure when it begins.
    monitor.on_train_begin(args, TrainerState(global_step=1), None, run.model)
    synchronize(args.device)
    begin = time.perf_counter()
    monitor._measure(args, run.model)
    synchronize(args.device)
    return time.perf_counter() - begin


def _recipe(case: Case) -> Any:
    """The recipe's arguments of training."""
    recipe = [str(CONFIGS / case.recipe), "--output_dir", "unused"]
    return parse_options(pretraining.OPTION_TYPES, recipe)[2]


def _result(case: Case, run: Any, turns: TakeTurns) -> dict[str, Any]:
    sampler, recipe = run.mask_sampler, _recipe(case)
    log = statistics.median(turns.log_seconds) if turns.log_seconds else 0.0
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
        "logging_steps": int(recipe.logging_steps),
        "knn_steps": recipe.knn_steps,
        "knn_examples": run.args.knn_max_examples,
        "parts": _parts(case, turns, log / recipe.logging_steps),
    }


def _parts(case: Case, turns: TakeTurns, logging: float) -> dict[str, dict[str, float]]:
    """Median seconds a step of each part on either side."""
    found: dict[str, dict[str, float]] = {}
    for side in ("run", "bare"):
        names = {name for block in turns.parts for name in block[side]}
        for name in sorted(names):
            seconds = [block[side].get(name, 0.0) / case.block for block in turns.parts]
            found.setdefault(name, {})[f"{side}_s"] = statistics.median(seconds)
    if not found:
        return {}
    counted = [sum(block["run"].values()) / case.block for block in turns.parts]
    rest = [total - parts for total, parts in zip(turns.seconds["run"], counted, strict=True)]
    return found | {LOGGING: {"run_s": logging}, STEP: {"run_s": statistics.median(rest)}}


def _knn_a_step(case: dict[str, Any]) -> float:
    """Seconds of kNN, shared out over the steps between two measurements of the recipe."""
    return case["knn_s"] / case["knn_steps"]


def costs(case: dict[str, Any]) -> dict[str, float]:
    """What a run costs beyond bare steps, as shares of the bare step's time.

    `whole`: by the two sides' step times, logs and kNN included. `added`: the sum of the parts' differences and kNN,
    forward and backward left out, against the bare step of the run that watched the parts. `added_without_input`: the
    same without data loading and augmentation. `knn`: kNN alone, which is in all three.
    """
    bare, watched_bare = case["bare"]["median_s"], case["watched_bare_s"]
    differences = {n: p.get("run_s", 0.0) - p.get("bare_s", 0.0) for n, p in case["parts"].items()}
    added = {name: seconds for name, seconds in differences.items() if name not in SAME}
    own = sum(seconds for name, seconds in added.items() if name not in (LOADING, AUGMENTATION))
    knn = _knn_a_step(case)
    return {
        "whole": case["excess"] + (case["log_s"] / case["logging_steps"] + knn) / bare,
        "added": (sum(added.values()) + knn) / watched_bare,
        "added_without_input": (own + knn) / watched_bare,
        "knn": knn / bare,
    }


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    flags_ = parser(__doc__)
    flags_.add_argument("--dataset", default=None, help="images as of examples/pretrain.py; default: built-in scenes")
    options = flags_.parse_args(argv)
    origin = start(options)
    measured = []
    for case in cases(options.effort, options.repeats):
        # Watching costs microseconds a call, so the two sides' times come from a run of their own.
        whole, watched = (measure(case, options, watch_parts) for watch_parts in (False, True))
        measured.append({**whole, "parts": watched["parts"], "watched_bare_s": watched["bare"]["median_s"]})
    # Where the images lie on this machine says nothing.
    options.dataset = options.dataset and Path(options.dataset).name
    write("end_to_end", options, origin, {"cases": measured})


def render(record: dict[str, Any]) -> str:
    """Step times of both sides, the cost of the run in per cent, and its parts."""
    header = ["model", "batch", "tokens: all, context, targets", "run, ms a step", "bare step, ms", "images/s, run"]
    header += ["images/s, bare", "blocks", "lowest to highest cost of a block, logs and kNN apart"]
    header += ["cost, % of the bare step", "of its own parts", "without loading, augmentation", "of it kNN"]
    blocks = [table(header, [_row(case) for case in record["cases"]])]
    for case in record["cases"]:
        knn, images = {KNN: {"run_s": _knn_a_step(case)}}, f"{case['knn_examples']:,} images"
        rows = [_part_row(name, part, case) for name, part in _sorted(case["parts"] | knn)]
        blocks.append(
            f"{case['name']}, batch {case['batch']}: parts of a step; kNN: {images} among {images}, "
            f"{case['knn_s']:.1f} s every {case['knn_steps']:,} steps"
        )
        blocks.append(table(["part", "run, ms", "bare step, ms", "difference, % of the bare step"], rows))
    blocks.append(
        "A run is `pretrain` with logs, TensorBoard and monitors; logging and kNN are shared out over the recipe's "
        "logging_steps and knn_steps; checkpoints, evaluation at the end, the start and decoding into memory are left "
        "out. Cost: the median over blocks of steps; of its own parts: the sum of the differences below, forward and "
        "backward left out; they come from a run of their own, beside its own bare steps. " + origin_line(record)
    )
    return "\n\n".join(blocks)


def _sorted(parts: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    return sorted(parts.items(), key=lambda item: -max(item[1].values()))


def _row(case: dict[str, Any]) -> list[str]:
    blocks, each = case["target_patches"]
    log = case["log_s"] / case["logging_steps"]
    bare, found = case["bare"]["median_s"], costs(case)
    run = case["run"]["median_s"] + log + _knn_a_step(case)
    return [
        f"{case['name']} ({case['recipe']})",
        str(case["batch"]),
        f"{case['patches']}, {case['context_patches']}, {blocks} x {each}",
        f"{1e3 * run:.1f}",
        f"{1e3 * bare:.1f}",
        f"{case['batch'] / run:.1f}",
        f"{case['batch'] / bare:.1f}",
        f"{len(case['excess_of_blocks'])} × {case['steps_a_block']} steps",
        f"{100 * min(case['excess_of_blocks']):+.1f} to {100 * max(case['excess_of_blocks']):+.1f} %",
        *(f"{100 * found[name]:+.1f} %" for name in ("whole", "added", "added_without_input", "knn")),
    ]


def _part_row(name: str, part: dict[str, float], case: dict[str, Any]) -> list[str]:
    run, bare = part.get("run_s", 0.0), part.get("bare_s", 0.0)
    share = 100 * (run - bare) / case["watched_bare_s"]
    return [name, f"{1e3 * run:.3f}", f"{1e3 * bare:.3f}", f"{share:+.2f}"]


if __name__ == "__main__":
    main()
