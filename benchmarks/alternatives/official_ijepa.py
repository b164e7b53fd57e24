# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The official I-JEPA code (https://github.com/facebookresearch/ijepa), from a checkout that the user supplies.

Its licence is non-commercial, so nothing of it is here: only the names of its public classes and functions are used.
"""

import copy
import importlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsejepa_hf import SparseJEPAConfig

from .ijepa_loop import Loop


_NEEDED = ("src/models/vision_transformer.py", "src/masks/utils.py")


class OfficialLoop(Loop):
    """One optimizer step of I-JEPA for each call, from `VisionTransformer`, `VisionTransformerPredictor` and
    `apply_masks` of the checkout in `folder`; other arguments as of `StraightforwardLoop`.

    Raises:
        FileNotFoundError: if the folder is no such checkout.
        ValueError: for images or patches that are not square.
    """

    def __init__(
        self,
        folder: Path,
        config: SparseJEPAConfig,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        momentum: float = 0.996,
    ):
        models, self._masks = _modules(folder)
        (height, width), (patch, patch_width) = config.image_sides, config.patch_sides
        if height != width or patch != patch_width:
            raise ValueError(f"The images are {height}x{width}, patches {patch}x{patch_width}; expected squares.")
        self.encoder = models.VisionTransformer(
            img_size=[height],
            patch_size=patch,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            qkv_bias=config.qkv_bias,
        ).to(device)
        self.predictor = models.VisionTransformerPredictor(
            num_patches=config.grid_size[0] * config.grid_size[1],
            embed_dim=config.hidden_size,
            predictor_embed_dim=config.predictor_hidden_size,
            depth=config.predictor_num_hidden_layers,
            num_heads=config.predictor_num_attention_heads,
            mlp_ratio=config.predictor_intermediate_size / config.predictor_hidden_size,
            qkv_bias=config.qkv_bias,
        ).to(device)
        self.target_encoder = copy.deepcopy(self.encoder)
        self.device, self.autocast, self.momentum = torch.device(device), autocast, momentum
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Smooth-L1 between prediction and normalised target."""
        masks = [mask.contiguous() for mask in target_mask.unbind(1)]
        with torch.no_grad():
            targets = self.target_encoder(pixel_values)
            targets = self._masks.apply_masks(F.layer_norm(targets.float(), (targets.shape[-1],)), masks)
        predicted = self.predictor(self.encoder(pixel_values, [context_mask]), [context_mask], masks)
        return F.smooth_l1_loss(predicted.float(), targets)


def _modules(folder: Path):
    """Its modules of models and masks, imported under their own names."""
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}; expected a checkout of the official I-JEPA code. Clone it and "
            "give its folder to --reference."
        )
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module("src.models.vision_transformer"), importlib.import_module("src.masks.utils")
    finally:
        sys.path.pop(0)
