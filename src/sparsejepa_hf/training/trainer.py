# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The Trainer that pre-trains SparseJEPA."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import Trainer, ViTImageProcessor
from transformers.image_utils import PILImageResampling

from ..counter_rng import normal, stream_keys
from ..data import BatchAugmentation, ResidentImages, StreamingImageDataset, collate_images, normalize_images
from ..masking import MultiBlockMaskSampler
from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPAForPreTrainingOutput
from . import callbacks as steps
from .arguments import SparseJEPATrainingArguments
from .checkpoints import last_complete_checkpoint
from .ema import full_tensor, local_shard
from .model_card import write_model_card
from .monitors import (
    CollapseGuard,
    FeatureWindow,
    KNNMonitor,
    LossMeter,
    NonFiniteLossError,
    Throughput,
    generator_statistics,
    group_weight_statistics,
    optimality_statistics,
)
from .precision import warn_of_slow_bf16
from .proximal import require_known_metric


AUGMENTATION_STREAM = 2
NOISE_STREAM = 3
# Evaluation draws its masks at a step of its own, so that they are the same at every evaluation.
EVALUATION_STEP = -1

_NON_FINITE_ADVICE = (
    "Try a smaller learning_rate, a longer warmup_steps, max_grad_norm=1.0, smaller kl_weight and sparsity_weight, or "
    "fp32 instead of fp16."
)


