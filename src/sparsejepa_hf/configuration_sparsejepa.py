# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""SparseJEPA model configuration."""

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin


# What trust_remote_code=True looks up in config.json, whichever of the classes wrote it.
AUTO_MAP = {
    "AutoConfig": "configuration_sparsejepa.SparseJEPAConfig",
    "AutoModel": "modeling_sparsejepa.SparseJEPAVisionModel",
    "AutoModelForPreTraining": "modeling_sparsejepa.SparseJEPAForPreTraining",
    "AutoModelForImageClassification": "modeling_sparsejepa.SparseJEPAForImageClassification",
    "AutoBackbone": "modeling_sparsejepa.SparseJEPABackbone",
}

# What PreTrainedConfig takes in addition to its dataclass fields.
_BASE_ARGUMENTS = {
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "out_features",
    "out_indices",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "tie_last_hidden_states",
    "torch_dtype",
    # The stock Trainer writes it into every configuration.
    "use_cache",
}

# The least and the most of what is counted; more is no model, and would be built for hours.
_COUNTS = {
    "hidden_size": (1, 2**31),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**31),
    "intermediate_size": (1, 2**31),
    "num_channels": (1, 2**31),
    "predictor_hidden_size": (1, 2**31),
    "predictor_num_hidden_layers": (1, 1000),
    "predictor_num_attention_heads": (1, 2**31),
    "predictor_intermediate_size": (1, 2**31),
    "num_groups": (1, 2**31),
    "num_latents": (1, 2**50),
    "group_size": (1, 2**31),
    "generator_hidden_size": (1, 2**31),
}

# Encoders as in DeiT and ViT (arXiv 2012.12877, 2010.11929), except vit-micro, which trains on a CPU; predictors as in
# I-JEPA where it states them.
PRESETS: dict[str, dict[str, Any]] = {
    "vit-micro": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        "image_size": 32,
        "patch_size": 4,
        "predictor_hidden_size": 48,
        "predictor_num_hidden_layers": 2,
        "predictor_num_attention_heads": 3,
        "num_groups": 8,
        "num_latents": 64,
    },
    "vit-tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "image_size": 32,
        "patch_size": 4,
        "predictor_hidden_size": 96,
        "predictor_num_hidden_layers": 4,
        "predictor_num_attention_heads": 3,
        "num_groups": 8,
        "num_latents": 64,
    },
    "vit-small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "image_size": 224,
        "patch_size": 16,
        "predictor_hidden_size": 192,
        "predictor_num_hidden_layers": 6,
        "predictor_num_attention_heads": 6,
        "num_groups": 8,
        "num_latents": 64,
    },
    "vit-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 16,
        "predictor_hidden_size": 384,
        "predictor_num_hidden_layers": 6,
        "predictor_num_attention_heads": 12,
        "num_groups": 16,
        "num_latents": 128,
    },
    "vit-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 224,
        "patch_size": 16,
        "predictor_hidden_size": 384,
        "predictor_num_hidden_layers": 12,
        "predictor_num_attention_heads": 16,
        "num_groups": 16,
        "num_latents": 128,
    },
    "vit-huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
        "image_size": 224,
        "patch_size": 14,
        "predictor_hidden_size": 384,
        "predictor_num_hidden_layers": 12,
        "predictor_num_attention_heads": 16,
        "num_groups": 16,
        "num_latents": 128,
    },
}


