# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""No training step waits for the device, is compiled anew, or counts its operations anew."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainerCallback

from sparsejepa_hf.training import SparseJEPATrainer, SparseJEPATrainingArguments, ema_update_, pretraining
from sparsejepa_hf.training.proximal import group_lasso_step_, hold_scales_, own_parameter_group


def test_operations_counted_once_are_those_that_transformers_counts_each_time(make_trainer):
    trainer = make_trainer()
    for count in (8, 3, 8):
        inputs = {"pixel_values": torch.zeros(count, 3, 16, 16)}
        assert trainer.floating_point_ops(inputs) == Trainer.floating_point_ops(trainer, inputs) > 0


# ---- a step does not wait for the device ----


# These ask the device for a value, or for a size that only it knows.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique", "unique_", "equal", "item")


def sparsejepa_line() -> str:
    """Innermost line of the package or of the training loop that is running."""
    frames = [f for f in traceback.extract_stack() if "sparsejepa_hf/" in f.filename or "transformers/" in f.filename]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "elsewhere"


class Watch(TorchDispatchMode):
    """Notes, while `is_on`, operations that make the host wait for the device and copies between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0
        self.is_on = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.is_on:
            self.operations += 1
            name = function.overloadpacket.__name__
            if name in WAITING:
                self.found.append(f"{name} in {sparsejepa_line()}")
        results = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
        if self.is_on and len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(f"{function} between devices in {sparsejepa_line()}")
        return results


class StepsAlone(TrainerCallback):
    """Watches from a step's begin to its end, unless it logs."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.watch.is_on = True

    def on_step_end(self, args, state, control, **kwargs):
        self.watch.is_on = False
        self.steps += 1


@pytest.mark.parametrize("config", [{}, {"use_grouping": False}, {"sparsity_mode": "penalty"}])
def test_no_step_of_the_whole_training_loop_asks_for_a_value_between_logs(make_trainer, monkeypatch, config):
    """transformers' and Accelerate's part included: reading a value is the same call on a CPU as on an accelerator."""
    watch = Watch()
    watch.is_on = False
    steps = StepsAlone(watch)
    # These read a CPU tensor's memory, past the dispatcher; numpy(), on a CPU alone, would be an error elsewhere.
    for name in ("tolist", "cpu"):
        method = getattr(Tensor, name)

        def noted(self, *args, _name=name, _method=method, **kwargs):
            if watch.is_on:
                watch.found.append(f"{_name} in {sparsejepa_line()}")
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, noted)
    trainer = make_trainer(
        config, callbacks=[steps], max_steps=6, logging_steps=3, dataloader_num_workers=0, weight_decay_end=0.2
    )
    with watch:
        trainer.train()
    assert steps.steps == 6 and watch.operations > 6 * 100
    assert watch.found == []


def test_the_watch_notices_each_way_to_read_a_value():
    for read in (Tensor.item, float, bool, Tensor.nonzero, lambda t: t[t > 0]):
        with Watch() as watch:
            read(torch.ones(()) if read is not Tensor.nonzero else torch.ones(3))
        assert watch.found, read


def device_step(trainer: SparseJEPATrainer, model: nn.Module, pixel_values: Tensor, backward: bool) -> None:
    """What of a training step runs on the device, on whichever device the model and the images are."""
    trainer.model = model
    loss = trainer.compute_loss(model.train(), {"pixel_values": pixel_values})
    encoders = (model.sparsejepa.target_encoder, model.sparsejepa.context_encoder)
    ema_update_(*(list(encoder.parameters()) for encoder in encoders), momentum=0.9)
    group = None
    if backward:
        loss.backward()
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer = trainer.create_optimizer()
        optimizer.step()
        group = own_parameter_group(optimizer, model.group_weight)
    elif model.config.use_grouping:
        # On what an optimizer would have left.
        weight = model.group_weight
        weight.grad = torch.empty_like(weight)
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        state = {"exp_avg_sq": torch.empty_like(weight), "step": torch.empty((), device=weight.device)}
        optimizer.state[weight].update(state)
        (group,) = optimizer.param_groups
    if group is not None:
        group_lasso_step_(optimizer, group, 0.1, support_steps=10)
        hold_scales_(model.sparsejepa.predictor.grouping)


def on_device(trainer: SparseJEPATrainer, model: nn.Module, device: str) -> nn.Module:
    """Empty tensors on `device` in place of a model's and of the augmentation's."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    for module in (*model.modules(), *trainer.augmentation.modules()):
        for name, p in list(module._parameters.items()):
            module._parameters[name] = nn.Parameter(empty(p), p.requires_grad) if p is not None else None
        module._buffers.update({name: empty(buffer) for name, buffer in module._buffers.items()})
    return model


@pytest.mark.parametrize("config", [{}, {"use_grouping": False}])
def test_a_step_runs_to_its_end_on_tensors_that_have_no_values(make_trainer, config):
    """Meta tensors: backward pass, clipping and optimizer too. Nothing that needs a value could run."""
    trainer = make_trainer(config, optim="adamw_torch")
    model = on_device(trainer, trainer.model, "meta")
    images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8, device="meta")
    for _ in range(2):
        device_step(trainer, model, images, backward=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        trainer._loss_parts.metrics(trainer._average)


needs_cuda_build = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")


@needs_cuda_build
@pytest.mark.parametrize("torch_compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=["float images", "uint8 images, augmented"])
def test_a_step_copies_nothing_between_host_and_device(make_trainer, dtype, torch_compile):
    """On tensors that only say that they are CUDA's: every copy between host and device is seen, none waits."""
    trainer = make_trainer()
    # Compiled or not, λ and β are handed over; here nothing is compiled.
    trainer.args.torch_compile = torch_compile
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_device(trainer, trainer.model, "cuda")
        images = torch.zeros(8, 3, 16, 16, device="cuda").to(dtype)
        # The first step brings tables over that stay.
        device_step(trainer, model, images, backward=False)
        with Watch() as watch:
            device_step(trainer, model, images, backward=False)
        assert watch.operations > 100
        assert watch.found == []


@needs_cuda_build
def test_the_watch_notices_a_copy_to_the_device():
    with FakeTensorMode(), Watch() as watch:
        torch.zeros(4, 3, device="cuda")[:, [0, 2]]
    assert len(watch.found) == 1 and "between devices" in watch.found[0]


def test_batches_in_pinned_memory_are_copied_without_waiting_unless_the_user_says_otherwise(tmp_path):
    def non_blocking(**given: Any) -> bool:
        arguments = SparseJEPATrainingArguments(str(tmp_path), report_to="none", **given)
        return arguments.accelerator_config.non_blocking

    assert non_blocking()
    assert not non_blocking(dataloader_pin_memory=False)
    assert not non_blocking(use_cpu=True)
    assert not non_blocking(accelerator_config={"non_blocking": False})


# ---- compiling ----


def test_the_warm_ups_of_lambda_and_beta_compile_once_and_change_no_bit(make_trainer, monkeypatch):
    """In penalty mode both are in the loss. They change at each of the first steps: as numbers they compile twice."""
    weights, graphs = [], []
    for as_numbers in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if as_numbers:
            monkeypatch.setattr(pretraining, "as_model_input", lambda weight, is_compiled, device: weight)
        trainer = make_trainer(
            {"sparsity_mode": "penalty"},
            max_steps=4,
            sparsity_warmup_steps=4,
            kl_warmup_steps=5,
            learning_rate=1e-2,
            torch_compile=True,
            torch_compile_backend="eager",
        )
        trainer.train()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    assert graphs[0] == 1 < graphs[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
