# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""I-JEPA from lightly's modules (https://github.com/lightly-ai/lightly), put together as their interfaces suggest."""

import copy

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from sparsejepa_hf import SparseJEPAConfig

from .ijepa_loop import Loop


class LightlyLoop(Loop):
    """One optimizer step of I-JEPA for each call; arguments as of `StraightforwardLoop`.

    Raises:
        ImportError: if lightly is not installed.
        ValueError: for images or patches that are not square, which lightly's predictor does not know.
    """

    def __init__(
        self,
        config: SparseJEPAConfig,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        momentum: float = 0.996,
    ):
        from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

        (height, width), (patch, patch_width) = config.image_sides, config.patch_sides
        if height != width or patch != patch_width:
            raise ValueError(f"The images are {height}x{width}, patches {patch}x{patch_width}; expected squares.")
        vit = VisionTransformer(
            img_size=height,
            patch_size=patch,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
        )
        self.encoder = MaskedVisionTransformerTIMM(vit=vit).to(device)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=config.grid_size[0] * config.grid_size[1],
            depth=config.predictor_num_hidden_layers,
            mlp_dim=config.hidden_size,
            predictor_embed_dim=config.predictor_hidden_size,
            num_heads=config.predictor_num_attention_heads,
            mlp_ratio=config.predictor_intermediate_size / config.predictor_hidden_size,
        ).to(device)
        self.target_encoder = copy.deepcopy(self.encoder)
        self.device, self.autocast, self.momentum = torch.device(device), autocast, momentum
        # A mask token that lightly's encoder has for other methods is not used by I-JEPA.
        parameters = [p for name, p in self.encoder.named_parameters() if name != "mask_token" and p.requires_grad]
        parameters += [p for p in self.predictor.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Smooth-L1 between prediction and normalised target."""
        from lightly.models.utils import apply_masks

        masks = [mask.contiguous() for mask in target_mask.unbind(1)]
        with torch.no_grad():
            targets = self.target_encoder.encode(pixel_values)
            targets = apply_masks(F.layer_norm(targets.float(), (targets.shape[-1],)), masks)
        context = self.encoder.encode(pixel_values, idx_keep=context_mask)
        predicted = self.predictor(context, [context_mask], masks)
        return F.smooth_l1_loss(predicted.float(), targets)

    def update_target(self) -> None:
        """θ̄ ← m θ̄ + (1−m) θ, by lightly's function."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder, self.target_encoder, self.momentum)