class SparseJEPATrainer(Trainer):
    """transformers' `Trainer` for [`SparseJEPAForPreTraining`].

    It samples masks and augments on the device, composes the loss with warm-ups of λ and β, updates the target encoder
    and thresholds W once per optimizer step, and logs every part of the loss beside what tells a healthy run.

    Masks, augmentation and latent noise of a sample depend on (seed, optimizer step, place in the global batch) alone:
    not on the number of processes or accumulation steps, nor on an interruption.

    Args:
        model: [`SparseJEPAForPreTraining`].
        args: [`SparseJEPATrainingArguments`].
        train_dataset: examples {"pixel_values": uint8 (C, S, S)}, which are augmented and normalised here, or float
            (C, H, W), which are used as they are. `labels` are never used for training.
        eval_dataset: held-out examples; their loss is measured without augmentation.
        processing_class: image processor, saved with the checkpoint; its `image_mean` and `image_std` normalise.
        knn_datasets: (bank, held-out) labelled data sets for the kNN monitor, used if `knn_steps` > 0.
        kwargs: as for `Trainer`.

    Raises:
        ValueError: if the masks cannot exist on the model's grid, or arguments do not fit together.
    """

    # The loss is a mean over the batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: SparseJEPAForPreTraining,
        args: SparseJEPATrainingArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: Any | None = None,
        knn_datasets: tuple[Dataset, Dataset] | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(model, SparseJEPAForPreTraining):
            raise TypeError(f"model is a {type(model).__name__}; expected SparseJEPAForPreTraining.")
        if not isinstance(args, SparseJEPATrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}; expected SparseJEPATrainingArguments.")
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs; expected one process a GPU. Start with `accelerate launch` or "
                "`python -m torch.distributed.run`, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        for dataset in (train_dataset, eval_dataset):
            _require_pixel_values(dataset)
        if isinstance(train_dataset, StreamingImageDataset) and not train_dataset.repeat:
            raise ValueError(
                "The stream given as train_dataset ends, and a run resumed after its end would not find its place "
                "again. Build it with repeat=True; max_steps ends the run."
            )
        if processing_class is None:
            processing_class = image_processor(model.config.image_sides)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or collate_images,
            **kwargs,
        )
        self.mask_sampler = MultiBlockMaskSampler(
            model.config.grid_size,
            num_target_blocks=args.num_target_blocks,
            num_target_patches=args.num_target_patches,
            num_context_patches=args.num_context_patches,
            target_aspect_ratio=tuple(args.target_aspect_ratio),
            seed=args.seed,
        )
        self._augmentation = self._build_augmentation()
        self._losses, self._features = LossMeter(), FeatureWindow(args.monitor_samples)
        self._throughput, self._guard = Throughput(), CollapseGuard(args)
        self._slot_step, self._next_slot, self._evaluation_slot = -1, 0, 0
        self._operations: dict[int, int] = {}
        self._resident = self._resident_images(train_dataset, data_collator)
        self.add_callback(steps.OptimizerStepCallback(self._keeps_autocast_weights()))
        self._add_knn_monitor(knn_datasets)

    def _keeps_autocast_weights(self) -> bool:
        """FSDP and DeepSpeed hold weights in pieces or cast them themselves; the compiler has casts of its own."""
        compiles = self.args.torch_compile or self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
        is_plain = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or compiles)
        return is_plain and self.accelerator.mixed_precision == "bf16"

    def _build_augmentation(self) -> BatchAugmentation | None:
        sides = self.model.config.image_sides
        if sides[0] != sides[1]:
            # Only square uint8 images are augmented here; float images of any shape are used as they are.
            return None
        args = self.args
        return BatchAugmentation(
            sides[0],
            self.processing_class.image_mean,
            self.processing_class.image_std,
            crop=args.crop,
            crop_padding=args.crop_padding,
            crop_scale=tuple(args.crop_scale),
            horizontal_flip=args.horizontal_flip,
            color_jitter=args.color_jitter,
        )

    def _resident_images(self, dataset: Dataset | None, data_collator: Any) -> ResidentImages | None:
        if not self.args.data_on_device or dataset is None:
            return None
        if data_collator is not None:
            raise ValueError(
                f"data_on_device is true and a data_collator is given ({data_collator}), but images on the device are "
                "not collated; expected one or the other. Leave out data_collator, or set data_on_device to false."
            )
        return ResidentImages(dataset, self.args.device)

    def _add_knn_monitor(self, knn_datasets: tuple[Dataset, Dataset] | None) -> None:
        if self.args.knn_steps and knn_datasets is None:
            raise ValueError(
                f"knn_steps is {self.args.knn_steps}, but there are no labelled data sets; pass knn_datasets=(bank, "
                "held-out), or knn_steps=0."
            )
        if self.args.knn_steps:
            self.add_callback(KNNMonitor(*knn_datasets, self.normalize, self.log, self._throughput))

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> the model's input, without augmentation."""
        return normalize_images(pixel_values, self.processing_class.image_mean, self.processing_class.image_std)

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SparseJEPAForPreTrainingOutput]:
        """L of a batch, with masks, augmentation and noise drawn here and the step's λ and β."""
        config, step, total = self.model.config, self.state.global_step, self.state.max_steps
        training = model.training
        if not training:
            # With the full λ and β, so that evaluations compare.
            outputs = model(**self._evaluation_views(inputs))
        else:
            device = inputs["pixel_values"].device
            kl_weight = steps.kl_weight(self.args, config.kl_weight, step, total)
            sparsity_weight = steps.sparsity_weight(self.args, config.sparsity_weight, step, total)
            outputs = model(
                **self._training_views(inputs, step),
                kl_weight=self._weight(kl_weight, device),
                sparsity_weight=self._weight(sparsity_weight, device),
            )
            self._losses.add(outputs)
            self._features.add(outputs)
            self._throughput.add(len(inputs["pixel_values"]) * self.args.world_size)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _weight(self, value: float, device: torch.device) -> float | Tensor:
        """λ or β as the model takes it."""
        if not self.args.torch_compile:
            return value
        # A number is compiled in, so a warm-up would compile twice. Filled on the device: copying would wait for it.
        return torch.full((), value, dtype=torch.float32, device=device)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """As in `Trainer`, which walks through the whole model at every step; counted once a batch size here."""
        elements = inputs["pixel_values"].numel()
        if elements not in self._operations:
            self._operations[elements] = super().floating_point_ops(inputs)
        return self._operations[elements]

    def _training_views(self, inputs: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        pixel_values = inputs["pixel_values"]
        slots = self._take_slots(len(pixel_values), step, pixel_values.device)
        seed = self.args.seed
        if not pixel_values.is_floating_point():
            self._require_square()
            pixel_values = self._augmentation(pixel_values, stream_keys(seed, step, slots, AUGMENTATION_STREAM))
        context_mask, target_mask = self.mask_sampler.sample_slots(slots, step)
        views = {"pixel_values": pixel_values, "context_mask": context_mask, "target_mask": target_mask}
        if self.model.config.use_grouping and self.model.config.variational:
            tokens = target_mask if self.model.config.latent_position == "predictor" else context_mask
            shape = (*tokens.shape[1:], self.model.config.num_latents)
            noise = normal(stream_keys(seed, step, slots, NOISE_STREAM), math.prod(shape))
            views["latent_noise"] = noise.view(-1, *shape)
        return views

    def _evaluation_views(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        pixel_values = inputs["pixel_values"]
        batch = len(pixel_values)
        first = self._evaluation_slot + self.args.process_index * batch
        self._evaluation_slot += batch * self.args.world_size
        slots = torch.arange(first, first + batch, device=pixel_values.device)
        context_mask, target_mask = self.mask_sampler.sample_slots(slots, EVALUATION_STEP)
        if not pixel_values.is_floating_point():
            pixel_values = self.normalize(pixel_values)
        return {"pixel_values": pixel_values, "context_mask": context_mask, "target_mask": target_mask}

    def _take_slots(self, batch_size: int, step: int, device: torch.device) -> Tensor:
        """Places of this process's samples in the step's global batch, (B,) int64."""
        if step != self._slot_step:
            self._slot_step, self._next_slot = step, 0
        first = self._next_slot + self.args.process_index * batch_size
        self._next_slot += batch_size * self.args.world_size
        return torch.arange(first, first + batch_size, device=device)

    def _require_square(self) -> None:
        if self._augmentation is None:
            raise ValueError(
                f"The model's image_size is {self.model.config.image_size}, but uint8 images are augmented as squares "
                "only. Give the trainer normalised float images instead."
            )

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; with `data_on_device` its batches are places, for the same images in the same order."""
        if self._resident is None:
            return super().get_train_dataloader()
        given = self.train_dataset, self.data_collator
        self.train_dataset, self.data_collator = self._resident, default_collate
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = given

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Any]:
        """As in `Trainer`; images that lie on the device are gathered here."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if self._resident is not None:
            batches = [{"pixel_values": self._resident.gather(batch["places"])} for batch in batches]
        return batches, count

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As in `Trainer`; every held-out image counts, also those of the last, smaller batch."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        """As in `Trainer`; every evaluation uses the same masks."""
        self._evaluation_slot = 0
        self._throughput.pause()
        output = super().evaluation_loop(*args, **kwargs)
        self._throughput.resume()
        return output

    # ---- optimizer ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of linear maps, patch projection and generators; no biases, norms, positions, tokens or W."""
        undecayed = ("mask_token", "group_weight", "generator_in_bias", "generator_out_bias")
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in undecayed
        ]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """As in `Trainer`, with W in a parameter group of its own."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if exists:
            self._require_own_group(optimizer)
            return optimizer
        decayed = set(self.get_decay_parameter_names(self.model))
        decayed = {id(parameter) for name, parameter in self.model.named_parameters() if name in decayed}
        for group in optimizer.param_groups:
            # Not by its weight decay, which may start at zero and rise.
            group[steps.DECAYED] = all(id(parameter) in decayed for parameter in group["params"])
        self._separate_group_weight(optimizer)
        return optimizer

    def _separate_group_weight(self, optimizer: Optimizer) -> None:
        names = {id(p): name for name, p in self.model.named_parameters()}
        for group in optimizer.param_groups:
            held = [p for p in group["params"] if names.get(id(p), "").endswith("grouping.group_weight")]
            if held:
                group["params"] = [p for p in group["params"] if p is not held[0]]
                rate = self.args.group_learning_rate
                own = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
                own |= {"params": held, "lr": group["lr"] if rate is None else rate, "weight_decay": 0.0}
                own[steps.GROUP_WEIGHT] = True
                optimizer.add_param_group(own)
                if self._takes_proximal_steps:
                    require_known_metric(optimizer)
                return

    @property
    def _takes_proximal_steps(self) -> bool:
        config = self.model.config
        return config.use_grouping and config.sparsity_mode == "proximal" and config.sparsity_weight > 0

    def _require_own_group(self, optimizer: Optimizer) -> None:
        """A given optimizer has no group for W, so its proximal step and the weight decay schedule would be lost."""
        if any(steps.DECAYED in group for group in optimizer.param_groups):
            # Made here, by an earlier train().
            return
        if self._takes_proximal_steps:
            raise ValueError(
                "The optimizer given has no parameter group of its own for W, which the proximal step needs. Leave "
                "`optimizers` out (choose one with the argument `optim`), or use sparsity_mode='penalty'."
            )
        if self.args.weight_decay_end is not None:
            raise ValueError(
                f"weight_decay_end is {self.args.weight_decay_end}, but the schedule does not reach an optimizer that "
                "is given. Leave `optimizers` out, or weight_decay_end."
            )

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`; training logs also carry the loss parts, schedules and monitors."""
        if "loss" in logs and "learning_rate" in logs:
            self._require_finite(logs["loss"])
            logs = {**logs, **self._training_metrics()}
            if self._guard.check(logs, self.state.global_step, self._features.num_images):
                self.control.should_training_stop = True
        super().log(logs, start_time)

    def _training_metrics(self) -> dict[str, float]:
        step, total = max(self.state.global_step - 1, 0), self.state.max_steps
        metrics = self._losses.take_means(self._average)
        metrics |= {
            "ema_momentum": steps.ema_momentum(self.args, step, total),
            "weight_decay": steps.weight_decay(self.args, step, total),
        }
        metrics |= self._features.statistics(self._average)
        if self.model.config.use_grouping:
            metrics |= self._grouping_metrics(step, total)
        return metrics | self._throughput.take()

    def _grouping_metrics(self, step: int, total: int) -> dict[str, float]:
        config, grouping = self.model.config, steps.unwrap(self.model).sparsejepa.predictor.grouping
        strength = steps.sparsity_weight(self.args, config.sparsity_weight, step, total)
        metrics = {"sparsity_weight": strength}
        if config.variational:
            metrics["kl_weight"] = steps.kl_weight(self.args, config.kl_weight, step, total)
        weight = full_tensor(grouping.group_weight)
        metrics |= group_weight_statistics(weight)
        metrics |= generator_statistics(
            *map(full_tensor, (grouping.generator_in_weight, grouping.generator_out_weight))
        )
        average = steps.average_gradient(self.optimizer)
        # In penalty mode there is none.
        if average is not None:
            metrics |= optimality_statistics(weight, full_tensor(average), strength)
        return metrics

    def _average(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="mean")

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            parts = self._losses.take_means(self._average)
            found = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
            raise NonFiniteLossError(
                f"The loss is {loss} at step {self.state.global_step} ({found}); expected a finite number. "
                f"{_NON_FINITE_ADVICE} The last checkpoint, if there is one, is from before."
            )

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """As in `Trainer`; `resume_from_checkpoint=True` takes the last checkpoint that was written to its end."""
        # Flags and YAML files give text.
        choice = {"true": True, "false": None}.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
        if choice is True:
            choice = last_complete_checkpoint(self.args.output_dir)
        self._require_a_batch()
        self._warn_of_slow_bf16()
        self._throughput.take()
        self._slot_step = -1
        self._operations.clear()
        output = super().train(resume_from_checkpoint=choice, **kwargs)
        # Each process knows its own mean; all must judge the same one.
        loss = torch.tensor(output.training_loss, device=self.args.device)
        self._require_finite(float(self._average(loss)))
        return output

    def _warn_of_slow_bf16(self) -> None:
        is_asked = self.args.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        if is_asked and self.is_world_process_zero():
            warn_of_slow_bf16()

    def _require_a_batch(self) -> None:
        wanted = self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and hasattr(self.train_dataset, "__len__"):
            if len(self.train_dataset) < wanted:
                raise ValueError(
                    f"The training data has {len(self.train_dataset)} images, less than one batch of {wanted} over "
                    "all processes, so nothing would be trained. Lower per_device_train_batch_size, or set "
                    "dataloader_drop_last to false."
                )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A finished run that is resumed amid an epoch would train one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # A checkpoint with NaN weights is worse than none.
        self._require_finite(float(self._average(self._tr_loss)))
        self._require_finite_weights()
        self._throughput.pause()
        super()._save_checkpoint(*args, **kwargs)
        self._throughput.resume()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, if the weights are finite."""
        self._require_finite_weights()
        super().save_model(*args, **kwargs)

    def _require_finite_weights(self) -> None:
        # A finite loss can still have had a gradient that was not.
        weights = [local_shard(parameter.detach()) for parameter in self.model.parameters()]
        finite = torch.stack(torch._foreach_norm(weights)).isfinite().all().float()
        if float(self._average(finite)) < 1.0:
            raise NonFiniteLossError(
                f"The weights are no longer finite at step {self.state.global_step}, so they are not saved. "
                f"{_NON_FINITE_ADVICE} The last checkpoint, if there is one, is from before."
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if load_result.missing_keys or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: missing {list(load_result.missing_keys)}, unexpected "
                f"{list(load_result.unexpected_keys)}. Resume with the configuration that the run began with."
            )

    def create_model_card(self, *args: Any, dataset: str | list[str] | None = None, **kwargs: Any) -> None:
        """Writes README.md, the model card, into the output folder, from the run itself; `dataset` names its data."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self.model.config, self.args, self.state, dataset)


def image_processor(
    image_sides: tuple[int, int],
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
) -> ViTImageProcessor:
    """What held-out images go through here: RGB, short side to the model's, centre crop, normalisation.

    The long side may be rounded to another pixel than [`data.resize_to_square`] rounds it to.
    """
    height, width = image_sides
    return ViTImageProcessor(
        do_convert_rgb=True,
        size={"shortest_edge": height} if height == width else {"height": height, "width": width},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=height == width,
        crop_size={"height": height, "width": width},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def _require_pixel_values(dataset: Dataset | None) -> None:
    columns = getattr(dataset, "column_names", None)
    if columns is not None and "pixel_values" not in columns:
        raise ValueError(
            f"The data set given has the columns {columns}; expected examples with 'pixel_values'. Wrap it: "
            "build_image_dataset(load_image_dataset(dataset), config.image_size)."
        )
