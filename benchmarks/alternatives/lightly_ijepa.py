# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""I-JEPA from lightly's modules (https://github.com/lightly-ai/lightly), put together as their interfaces suggest."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from sparsejepa_hf import SparseJEPAConfig

from .ijepa_loop import Loop


class LightlyLoop(Loop):
    """Lightly's encoder and predictor in the sizes of `config`, square images and patches only.

    Other arguments as of [`Loop`].
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

        vit = VisionTransformer(
            img_size=config.image_sides[0],
            patch_size=config.patch_sides[0],
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
        )
        encoder = MaskedVisionTransformerTIMM(vit=vit)
        # For other methods than I-JEPA: it would never get a gradient.
        encoder.mask_token.requires_grad_(False)
        predictor = IJEPAPredictorTIMM(
            num_patches=config.grid_size[0] * config.grid_size[1],
            depth=config.predictor_num_hidden_layers,
            mlp_dim=config.hidden_size,
            predictor_embed_dim=config.predictor_hidden_size,
            num_heads=config.predictor_num_attention_heads,
            mlp_ratio=config.predictor_intermediate_size / config.predictor_hidden_size,
        )
        super().__init__(encoder, predictor, device, autocast, momentum)

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        from lightly.models.utils import apply_masks

        masks = [mask.contiguous() for mask in target_mask.unbind(1)]
        with torch.no_grad():
            targets = self.target_encoder.encode(pixel_values)
            targets = apply_masks(F.layer_norm(targets.float(), (targets.shape[-1],)), masks)
        context = self.encoder.encode(pixel_values, idx_keep=context_mask)
        predicted = self.predictor(context, [context_mask], masks)
        return F.smooth_l1_loss(predicted.float(), targets)

    def update_target(self) -> None:
        """By lightly's function."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder, self.target_encoder, self.momentum)
