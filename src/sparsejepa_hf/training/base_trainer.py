# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What pre-training and fine-tuning share of a Trainer: images, their places in a step, resuming, finite losses."""

import inspect
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from accelerate.utils import gather_object
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy
from transformers.utils import logging

from ..counter_rng import stream_keys
from ..data import BatchAugmentation, StreamingImageDataset, collate_images, normalize_images
from ..image_processing_sparsejepa import image_processor
from ..publishing import write_model_card
from .arguments import ImageTrainingArguments
from .callbacks import TrainingCallback
from .checkpoints import (
    choose_checkpoint,
    clear_staging,
    delete_oldest,
    require_best,
    resume_wish,
    seal,
    set_newer_aside,
    staging_folder,
    step_of,
    written_aside,
)
from .ema import local_shard
from .options import write_options
from .precision import precision_kept, require_full_precision, warn_of_slow_bf16
from .preemption import shield_workers
from .processes import explain_silence, set_up_sharding
from .resumption import (
    Record,
    changes_until,
    describe_data,
    keeps_changed_options,
    require_same_run,
    run_record,
    write_record,
)


logger = logging.get_logger(__name__)

AUGMENTATION_STREAM = 2
# A step after every other.
_NEVER = 2**62
_GO_ON = (
    "The last checkpoint, if there is one, is from before: resume from it with another value, and name the option in "
    "resume_with_changes."
)


class NonFiniteLossError(FloatingPointError):
    """The training loss, or a weight, became NaN or infinite."""


