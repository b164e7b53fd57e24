# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The Trainer that pre-trains SparseJEPA."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from ..counter_rng import normal, stream_keys
from ..data import ResidentImages, collate_pixels
from ..masking import MultiBlockMaskSampler
from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPAForPreTrainingOutput
from .arguments import SparseJEPATrainingArguments
from .base_trainer import ImageTrainer
from .callbacks import (
    DECAYED,
    LossWeights,
    ProximalStep,
    TargetEncoderEMA,
    WeightDecaySchedule,
    as_model_input,
    unwrap,
)
from .monitors import CollapseGuard, FeatureMonitor, GroupMonitor, KNNMonitor, LossParts, Throughput
from .proximal import start_average_


NOISE_STREAM = 3
# Evaluation draws its masks at a step of its own, so that they are the same at every evaluation.
EVALUATION_STEP = -1
# No weight decay on these, nor on whatever has one dimension, nor on W.
_UNDECAYED = ("mask_token", "generator_in_bias", "generator_out_bias")


class SparseJEPATrainer(ImageTrainer):
    """transformers' `Trainer` for [`SparseJEPAForPreTraining`].

    A step: masks are drawn and images augmented on the device; the model composes the loss with the step's λ and β;
    the optimizer steps; then callbacks move the target encoder and threshold W. Every part of the loss is logged, and
    what tells a healthy run.

    Masks, augmentation and latent noise of a sample depend on (seed, optimizer step, place in the global batch) alone:
    not on the number of processes or accumulation steps, nor on an interruption.

    Args:
        args: those of [`ImageTrainer`], of which `model` is a [`SparseJEPAForPreTraining`] and `args`
            [`SparseJEPATrainingArguments`]. Labels are left out of every batch.
        knn_datasets: (bank, held-out) labelled data sets for kNN: every `knn_steps`, and at each evaluation, whose
            metrics then have `eval_knn_accuracy`.
        kwargs: as for [`ImageTrainer`].

    Raises:
        TypeError: the model or its arguments are of another class.
        ValueError: the masks cannot exist on the model's grid, or arguments do not fit together.
    """

    model_class = SparseJEPAForPreTraining
    arguments_class = SparseJEPATrainingArguments
    default_collator = staticmethod(collate_pixels)
    card_kind = "pretraining"
    non_finite_advice = (
        "Try a smaller learning_rate, a longer warmup_steps, max_grad_norm=1.0, smaller kl_weight and "
        "sparsity_weight, or fp32 instead of fp16."
    )

    def __init__(self, *args: Any, knn_datasets: tuple[Dataset, Dataset] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluation_slot = 0
        if self.args.data_on_device and self.train_dataset is not None:
            self._keep_on_device()
        self._add_callbacks(knn_datasets)

    def fit_to_model(self) -> None:
        """As in the base class, with masks; the target encoder is frozen."""
        super().fit_to_model()
        args = self.args
        # It follows the context encoder, and the optimizer never sees it.
        self.model.freeze_target_encoder()
        self.mask_sampler = MultiBlockMaskSampler(
            self.model.config.grid_size,
            num_target_blocks=args.num_target_blocks,
            num_target_patches=args.num_target_patches,
            num_context_patches=args.num_context_patches,
            target_aspect_ratio=(args.target_aspect_ratio[0], args.target_aspect_ratio[1]),
            seed=args.seed,
        )

    def _keep_on_device(self) -> None:
        """From here on an example of the training data is its place, and a batch is gathered by its places."""
        if self.data_collator is not self.default_collator:
            raise ValueError(
                f"data_on_device is true and a data_collator is given ({self.data_collator}), but images on the "
                "device are not collated; expected one or the other. Leave out data_collator, or set data_on_device "
                "to false."
            )
        self.train_dataset = ResidentImages(self.train_dataset, self.args.device)

    def _add_callbacks(self, knn_datasets: tuple[Dataset, Dataset] | None) -> None:
        args = self.args
        self.loss_weights, self._loss_parts = LossWeights(self.model.config), LossParts()
        features = FeatureMonitor(args.monitor_samples)
        callbacks: list[Any] = [self._loss_parts, TargetEncoderEMA(self._keeps_autocast_weights())]
        callbacks += [
            WeightDecaySchedule(),
            features,
            CollapseGuard(args, features, self.loss_weights),
            self.loss_weights,
        ]
        callbacks += [ProximalStep(self.loss_weights), GroupMonitor(self.loss_weights), Throughput()]
        if knn_datasets is None and args.needs_knn:
            raise ValueError(
                f"knn_steps is {args.knn_steps} and metric_for_best_model {args.metric_for_best_model}, but there are "
                "no labelled data sets; pass knn_datasets=(bank, held-out), or knn_steps=0 and another metric."
            )
        self._knn = None if knn_datasets is None else KNNMonitor(*knn_datasets, self.normalize, self.log)
        callbacks += [] if self._knn is None else [self._knn]
        for callback in callbacks:
            self.add_callback(callback)

    def _keeps_autocast_weights(self) -> bool:
        """FSDP and DeepSpeed hold weights in pieces or cast them themselves; the compiler has casts of its own."""
        compiles = self.args.torch_compile or self.accelerator.state.dynamo_plugin.backend != "NO"
        is_plain = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or compiles)
        return is_plain and self.accelerator.mixed_precision == "bf16"

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SparseJEPAForPreTrainingOutput]:
        """L = L_pred + β·KL, plus λ·Ω(W) in penalty mode, of a batch, with masks, augmentation and noise drawn here.

        In evaluation mode images are not augmented, latents carry no noise, and λ and β are the configuration's, so
        that evaluations compare.
        """
        pixel_values = inputs["pixel_values"]
        if not model.training:
            outputs = model(**self._evaluation_views(pixel_values))
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        compiles, device = bool(self.args.torch_compile), pixel_values.device
        outputs = model(
            **self._training_views(pixel_values),
            kl_weight=as_model_input(self.loss_weights.kl_weight, compiles, device),
            sparsity_weight=as_model_input(self.loss_weights.sparsity_weight, compiles, device),
        )
        for callback in self._training_callbacks():
            callback.on_outputs(outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _training_views(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Augmented images with their masks and latent noise."""
        config, step = self.model.config, self.state.global_step
        slots = self.take_slots(len(pixel_values), pixel_values.device)
        context_mask, target_mask = self.mask_sampler.sample_slots(slots, step)
        views = {"pixel_values": self.augment(pixel_values, slots)}
        views |= {"context_mask": context_mask, "target_mask": target_mask}
        if config.use_grouping and config.variational:
            tokens = target_mask if config.latent_position == "predictor" else context_mask
            shape = (*tokens.shape[1:], config.num_latents)
            noise = normal(stream_keys(self.args.seed, step, slots, NOISE_STREAM), math.prod(shape))
            views["latent_noise"] = noise.view(-1, *shape)
        return views

    def _evaluation_views(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Images as they are, with masks that belong to their places in the held-out set."""
        batch = len(pixel_values)
        first = self._evaluation_slot + self.args.process_index * batch
        self._evaluation_slot += batch * self.args.world_size
        slots = torch.arange(first, first + batch, device=pixel_values.device)
        context_mask, target_mask = self.mask_sampler.sample_slots(slots, EVALUATION_STEP)
        return {
            "pixel_values": self.normalize(pixel_values),
            "context_mask": context_mask,
            "target_mask": target_mask,
        }

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Any]:
        """As in `Trainer`; images that lie on the device are gathered here."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if isinstance(self.train_dataset, ResidentImages):
            batches = [{"pixel_values": self.train_dataset.gather(batch["places"])} for batch in batches]
        return batches, count

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in `Trainer`; every evaluation uses the same masks, and knows the kNN accuracy."""
        self._evaluation_slot = 0
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._knn is not None and description == "Evaluation":
            accuracy = self._knn.accuracy(self.args, self.state, self.model)
            output.metrics[f"{metric_key_prefix}_knn_accuracy"] = accuracy
        return output

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Decayed parameters (weights of linear maps, patch projection and generators), undecayed ones, and W."""
        model = unwrap(model)
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        own = [p for _, p in trainable if p is model.group_weight]
        others = [(name, p) for name, p in trainable if p is not model.group_weight]
        decayed = [p for name, p in others if p.ndim > 1 and name.rsplit(".", 1)[-1] not in _UNDECAYED]
        is_decayed = {id(p) for p in decayed}
        undecayed = [p for _, p in others if id(p) not in is_decayed]
        # A group's mark, not its weight decay, tells the schedule, which may start at zero and rise.
        groups = [{"params": decayed, "weight_decay": self.args.weight_decay, DECAYED: True}]
        groups.append({"params": undecayed, "weight_decay": 0.0, DECAYED: False})
        if own:
            rate = self.args.group_learning_rate
            rate = self.args.learning_rate if rate is None else rate
            groups.append({"params": own, "weight_decay": 0.0, DECAYED: False, "lr": rate})
        return groups

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in `Trainer`. For FSDP2, torch hands out what is in the optimizer's state after a step, so the average
        gradient of W has to be in there."""
        group_weight = unwrap(self.model).group_weight
        if checkpoint is None or group_weight is None or not self.is_fsdp_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)

        def start_average(optimizer: Optimizer, *_: Any) -> None:
            start_average_(optimizer, group_weight)

        # Accelerate wraps the optimizer that torch steps.
        optimizer: Any = self.optimizer
        hook = optimizer.optimizer.register_step_post_hook(start_average)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        finally:
            hook.remove()

    def loss_parts(self) -> dict[str, Tensor]:
        """As in the base class: prediction, KL and sparsity."""
        return self._loss_parts.last()

    def card_facts(self) -> dict[str, Any]:
        """As in the base class, and the masks."""
        return {**super().card_facts(), "mask_sampler": self.mask_sampler}