def _pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@strict
class SparseJEPAConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of a SparseJEPA model (arXiv 2504.16140); the defaults are ViT-Tiny/4 at 32 pixels.

    The encoder's fields are those of transformers' `IJepaConfig`. One flat configuration describes both encoders, the
    predictor and the grouping.

    Args:
        hidden_size (`int`, defaults to 192): D, width of both encoders; a multiple of 4 (sin-cos positions), of
            `num_attention_heads` and, with grouping, of `num_groups`.
        num_hidden_layers (`int`, defaults to 12): depth of the encoders.
        num_attention_heads (`int`, defaults to 3): attention heads of the encoders.
        intermediate_size (`int`, defaults to 768): width of the encoders' MLPs.
        hidden_act (`str`, defaults to `"gelu"`): activation in encoders, predictor and generators.
        hidden_dropout_prob (`float`, defaults to 0.0): dropout in [0, 1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): attention dropout in [0, 1).
        initializer_range (`float`, *optional*): standard deviation of linear weights; Xavier-uniform if not given.
            I-JEPA's 0.02 is Xavier's scale at the widths of ViT-L and -H; at small widths it is far below, layers then
            hardly mix patches at the start, and training collapses onto the positions.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every LayerNorm.
        image_size (`int` or `[height, width]`, defaults to 32): pixels.
        patch_size (`int` or `[height, width]`, defaults to 4): pixels; divides `image_size`.
        num_channels (`int`, defaults to 3): image channels.
        qkv_bias (`bool`, defaults to `True`): biases of query, key and value.
        predictor_type (`str`, defaults to `"transformer"`): `"transformer"` (I-JEPA's narrow ViT) or `"mlp"` (the
            paper's shallow MLP on pooled context and the target's position).
        predictor_hidden_size (`int`, defaults to 96): D_p; a multiple of 4 and of `predictor_num_attention_heads`.
        predictor_num_hidden_layers (`int`, defaults to 4): depth of the predictor.
        predictor_num_attention_heads (`int`, defaults to 3): attention heads of the predictor.
        predictor_intermediate_size (`int`, *optional*): width of its MLPs; 4·D_p if not given.
        use_grouping (`bool`, defaults to `True`): `False` is plain I-JEPA, a linear map from D_p to D; then there are
            no latents, so `sparsity_weight` and `kl_weight` become 0, `latent_position` `"predictor"` and
            `latent_residual` `False`, whatever is given.
        num_groups (`int`, defaults to 8): G; divides `hidden_size`.
        num_latents (`int`, defaults to 64): K.
        group_size (`int`, defaults to 8): p, width of a group's input u_g = W⁽ᵍ⁾z.
        generator_hidden_size (`int`, defaults to 32): width of the hidden layer of each group's generator f_g.
        variational (`bool`, defaults to `True`): latents z = μ + σ⊙ε and the KL term; `False`: z = μ, no KL.
        latent_position (`str`, defaults to `"predictor"`): where the latents sit: `"predictor"` (behind it: the groups
            generate the predicted embedding) or `"encoder"` (between context encoder and predictor: the groups
            generate what the predictor sees, and a linear map follows the predictor, as in I-JEPA).
        latent_residual (`bool`, defaults to `False`): a path around the groups, added to what they generate: a linear
            map from D_p to D behind the predictor, the identity in front of it.
        loss_type (`str`, defaults to `"smooth_l1"`): `"smooth_l1"` (I-JEPA) or `"mse"` (the paper).
        target_normalization (`str`, defaults to `"layer_norm"`): `"layer_norm"` (without affine) or `"none"`.
        sparsity_weight (`float`, defaults to 0.0): λ ≥ 0, weight of the group lasso Ω(W); on the scale of the gradient
            of a column of W, 1e-4 to 1e-2.
        sparsity_mode (`str`, defaults to `"proximal"`): `"proximal"` (Ω is reported, and proximal steps after each
            optimizer step give exact zeros) or `"penalty"` (Ω is part of the loss, as the paper writes it).
        kl_weight (`float`, defaults to 0.0): β ≥ 0, weight of the KL term.
        out_features (`list[str]`, *optional*): of `"stem"`, `"stage1"`, …: the feature maps of [`SparseJEPABackbone`];
            the last layer's if not given.
        out_indices (`list[int]`, *optional*): the same by number; 0 is the embeddings.

    Raises:
        ValueError: for values that no model can have, and for unknown arguments. A *file* may hold unknown keys, such
            as those of a later version; they are kept as they are.
    """

    model_type = "sparsejepa"
    # For AutoImageProcessor, where a checkpoint's processor file names no class.
    image_processor_type = "SparseJEPAImageProcessor"
    # A saved checkpoint carries its code, for trust_remote_code=True where this package is not installed.
    _auto_class = "AutoConfig"

    hidden_size: int = 192
    num_hidden_layers: int = 12
    num_attention_heads: int = 3
    intermediate_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int | None = None
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, int] = 32
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    qkv_bias: bool = True

    predictor_type: str = "transformer"
    predictor_hidden_size: int = 96
    predictor_num_hidden_layers: int = 4
    predictor_num_attention_heads: int = 3
    predictor_intermediate_size: int | None = None

    use_grouping: bool = True
    num_groups: int = 8
    num_latents: int = 64
    group_size: int = 8
    generator_hidden_size: int = 32
    variational: bool = True
    latent_position: str = "predictor"
    latent_residual: bool = False

    loss_type: str = "smooth_l1"
    target_normalization: str = "layer_norm"
    target_layers: int = 1
    patch_scale: float | int = 1.0
    patch_projection_scale: float | int = 1.0
    residual_scale: float | int = 1.0
    drop_path_rate: float | int = 0.0
    sparsity_weight: float | int = 0.0
    sparsity_mode: str = "proximal"
    kl_weight: float | int = 0.0

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_unknown(kwargs)
        self._check_base(kwargs)
        if self.predictor_intermediate_size is None:
            self.predictor_intermediate_size = 4 * self.predictor_hidden_size
        if not self.use_grouping:
            # So that use_grouping=False alone makes the baseline of any model.
            self.sparsity_weight = self.kl_weight = 0.0
            self.latent_position, self.latent_residual = "predictor", False
        self._check_counts()
        self._check_ranges()
        self._check_choices()
        self._check_divisibility()
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "SparseJEPAConfig":
        """A configuration by name: `vit-micro`, `vit-tiny`, `vit-small`, `vit-base`, `vit-large` or `vit-huge`.

        Raises:
            ValueError: if there is no such preset, or an override is impossible.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}; expected one of {', '.join(PRESETS)}.")
        return _built(lambda: cls(**{**PRESETS[name], **overrides}))

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, which stumbles over a file that holds no mapping."""
        return _built(lambda: super(SparseJEPAConfig, cls).get_config_dict(*args, **kwargs))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers: what a file holds beyond the fields of this class is kept as it is.

        Raises:
            ValueError: the dictionary is the configuration of another family, or an override is unknown or impossible.
        """
        if not isinstance(config_dict, dict):
            raise ValueError(f"The configuration is a {type(config_dict).__name__}; expected a mapping.")
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"The configuration is one of a model of type {model_type!r}; expected {cls.model_type!r}. Nothing of "
                "it was loaded. sparsejepa_hf.conversion makes a SparseJEPA model of I-JEPA and timm weights "
                "(from_ijepa, from_timm); other families cannot be converted."
            )
        config_dict = dict(config_dict)
        others = {key: config_dict.pop(key) for key in cls._unknown(config_dict)}
        others |= {key: kwargs.pop(key) for key in others.keys() & kwargs.keys()}
        # Overrides go through the constructor, so that they are checked too; others may be meant for the model.
        for key in [key for key in kwargs if key in cls._field_names() and key != "dtype"] + list(
            cls._misspelt(cls._unknown(kwargs))
        ):
            config_dict[key] = kwargs.pop(key)
        loaded = _built(lambda: super(SparseJEPAConfig, cls).from_dict(config_dict, **kwargs))
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for key, value in others.items():
            setattr(config, key, value)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; where a model has put its code beside the file, the file names every class of it."""
        if getattr(self, "auto_map", None):
            self.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(*args, **kwargs)

    def require_memory(self, bytes_per_parameter: int = 4) -> None:
        """Checks that a model of this configuration fits into the machine's memory, before any of it is made.

        Args:
            bytes_per_parameter: 4 for float32; 0 where only the tables of positions are made, and weights later.

        Raises:
            ValueError: with the sizes, and the field that makes the model large.
        """

        def size(**changed: Any) -> int:
            return bytes_per_parameter * self._num_parameters(**changed) + 4 * self._num_positions(**changed)

        memory = _memory()
        if memory is None or (needed := size()) <= memory:
            return
        one = {**dict.fromkeys(_COUNTS, 1), "image_size": self.patch_size}
        name = min(one, key=lambda name: size(**{name: one[name]}))
        raise ValueError(
            f"{name} is {getattr(self, name)}; such a model has {self._num_parameters():,} parameters on "
            f"{self.num_patches:,} patches and needs {needed / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} "
            f"GB of memory. Lower {name}."
        )

    def _num_positions(self, **changed: Any) -> int:
        """Numbers in the tables of positions of both encoders and the predictor, with these fields changed."""
        c = {**vars(self), **changed}
        (height, width), (patch_height, patch_width) = _pair(c["image_size"]), _pair(c["patch_size"])
        return (height // patch_height) * (width // patch_width) * (2 * c["hidden_size"] + c["predictor_hidden_size"])

    def _num_parameters(self, **changed: Any) -> int:
        """Parameters of [`SparseJEPAForPreTraining`] with these fields changed, in closed form: a model that is too
        large cannot be made to count them."""
        c = {**vars(self), **changed}
        width, inner = c["hidden_size"], c["predictor_hidden_size"]

        def mlp(width: int, hidden: int) -> int:
            return 2 * width * hidden + hidden + width

        def layer(width: int, hidden: int) -> int:
            return 4 * width**2 + (3 * c["qkv_bias"] + 1) * width + 4 * width + mlp(width, hidden)

        patch_height, patch_width = _pair(c["patch_size"])
        encoder = (c["num_channels"] * patch_height * patch_width + 1) * width + 2 * width
        encoder += c["num_hidden_layers"] * layer(width, c["intermediate_size"])
        predictor = (width + 1) * inner + 2 * inner
        if c["predictor_type"] == "transformer":
            predictor += inner + c["predictor_num_hidden_layers"] * layer(inner, c["predictor_intermediate_size"])
        else:
            predictor += c["predictor_num_hidden_layers"] * (2 * inner + mlp(inner, c["predictor_intermediate_size"]))
        behind = c["latent_position"] == "predictor"
        if c["use_grouping"]:
            latents, groups, hidden = c["num_latents"], c["num_groups"], c["generator_hidden_size"]
            predictor += (1 + c["variational"]) * ((inner if behind else width) + 1) * latents
            predictor += groups * c["group_size"] * (latents + hidden) + groups * hidden + (hidden + 1) * width
        if not c["use_grouping"] or not behind or c["latent_residual"]:
            predictor += (inner + 1) * width
        return 2 * encoder + predictor

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone has: the embeddings' and each layer's."""
        return ["stem", *(f"stage{index}" for index in range(1, self.num_hidden_layers + 1))]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        (height, width), (patch_height, patch_width) = self.image_sides, self.patch_sides
        return height // patch_height, width // patch_width

    @property
    def image_sides(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return _pair(self.image_size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """(height, width) of a patch, in pixels."""
        return _pair(self.patch_size)

    @property
    def num_patches(self) -> int:
        """N, the number of patches."""
        rows, columns = self.grid_size
        return rows * columns

    @classmethod
    def _field_names(cls) -> set[str]:
        return {field.name for field in fields(cls)}

    @classmethod
    def _unknown(cls, arguments: dict[str, Any]) -> set[str]:
        known = cls._field_names() | _BASE_ARGUMENTS
        return {key for key in arguments if key not in known and not key.startswith("_")}

    @classmethod
    def _misspelt(cls, names: set[str]) -> set[str]:
        """Those that look like a field of this class."""
        return {name for name in names if difflib.get_close_matches(name, cls._field_names(), cutoff=0.85)}

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        unknown = sorted(self._unknown(kwargs))
        if unknown:
            names = self._field_names() | _BASE_ARGUMENTS
            close = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"SparseJEPAConfig has no argument {unknown[0]!r}.{hint}")

    def _check_base(self, kwargs: dict[str, Any]) -> None:
        """What transformers takes without a look, and stumbles over later."""
        # Not at the top: `import sparsejepa_hf` would take longer.
        import torch

        num_labels = kwargs.get("num_labels")
        # A name is made of each.
        if num_labels is not None and not (type(num_labels) is int and 0 <= num_labels <= 2**20):
            raise ValueError(f"num_labels is {_shown(num_labels)}; expected an integer from 0 to {2**20}.")
        for name, value in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            dtype = getattr(torch, value, None) if isinstance(value, str) else value
            if value is not None and not isinstance(dtype, torch.dtype):
                raise ValueError(f"{name} is {_shown(value)}; expected a type of torch, such as 'float32'.")
        for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            value = kwargs.get(name)
            if not all(isinstance(v, str | None) for v in (value.values() if isinstance(value, dict) else [value])):
                raise ValueError(f"{name} is {_shown(value)}; expected a text, such as 'sdpa'.")

    def _check_counts(self) -> None:
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"at least {least}" if value < least else f"at most {most}"
                raise ValueError(f"{name} is {_shown(value)}; expected an integer of {bound}.")
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"{name} is {value}; expected an integer or [height, width].")
            if min(_pair(value)) < 1:
                raise ValueError(f"{name} is {value}; expected sides of at least 1 pixel.")
            if max(_pair(value)) > 2**24:
                raise ValueError(f"{name} has a side of {_shown(max(_pair(value)))} pixels; expected at most {2**24}.")

    def _check_ranges(self) -> None:
        for name in ("sparsity_weight", "kl_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; expected a finite number of at least 0.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number in [0, 1).")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number above 0.")

    def _check_choices(self) -> None:
        # Not at the top: `import sparsejepa_hf` would take a third longer.
        from transformers.activations import ACT2FN

        choices = {
            "predictor_type": ("transformer", "mlp"),
            "latent_position": ("predictor", "encoder"),
            "loss_type": ("smooth_l1", "mse"),
            "target_normalization": ("layer_norm", "batch_norm", "position_norm", "none"),
            "sparsity_mode": ("proximal", "penalty"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, valid))}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; expected one of {', '.join(ACT2FN)}.")
        if self.use_grouping and not self.variational and self.kl_weight > 0:
            raise ValueError(
                f"kl_weight is {self.kl_weight} but variational is False, so there is no KL term; expected "
                "kl_weight=0, or variational=True."
            )

    def _check_divisibility(self) -> None:
        for side, size, patch in zip(("height", "width"), self.image_sides, self.patch_sides, strict=True):
            if size % patch:
                raise ValueError(
                    f"image_size has a {side} of {size} pixels, which patch_size {patch} does not divide; "
                    f"expected a multiple of {patch}, such as {max(patch, size // patch * patch)}."
                )
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("predictor_hidden_size", "predictor_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width} is {getattr(self, width)}, which {heads}={getattr(self, heads)} does not divide; "
                    f"expected a multiple of {getattr(self, heads)}."
                )
            if getattr(self, width) % 4:
                raise ValueError(
                    f"{width} is {getattr(self, width)}; expected a multiple of 4, which sin-cos positions need."
                )
        if self.use_grouping and self.hidden_size % self.num_groups:
            small = [g for g in range(1, math.isqrt(self.hidden_size) + 1) if self.hidden_size % g == 0]
            divisors = {*small, *(self.hidden_size // g for g in small)}
            nearest = sorted(divisors, key=lambda g: abs(g - self.num_groups))[:3]
            raise ValueError(
                f"num_groups is {self.num_groups}, which does not divide hidden_size={self.hidden_size}: every group "
                f"generates an equal slice of the embedding. Nearest divisors: {sorted(nearest)}."
            )


def _built(build: Callable[[], Any]) -> Any:
    """What `build` makes; what it stumbles over as a ValueError, which the libraries below do not all raise."""
    try:
        return build()
    except StrictDataclassError as error:
        raise ValueError(f"The configuration is impossible: {error.__cause__ or error}.") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"The configuration is impossible: {error}.") from error


def _shown(value: Any) -> str:
    """Python refuses to write integers of thousands of digits."""
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 2**64 else repr(value)


def _memory() -> int | None:
    """Bytes of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


__all__ = ["PRESETS", "SparseJEPAConfig"]