class ImageTrainer(Trainer):
    """transformers' `Trainer` for images that are augmented and normalised on the device.

    The augmentation of a sample depends on (seed, optimizer step, place in the global batch) alone: not on the number
    of processes or accumulation steps, nor on an interruption. A loss or a weight that is not finite ends the run
    before it is saved.

    Arguments stand in `Trainer`'s order.

    Args:
        model: an instance of `model_class`; or leave it out and give `model_init`.
        args: an instance of `arguments_class`; default: one that writes into "tmp_trainer", as in `Trainer`.
        data_collator: stacks examples; default: the function of [`collate_images`] or, in pre-training,
            [`collate_pixels`].
        train_dataset: examples {"pixel_values": uint8 (C, H, W)}, which are augmented and normalised here, or float
            (C, H, W), which are used as they are. [`collate_images`] says what else an example can be.
        eval_dataset: held-out examples, never augmented; none is left out of an evaluation.
        processing_class: image processor, saved with the checkpoint; its `image_mean` and `image_std` normalise.
        model_init: makes a new model for each `train()` and each trial of `hyperparameter_search`. What depends on the
            model and its options, such as `augmentation`, is then made anew too.
        kwargs: as for `Trainer`.

    Raises:
        TypeError: the model or `args` is of another class.
        ValueError: arguments do not fit together, or a data set is not one of images.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    arguments_class: ClassVar[type[ImageTrainingArguments]]
    default_collator = staticmethod(collate_images)
    train_dataset: Any
    card_kind: ClassVar[str]
    # A command's option dataclasses, `args` among them: written when training begins, and compared at a resume.
    run_options: Sequence[Any] = ()
    # Whether a loader's workers leave it to this process to end them, as it has to save first.
    shields_workers = False
    # What the model card was told of the run; replaced, never changed.
    _told: Mapping[str, Any] = {}
    # Whether a checkpoint is being written aside.
    _is_staging = False
    # The loss is a mean over the batch.
    loss_is_scaled_for_ga = False
    non_finite_advice = "Try a smaller learning_rate, a longer warmup_steps, or fp32 instead of fp16."

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: ImageTrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Tensor]] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.arguments_class("tmp_trainer") if args is None else args
        _require_kind("args", args, self.arguments_class)
        if model is not None:
            _require_kind("model", model, self.model_class)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                f"compute_loss_func is given, but {type(self).__name__} makes its own loss; expected none. Override "
                "compute_loss in a subclass instead."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs; expected one process a GPU. Start with `accelerate launch` or "
                "`python -m torch.distributed.run`, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        heldout = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in (train_dataset, *heldout):
            _require_pixel_values(dataset)
        if isinstance(train_dataset, StreamingImageDataset) and not train_dataset.repeat:
            raise ValueError(
                "The stream given as train_dataset ends, and a run resumed after its end would not find its place "
                "again. Build it with repeat=True; max_steps ends the run."
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or self.default_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            **kwargs,
        )
        self._makes_processor = processing_class is None
        self._slot_step, self._next_slot = -1, 0
        self._first_bad_step = torch.tensor(_NEVER, device=args.device)
        self._changed_options: dict[str, Any] = {}
        self._changes: list[dict[str, Any]] = []
        self._data_identity: tuple[Any, dict[str, Any]] | None = None
        self._operations: dict[int, int] = {}
        self.fit_to_model()

    def create_accelerator_and_postprocess(self) -> None:
        """As in `Trainer`, and with FSDP2 on CPUs too."""
        super().create_accelerator_and_postprocess()
        set_up_sharding(self.accelerator, self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def fit_to_model(self) -> None:
        """Makes what depends on the model and its options: at first, and again where `model_init` makes the model."""
        config = self.model.config
        if self._makes_processor:
            half = [0.5] * config.num_channels
            self.processing_class = image_processor(config.image_sides, half, half)
            self.callback_handler.processing_class = self.processing_class
        for name in ("image_mean", "image_std"):
            values = getattr(self.processing_class, name, None)
            if not isinstance(values, Sequence) or len(values) != config.num_channels:
                raise ValueError(
                    f"The image processor's {name} is {values}, and the model's num_channels {config.num_channels}; "
                    "expected one number a channel. Give processing_class=image_processor(config.image_sides, "
                    "image_mean, image_std)."
                )
        self.augmentation = self._build_augmentation()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in `Trainer`, for models of `model_class` alone."""
        model = super().call_model_init(trial)
        _require_kind("The model that model_init makes", model, self.model_class)
        return model

    def _build_augmentation(self) -> BatchAugmentation:
        args = self.args
        return BatchAugmentation(
            self.model.config.image_sides,
            self.processing_class.image_mean,
            self.processing_class.image_std,
            crop=args.crop,
            crop_padding=args.crop_padding,
            crop_scale=tuple(args.crop_scale),
            horizontal_flip=args.horizontal_flip,
            color_jitter=args.color_jitter,
        )

    # ---- images ----

    def take_slots(self, batch_size: int, device: torch.device) -> Tensor:
        """Places of this process's next samples in the global batch of the step under way, int64 (B,)."""
        if self.state.global_step != self._slot_step:
            self._slot_step, self._next_slot = self.state.global_step, 0
        first = self._next_slot + self.args.process_index * batch_size
        self._next_slot += batch_size * self.args.world_size
        return torch.arange(first, first + batch_size, device=device)

    def augment(self, pixel_values: Tensor, slots: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> the model's input, augmented by each sample's place; floats are left as they are."""
        if pixel_values.is_floating_point():
            return pixel_values
        keys = stream_keys(self.args.seed, self.state.global_step, slots, AUGMENTATION_STREAM)
        return self.augmentation(pixel_values, keys)

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> the model's input, without augmentation; floats are left as they are."""
        if pixel_values.is_floating_point():
            return pixel_values
        return normalize_images(pixel_values, self.processing_class.image_mean, self.processing_class.image_std)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """As in `Trainer`, but `dataloader_drop_last` is for training alone: evaluations and tests get the last,
        smaller batch too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        if self.shields_workers:
            shield_workers(loader)
        return loader

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in `Trainer`, but `bf16_full_eval` and `fp16_full_eval` leave the weights as they were, to be saved or
        trained on."""
        with precision_kept(self.model):
            return super().evaluation_loop(*args, **kwargs)

    # ---- one step ----

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """What the optimizer is made of; each trainable parameter of `model` is in one group."""
        raise NotImplementedError

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As in `Trainer`, with the groups of `parameter_groups`."""
        if self.optimizer is None:
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
            # Some of transformers' optimizers bring their own groups, or take the whole model; those are left to it.
            takes_groups = isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)
            if takes_groups and not {"params", "model", "optimizer_dict"} & options.keys():
                groups = self.parameter_groups(self.model if model is None else model)
                self.optimizer: Optimizer | None = optimizer_class(groups, **options)
        return super().create_optimizer(model)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """As in `Trainer`, which walks through the whole model at every step; counted once a batch size here."""
        elements = inputs["pixel_values"].numel()
        if elements not in self._operations:
            self._operations[elements] = super().floating_point_ops(inputs)
        return self._operations[elements]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; the logs of training steps also carry what the callbacks have to say."""
        if "loss" in logs:
            self._require_finite(logs["loss"])
            for callback in self._training_callbacks():
                logs = {**logs, **callback.metrics(self._average)}
        super().log(logs, start_time)

    def _training_callbacks(self) -> list[TrainingCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, TrainingCallback)]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`; the first step whose loss is not finite is noted on the device, so that nothing waits."""
        loss, first = super().training_step(*args, **kwargs), self._first_bad_step
        self._first_bad_step = torch.where(loss.isfinite(), first, first.clamp_max(self.state.global_step + 1))
        return loss

    # ---- a run ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in `Trainer`, but a run goes on from a whole checkpoint alone.

        Checkpoints of later steps, and those that are not whole, are set aside under another name; all of them, if the
        run begins. Of a resumed run the metrics are those since `resumed_from_step`, which is one of them.

        Args:
            resume_from_checkpoint: a folder; True: the newest whole checkpoint in `output_dir`; "auto": the same if
                there is one, and else the run begins.
            kwargs: as for `Trainer`.

        Raises:
            LostProcessError: another process ended, or did not answer within `ddp_timeout` seconds.
            NonFiniteLossError: the loss is NaN or infinite.
            ValueError: there is no checkpoint to resume from, it is not whole, it does not fit the model, there are
                too few images, or weights to train are held in half precision.
        """
        with explain_silence(self):
            choice = self._choose_checkpoint(resume_wish(resume_from_checkpoint))
            first = 0
            if choice is not None:
                self._compare_with_run(choice)
                # The folder may be deleted as the oldest.
                first = step_of(choice)
            if self.args.should_save:
                set_newer_aside(self.args.output_dir, choice)
            self.accelerator.wait_for_everyone()
            on_cpu = self.args.device.type == "cpu"
            if on_cpu and self.accelerator.mixed_precision == "bf16" and self.is_world_process_zero():
                warn_of_slow_bf16()
            output = super().train(resume_from_checkpoint=choice, **kwargs)
            # Each process knows its own mean; all must judge the same one.
            loss = torch.tensor(output.training_loss, device=self.args.device)
            self._require_finite(float(self._average(loss)))
        if choice is not None:
            output.metrics["resumed_from_step"] = first
            if first >= output.global_step:
                # The run was finished: a mean and a speed of no step are none.
                for name in ("train_loss", "train_samples_per_second", "train_steps_per_second"):
                    output.metrics.pop(name, None)
        return output

    def _choose_checkpoint(self, wish: str | bool | None) -> str | None:
        """The same on all processes: those that save look, and tell the others, also of what they refuse."""
        chosen: str | None = None
        refusal: str | None = None
        if self.args.should_save:
            try:
                chosen = choose_checkpoint(self.args.output_dir, wish)
            except ValueError as error:
                refusal = str(error)
        told = [(self.args.should_save, chosen, refusal)]
        told = gather_object(told) if self.args.world_size > 1 else told
        if refusals := [words for _, _, words in told if words is not None]:
            raise ValueError(refusals[0])
        choices = {choice for saves, choice, _ in told if saves}
        if len(choices) > 1:
            raise ValueError(
                f"The nodes would go on from different checkpoints: {', '.join(sorted(map(str, choices)))}. Name one "
                "that is whole on each of them."
            )
        return choices.pop()

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        # A run begins here, also one that begins again with a smaller batch (`auto_find_batch_size`).
        if self.model_init is not None:
            self.fit_to_model()
        require_full_precision(self.model.named_parameters())
        self._first_bad_step = torch.tensor(_NEVER, device=self.args.device)
        self._require_a_batch(self._train_batch_size if batch_size is None else batch_size)
        self._slot_step = -1
        self._operations.clear()
        # No earlier: a resume that is refused changes nothing.
        if self.run_options and self.is_world_process_zero():
            # Of an earlier end: until the next there are none.
            Path(self.args.output_dir, f"{self.card_kind}_results.json").unlink(missing_ok=True)
            write_options(self.args.output_dir, *self.run_options, name=f"{self.card_kind}_options.yaml")
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _require_a_batch(self, batch_size: int) -> None:
        wanted = batch_size * self.args.world_size
        if self.args.dataloader_drop_last and hasattr(self.train_dataset, "__len__"):
            if len(self.train_dataset) < wanted:
                raise ValueError(
                    f"The training data has {len(self.train_dataset)} images, less than one batch of {wanted} over "
                    "all processes, so nothing would be trained. Lower per_device_train_batch_size, or set "
                    "dataloader_drop_last to false."
                )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A state that was resumed tells the batch of the run before, and when that run logged, saved and evaluated.
        self.state.train_batch_size = self._train_batch_size
        self.state.compute_steps(self.args, self.state.max_steps)
        # A finished run that is resumed amid an epoch would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- what the run was started with ----

    def _run_record(self) -> Record:
        if self._data_identity is None or self._data_identity[0] is not self.train_dataset:
            self._data_identity = self.train_dataset, describe_data(self.train_dataset, self.data_collator)
        return run_record(self, self._data_identity[1])

    def _write_run_record(self, folder: str) -> None:
        """Writes into a checkpoint what the run was started with."""
        write_record(folder, self._run_record(), self._changes)

    def _compare_with_run(self, folder: str) -> None:
        """Refuses to go on from a checkpoint of a run that was started with other options than those allowed."""
        self._changed_options = require_same_run(folder, self._run_record(), self.args.resume_with_changes or ())
        self._changes = changes_until(folder, self._changed_options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with keeps_changed_options(self, self._changed_options):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        if self.args.should_save:
            require_best(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: missing {list(load_result.missing_keys)}, unexpected "
                f"{list(load_result.unexpected_keys)}. Resume with the configuration that the run began with."
            )

    def save_run(self) -> None:
        """Saves the model and the trainer's state into `output_dir`, and pushes nothing yet: see [`finish`]."""
        with explain_silence(self):
            self.save_model(_internal_call=True)
            self.save_state()

    def finish(self) -> None:
        """Pushes `output_dir`, if `push_to_hub` is set, and ends the processes' work together.

        To be called last, once card and results are written: what is pushed is all that is there.
        """
        if self.args.push_to_hub:
            self.push_to_hub()
        # In this order: left to the interpreter's exit, gloo's threads sometimes abort a process.
        with explain_silence(self):
            self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    # ---- the model card ----

    def describe_run(
        self,
        *,
        license: str | None = None,
        dataset: str | list[str] | None = None,
        results: Mapping[str, Mapping[str, float]] | None = None,
        comparison: Mapping[str, Mapping[str, float]] | None = None,
        split: str | None = None,
        finetuned_from: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Remembers what the trainer cannot know of the run, for every model card that is written from here on.

        Args:
            license: as the Hub calls it.
            dataset: the training data: ids on the Hub, names of built-in data, folders, or words for them.
            results: of fine-tuning: accuracies of this model, by split.
            comparison: of pre-training: the accuracies of [`compare_features`].
            split: of `dataset` that `comparison` was measured on.
            finetuned_from: the model that this run began from: an id on the Hub, or a folder.
            origin: what [`provenance`] said before the run; default: what it says now.
        """
        given = {"license": license, "dataset": dataset, "results": results or comparison, "split": split}
        given |= {"base_model": finetuned_from, "origin": origin}
        self._told = {**self._told, **{name: value for name, value in given.items() if value is not None}}

    def create_model_card(
        self, language: str | None = None, license: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Writes README.md, the model card, into the output folder, from the run itself.

        Args:
            language: taken by `Trainer`'s method of this name, and not used, like `args`.
            license: as in [`describe_run`], which is given this and those of `kwargs` that it takes.
            kwargs: of both methods.
        """
        known = inspect.signature(self.describe_run).parameters
        self.describe_run(license=license, **{name: value for name, value in kwargs.items() if name in known})
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, kind=self.card_kind, config=self.model.config, **self.card_facts())

    def card_facts(self) -> dict[str, Any]:
        """What [`write_model_card`] is told of the run."""
        return {"name": self.hub_model_id, "training": self.args, "state": self.state, **self._told}

    # ---- finite losses and weights ----

    def _average(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(values, reduction="mean")

    def loss_parts(self) -> dict[str, Tensor]:
        """The parts of the loss, where it has parts: of this process's first batch where one was not finite, or of the
        last batch."""
        return {}

    def _require_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        gather = self.accelerator.gather
        steps = gather(self._first_bad_step[None])
        # The process that saw it first knows the parts.
        process, first = int(steps.argmin()), int(steps.min())
        parts = {name: float(gather(value[None])[process]) for name, value in self.loss_parts().items()}
        since = "" if first == _NEVER else f", first at step {first}"
        which = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
        raise NonFiniteLossError(
            f"The loss is {loss} at step {self.state.global_step}{since}{f' ({which})' if parts else ''}; expected a "
            f"finite number. {self.non_finite_advice} {_GO_ON}"
        )

    def _require_finite_weights(self) -> None:
        # A finite loss can still have had a gradient that was not.
        weights = [local_shard(parameter.detach()) for parameter in self.model.parameters()]
        finite = torch.stack(torch._foreach_norm(weights)).isfinite().all().float()
        if float(self._average(finite)) < 1.0:
            raise NonFiniteLossError(
                f"The weights are no longer finite at step {self.state.global_step}, so they are not saved. "
                f"{self.non_finite_advice} {_GO_ON}"
            )

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        # `Trainer` asks for it once a save, and puts all that it writes into a folder in there.
        run_dir = super()._get_output_dir(*args, **kwargs)
        return staging_folder(run_dir) if self._is_staging else run_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, but the checkpoint is written aside, and put in place once every process has written."""
        # A checkpoint with NaN weights is worse than none; the weights are looked at by save_model.
        self._require_finite(float(self._average(self._tr_loss)))
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = os.path.join(staging_folder(run_dir), name), os.path.join(run_dir, name)
        if self.args.should_save:
            clear_staging(run_dir)
        self.accelerator.wait_for_everyone()
        self._is_staging = True
        try:
            super()._save_checkpoint(model, trial, *args, **kwargs)
        finally:
            self._is_staging = False
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == staged:
            self.state.best_model_checkpoint = final
        if self.args.should_save:
            self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
            self._write_run_record(staged)
            seal(staged, final)
        self.accelerator.wait_for_everyone()
        # `Trainer` has done both already, but not to what lies elsewhere.
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if self.args.should_save:
            delete_oldest(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, if the weights are finite; each file is whole, or as it was before."""
        self._require_finite_weights()
        super().save_model(*args, **kwargs)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        folder = output_dir or self.args.output_dir
        if not self.args.should_save:
            return super()._save(folder, *args, **kwargs)
        with written_aside(folder) as aside:
            super()._save(aside, *args, **kwargs)
            # A pickle that nothing reads.
            Path(aside, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def save_state(self) -> None:
        """As in `Trainer`; the file is whole, or as it was before."""
        if self.is_world_process_zero():
            with written_aside(self.args.output_dir) as aside:
                self.state.save_to_json(os.path.join(aside, TRAINER_STATE_NAME))

    def init_hf_repo(self, token: str | None = None, **kwargs: Any) -> None:
        """As in `Trainer`, and with the branch `hub_revision`: else a push to a new one would fail after training."""
        super().init_hf_repo(token, **kwargs)
        if self.args.hub_revision is not None and self.is_world_process_zero():
            token = token or self.args.hub_token
            HfApi().create_branch(self.hub_model_id, branch=self.args.hub_revision, token=token, exist_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in `Trainer`, but with the code that the weights need and a card, and from a copy: what is uploaded in
        the background must not change meanwhile, as logs do."""
        if self._is_staging or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        before = self.push_in_progress
        if before is not None and not before.is_done() and not self.args.hub_always_push:
            return
        earlier = [] if before is None else list(before.jobs)
        output_dir = self.args.output_dir
        # A push of all that is in output_dir leaves out what begins with a low line.
        copy = tempfile.mkdtemp(prefix="_push-", dir=output_dir)
        for file in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(file, copy)
        self.args.output_dir = copy
        try:
            self.create_model_card()
            super()._push_from_checkpoint(checkpoint_folder)
        finally:
            self.args.output_dir = output_dir
        jobs = [job for job in self.push_in_progress.jobs if job not in earlier]

        def end(job: Future) -> None:
            if job.exception() is not None:
                logger.warning(f"A step was not pushed to the Hub, and training goes on: {job.exception()}")
            if all(job.done() for job in jobs):
                shutil.rmtree(copy, ignore_errors=True)

        for job in jobs:
            job.add_done_callback(end)


def _require_kind(name: str, value: Any, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{name} is a {type(value).__name__}; expected {expected.__name__}.")


def _require_pixel_values(dataset: Any) -> None:
    columns = getattr(dataset, "column_names", None)
    # What `with_transform` makes of its columns is seen in a batch.
    is_transformed = isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
    if columns is not None and "pixel_values" not in columns and not is_transformed:
        raise ValueError(
            f"The data set given has the columns {columns}; expected examples with 'pixel_values'. Wrap it: "
            "build_image_dataset(load_image_dataset(dataset), config.image_size); or make them by with_transform."
        )
