# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One interface to the features of any vision checkpoint: this family, transformers, timm and raw pixels."""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import cached_file, logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..data import normalize_images
from ..data.images import PixelFormat, sides_of
from ..modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)
from .features import MAX_PIXEL_SIDE, check_images, frozen_module, pool_tokens, preserved_rng, small_pixel_features


logger = logging.get_logger(__name__)

PIXELS = "pixels"
_TIMM = "timm/"
_HALF = (0.5, 0.5, 0.5)
_NUM_LAST_BLOCKS = 4
_FAMILY = (SparseJEPAModel, SparseJEPAVisionModel)
_TARGET_ONLY = ("SparseJEPABackbone", "SparseJEPAForImageClassification", "SparseJEPAVisionModel")
# What a configuration says about its file instead of about the model.
_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


class VisionEncoder:
    """A frozen encoder that turns uint8 images into pooled features; [`load_encoder`] makes it.

    Args:
        name: what tables call it.
        model: gives hidden states; None for raw pixels.
        image_size: pixels of the images that `features` takes: the side of a square, or height and width.
        image_mean: mean of each channel, on the scale from 0 to 1, for the normalisation. There are as many channels
            as means.
        image_std: standard deviation of each channel, on the same scale.
        latents: the model whose `encode_latents` gives latents and groups, if there is one.
        value_range: lowest and highest value of the images, where they are read; None: what their type says.

    Attributes:
        image_size: an int for squares, else (height, width).
        pixel_format: what images are made into for `features`.
        kinds: the feature kinds it has, `LAYERS/POOLING`. LAYERS: `last`, the final hidden states; `last4`, the
            outputs of the last four blocks (of all, if they are fewer) one after the other along the features,
            each through the model's final norm (its module `layernorm` or `norm`; without one, as the model returns
            them); `latents`, the means μ of SparseJEPA's latents; `groups`, the norms ‖u_g‖₂ of its groups, both as
            `SparseJEPAModel.encode_latents` gives them, whichever encoder was asked for. POOLING: `mean` over
            patches; `mean+max`, their mean and maximum one after the other; `cls`, the class token, where there is
            one. Class and register tokens take no part in `mean` and `max`. Raw pixels have the one kind `pixels`.
        module: everything that runs; None for raw pixels.

    Raises:
        ValueError: the model cannot encode an image of this size.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel | None,
        image_size: int | Sequence[int],
        image_mean: Sequence[float] = _HALF,
        image_std: Sequence[float] = _HALF,
        latents: SparseJEPAModel | None = None,
        value_range: Sequence[float] | None = None,
    ) -> None:
        self.name = name
        self._sides = height, width = sides_of(image_size)
        self.image_size: int | tuple[int, int] = height if height == width else (height, width)
        self.pixel_format = PixelFormat(self.image_size, len(image_mean), value_range)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self._model, self._latents = model, latents
        self.module: nn.Module | None = model
        if model is not None and latents is not None and latents is not model:
            self.module = nn.ModuleList([model, latents])
        self.kinds: tuple[str, ...] = (PIXELS,)
        if model is not None:
            self._num_prefix_tokens, has_class_token = _prefix_tokens(model)
            last, blocks = self._try_out()
            count = last.shape[1] - self._num_prefix_tokens
            if count <= 0:
                # Tokens of a map, or a pooled vector: the class token is not among them.
                self._num_prefix_tokens, has_class_token = 0, False
            patch = getattr(model.config, "patch_size", None)
            if self._num_prefix_tokens and isinstance(patch, int):
                num_patches = (height // patch) * (width // patch)
                if count != num_patches:
                    raise ValueError(
                        f"{name} gives {last.shape[1]} tokens, of which {self._num_prefix_tokens} look like class or "
                        f"register tokens; expected {num_patches} patches beside them."
                    )
            poolings = ("mean", "mean+max", *(("cls",) if has_class_token else ()))
            layers = ("last", *(("last4",) if blocks else ()))
            self.kinds = tuple(f"{layer}/{pooling}" for layer in layers for pooling in poolings)
            if latents is not None:
                self.kinds += ("latents/mean", "latents/mean+max", "groups/mean", "groups/mean+max")

    def __repr__(self) -> str:
        return f"VisionEncoder({self.name!r}, image_size={self.image_size}, kinds={self.kinds})"

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu") if self._model is None else self._model.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture, weights, preprocessing and image size, as 64 hexadecimal digits.

        Read off the weights anew each time, one tensor after the other, so it is right after any change. Where the
        checkpoint came from has no part in it, nor have poolers, which no feature needs.
        """
        about: dict[str, Any] = {"image_size": self.image_size, "normalisation": [self.image_mean, self.image_std]}
        if self.pixel_format.value_range is not None:
            about["value_range"] = self.pixel_format.value_range
        if self._model is not None:
            config = self._model.config.to_dict().items()
            about["class"] = type(self._model).__qualname__
            about["config"] = {name: value for name, value in config if name not in _NOT_OF_THE_MODEL}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, tensor in sorted(({} if self.module is None else self.module.state_dict()).items()):
            if "pooler" not in name:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def preprocess(self, pixel_values: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> normalised float32 of the same shape, on the same device."""
        return normalize_images(pixel_values, self.image_mean, self.image_std)

    def check_kinds(self, kinds: str | Sequence[str]) -> tuple[str, ...]:
        """The kinds given, as a tuple.

        Raises:
            ValueError: there are none, one is given twice, or this encoder lacks one.
        """
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        unknown = [kind for kind in kinds if kind not in self.kinds]
        if unknown or not kinds or len(set(kinds)) < len(kinds):
            given = repr(unknown[0]) if unknown else str(kinds)
            raise ValueError(
                f"The feature kind given is {given}; {self.name} has {', '.join(map(repr, self.kinds))}. Pass one or "
                "several of them, each once."
            )
        return kinds

    def features(self, pixel_values: Tensor, kinds: str | Sequence[str] = ("last/mean",)) -> dict[str, Tensor]:
        """Features of a batch, in evaluation and inference mode, all kinds of hidden states from one forward pass.

        Latents and groups need passes of their own, since a patch's latents are predicted from other patches (see
        [`SparseJEPAModel.encode_latents`]). Training flags and torch's random state are left as they were. Under
        autocast the model runs in its type.

        Args:
            pixel_values: uint8 images (B, C, height, width) of `pixel_format`, on any device.
            kinds: of [`VisionEncoder.kinds`].

        Returns:
            float32 (B, D) by kind, on the encoder's device; D depends on the kind.

        Raises:
            TypeError: the images are not uint8.
            ValueError: an unknown kind, or images of another shape or size.
        """
        kinds = self.check_kinds(kinds)
        check_images(pixel_values)
        if tuple(pixel_values.shape[1:]) != self.pixel_format.shape:
            raise ValueError(
                f"The images have the shape {tuple(pixel_values.shape[1:])}, but {self.name} takes "
                f"{self.pixel_format.shape}: channels, height, width. Read them with encoder.pixel_format.read, or "
                "load it with another image_size."
            )
        if self._model is None or self.module is None:
            return {PIXELS: small_pixel_features(pixel_values)}
        device, wanted = self.device, {kind.split("/")[0] for kind in kinds}
        layers: dict[str, Tensor] = {}
        with frozen_module(self.module, device, device), preserved_rng(device), torch.inference_mode():
            images = self.preprocess(pixel_values.to(device)).to(self._model.dtype)
            if wanted & {"last", "last4"}:
                layers["last"], blocks = self._hidden_states(images, "last4" in wanted)
                layers |= {"last4": torch.cat(blocks, dim=-1)} if blocks else {}
            if self._latents is not None and wanted & {"latents", "groups"}:
                resized = self._sides != tuple(self._latents.config.image_sides)
                layers["latents"], inputs = self._latents.encode_latents(images, interpolate_pos_encoding=resized)
                layers["groups"] = torch.linalg.vector_norm(inputs.float(), dim=-1)
            pooled = {}
            for kind in kinds:
                layer, pooling = kind.split("/")
                prefix = 0 if layer in ("latents", "groups") else self._num_prefix_tokens
                pooled[kind] = pool_tokens(layers[layer], pooling, prefix)
        # Outside inference mode, so that features can take part in autograd.
        return {kind: values.clone() for kind, values in pooled.items()}

    def _hidden_states(self, images: Tensor, with_blocks: bool) -> tuple[Tensor, list[Tensor]]:
        """Final hidden states (B, T, D) and, with blocks, those of up to four blocks, as `last4` joins them.

        The list is empty where the model does not show its blocks, or shows them in other shapes.
        """
        model = self._model
        assert model is not None
        options: dict[str, Any] = {}
        arguments = inspect.signature(model.forward).parameters
        (height, width), built_for = self._sides, getattr(model.config, "image_size", self.image_size)
        if "interpolate_pos_encoding" in arguments and _size_of(built_for) != self.image_size:
            options["interpolate_pos_encoding"] = True
        if "noise" in arguments:
            # Masked autoencoders shuffle their patches by it; ascending, it keeps their order.
            count = (height // model.config.patch_size) * (width // model.config.patch_size)
            options["noise"] = torch.linspace(0, 1, count, device=images.device).expand(len(images), -1)
        is_timm = isinstance(model, TimmWrapperModel)
        if is_timm and with_blocks:
            shown = inspect.signature(getattr(model.timm_model, "forward_intermediates", len)).parameters
            with_blocks = "return_prefix_tokens" in shown
            options |= {"norm": True, "output_fmt": "NLC", "return_prefix_tokens": True} if with_blocks else {}
        output = model(pixel_values=images, output_hidden_states=with_blocks, **options)
        last = getattr(output, "last_hidden_state", None)
        if last is None or last.ndim not in (2, 3, 4):
            raise TypeError(
                f"the output of {type(model).__name__} has no last_hidden_state (B, T, D), (B, D) or (B, D, H, W); "
                "give the encoder instead of a model with a task head"
            )
        blocks = list(output.hidden_states or ()) if with_blocks and last.ndim == 3 else []
        if is_timm:
            if last.ndim == 4 and str(getattr(model.timm_model, "output_fmt", "NCHW")).upper().endswith("NHWC"):
                last = last.permute(0, 3, 1, 2)
            # Each block gives its patches and, if the model has any, the tokens before them.
            blocks = [torch.cat(b[::-1], dim=1) if isinstance(b, tuple) else b for b in blocks]
        else:
            # The first is the embeddings.
            blocks = blocks[1:]
        tokens = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last.reshape(len(last), -1, last.shape[-1])
        if not all(block.shape == last.shape for block in blocks):
            return tokens, []
        norm, blocks = _final_norm(model), blocks[-_NUM_LAST_BLOCKS:]
        # Some models give the last block's output through the norm already, others do not.
        return tokens, blocks if norm is None or not blocks else [*map(norm, blocks[:-1]), tokens]

    def _try_out(self) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of one image; raises if the model cannot encode it."""
        model = self._model
        assert model is not None
        try:
            with frozen_module(model, model.device, model.device), preserved_rng(model.device), torch.inference_mode():
                image = torch.zeros(1, *self.pixel_format.shape, dtype=torch.uint8, device=model.device)
                return self._hidden_states(self.preprocess(image).to(model.dtype), with_blocks=True)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise ValueError(
                f"{self.name} cannot encode an image of {self._sides[0]}x{self._sides[1]} pixels and "
                f"{self.pixel_format.num_channels} channels ({str(error).rstrip('.')}). Expected a vision model that "
                "takes such images; another size can be chosen with image_size."
            ) from error


def load_encoder(
    source: str | Path | PreTrainedModel,
    *,
    encoder: str = "target",
    untrained: bool = False,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    image_size: int | Sequence[int] | None = None,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
    device: torch.device | str | None = None,
) -> VisionEncoder:
    """Loads any vision checkpoint as a [`VisionEncoder`], with float32 weights.

    Models of this family take the channels that they were trained on; those of others are RGB.

    Args:
        source: a folder or a Hub name of a checkpoint of this family, whichever class saved it, or of any transformers
            model of images whose output has `last_hidden_state` (of CLIP and the like, the vision tower); `timm/NAME`,
            with timm's weights, or `timm/NAME@FILE` with those of a local file; a model of transformers in memory,
            which is used as it is; or `"pixels"`, the raw-pixel baseline, 32 pixels a side unless `image_size` says
            otherwise (longer sides are reduced to 32 by area).
        encoder: `"target"` or `"context"`, for checkpoints of this family.
        untrained: the same architecture, freshly initialised. For this family these are the weights that a
            pre-training run with `seed` starts from.
        seed: of the initialisation.
        revision: of a checkpoint on the Hub.
        trust_remote_code: run code that a checkpoint brings along.
        image_size: pixels of the images: the side of a square, or height and width. By default that of the
            checkpoint's `preprocessor_config.json` (`crop_size`, else `size`), else of its configuration; for this
            family always the configuration's.
        num_channels: of `"pixels"` alone; models say theirs.
        value_range: lowest and highest value of the images. By default that of the checkpoint's image processor.
        device: where to run; by default the CPU.

    Returns:
        The encoder. Images are normalised as the checkpoint's `preprocessor_config.json` or timm's data configuration
        says. Without either, mean and standard deviation are taken as 0.5, with a warning.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is not a vision model, lacks weights or the encoder asked for, cannot take such images, or an
            argument is out of its range.
        OSError: the Hub could not be reached.
    """
    if encoder not in ("target", "context"):
        raise ValueError(f"encoder is {encoder!r}; expected 'target' or 'context'.")
    if image_size is not None:
        sides = sides_of(image_size)
        image_size = sides if sides[0] != sides[1] else sides[0]
    half = [0.5] * num_channels
    if str(source) == PIXELS:
        return VisionEncoder("raw pixels", None, image_size or MAX_PIXEL_SIDE, half, half, value_range=value_range)
    processing: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        if not isinstance(source, PreTrainedModel) or untrained or device is not None:
            raise ValueError(
                f"A {type(source).__name__} in memory is given; expected a model of transformers, without untrained "
                "and device, since it is used as it is."
            )
        name, model = type(source).__name__, source
    elif (name := str(source)).startswith(_TIMM) and not Path(name).exists():
        model = _load_timm(name, untrained, seed, image_size)
    else:
        hub = {"trust_remote_code": trust_remote_code} | ({} if revision is None else {"revision": revision})
        model = _load_checkpoint(name, encoder, untrained, seed, hub)
        processing = _read_processor(name, hub)
    if isinstance(model, (SparseJEPAForPreTraining, SparseJEPAForImageClassification)):
        model = model.sparsejepa
    latents = None
    if isinstance(model, _FAMILY):
        processing["image_size"] = None
        latents = model if isinstance(model, SparseJEPAModel) and model.config.use_grouping else None
        model = _context_only(model, name) if encoder == "context" else model
    elif encoder == "context":
        raise ValueError(
            f"encoder is {encoder!r}, but {name} is not of the SparseJEPA family and has one encoder only. Leave "
            "encoder out."
        )
    if isinstance(model, TimmWrapperModel):
        processing = _timm_processing(model)
    if getattr(model.config, "mask_ratio", 0):
        # Masked autoencoders hide patches in every forward pass; features are of the whole image.
        model = copy.deepcopy(model)
        model.config.mask_ratio = 0.0
    if device is not None:
        model.to(device=device)
        latents = None if latents is None else latents.to(device=device)
    stated = image_size or processing.get("image_size")
    size = stated or _size_of(getattr(model.config, "image_size", None))
    name += " (context encoder)" if encoder == "context" else ""
    name += f" (untrained, seed {seed})" if untrained else ""
    if size is None:
        raise ValueError(f"{name} does not say which image size it takes; pass image_size, in pixels.")
    if "image_mean" not in processing:
        logger.warning(f"{name} does not say how images are normalised; mean and standard deviation are taken as 0.5.")
    half = [0.5] * (model.config.num_channels if isinstance(model, _FAMILY) else 3)
    mean, std = processing.get("image_mean", half), processing.get("image_std", half)
    return VisionEncoder(name, model, size, mean, std, latents, value_range or processing.get("value_range"))


# ---- where models come from ----


def _load_checkpoint(source: str, encoder: str, untrained: bool, seed: int, hub: dict[str, Any]) -> PreTrainedModel:
    config = _load_config(source, hub)
    if not isinstance(config, SparseJEPAConfig):
        config = _vision_config(source, config)
    if untrained:
        with preserved_rng(torch.device("cpu")):
            torch.manual_seed(seed)
            if isinstance(config, SparseJEPAConfig):
                # The class that pre-training builds, for the same draws.
                return SparseJEPAForPreTraining(config)
            trust = hub["trust_remote_code"]
            return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=trust)
    model_class, options = AutoModel, {"config": config}
    if isinstance(config, SparseJEPAConfig):
        saved_by = (config.architectures or ["SparseJEPAModel"])[0]
        model_class = SparseJEPAVisionModel if saved_by in _TARGET_ONLY else SparseJEPAModel
    model, info = model_class.from_pretrained(source, output_loading_info=True, dtype=torch.float32, **options, **hub)
    # No feature passes through a pooler, nor, without grouping, through the predictor.
    unused = ("pooler",) if getattr(config, "use_grouping", True) else ("pooler", "predictor.")
    _refuse_missing(source, [name for name in info["missing_keys"] if not any(part in name for part in unused)])
    return model


def _load_config(source: str, hub: dict[str, Any]) -> PreTrainedConfig:
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(file.parent.name for file in path.glob("*/config.json"))
        hint = f"; its folders {', '.join(inside)} have one" if inside else ""
        raise FileNotFoundError(f"The folder {source!r} has no config.json{hint}. Give the folder of a checkpoint.")
    if path.is_file():
        raise ValueError(f"{source!r} is a file; expected the folder of a checkpoint, or timm/NAME@{source}.")
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise FileNotFoundError(f"There is no folder {str(path.absolute())!r}. Check the path of the checkpoint.")
    try:
        return AutoConfig.from_pretrained(str(path) if path.is_dir() else source, **hub)
    except OSError as error:
        raise FileNotFoundError(
            f"No checkpoint was found under {source!r}, neither as a folder nor on the Hub ({error}). Check the "
            "spelling and the connection."
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"The checkpoint {source!r} cannot be used ({error})") from error


def _vision_config(source: str, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the part that sees images."""
    for candidate in filter(None, (config, getattr(config, "vision_config", None))):
        model_class = MODEL_MAPPING.get(type(candidate), None)
        model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
        # A class that comes with the checkpoint is not listed; it is tried out.
        if getattr(model_class, "main_input_name", "pixel_values") == "pixel_values":
            return candidate
    raise ValueError(
        f"{source!r} is a checkpoint of type {config.model_type!r}, which does not take images; expected a vision "
        "model, such as 'ijepa', 'vit' or 'sparsejepa'."
    )


def _context_only(model: PreTrainedModel, name: str) -> SparseJEPAVisionModel:
    """The context encoder as a model of its own, which shows its blocks as the target encoder's model does."""
    if not isinstance(model, SparseJEPAModel):
        raise ValueError(
            f"{name} has no context encoder; expected one saved by SparseJEPAForPreTraining or SparseJEPAModel. Use "
            "encoder='target'."
        )
    with preserved_rng(torch.device("cpu")):
        vision = SparseJEPAVisionModel(model.config)
    # A copy: hooks that record hidden states must not gather on the model given.
    vision.target_encoder = copy.deepcopy(model.context_encoder)
    return vision


def _load_timm(name: str, untrained: bool, seed: int, image_size: int | Sequence[int] | None) -> TimmWrapperModel:
    """timm builds and loads, since it knows each name's default weights and fits positions to `image_size`."""
    # Takes seconds to import, and few need it.
    import timm
    from timm.models import load_state_dict

    architecture, _, file = name.removeprefix(_TIMM).partition("@")
    if not timm.is_model(architecture.split(".")[0]):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"timm has no model {architecture!r}.{hint}")
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"There is no file {file!r}; expected weights of timm's {architecture}.")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    with preserved_rng(torch.device("cpu")):
        try:
            model = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=options))
        except TypeError:
            # Convolutional networks take any size and have no such argument.
            options = {}
            model = TimmWrapperModel(TimmWrapperConfig(architecture=architecture))
        # transformers draws the weights of a new model by a rule of its own; these are drawn by timm's.
        torch.manual_seed(seed)
        pretrained = not untrained and not file
        model.timm_model = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **options)
    if file and not untrained:
        outcome = model.timm_model.load_state_dict(load_state_dict(file, weights_only=True), strict=False)
        _refuse_missing(file, outcome.missing_keys)
    return model


def _refuse_missing(source: str, missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(
            f"The checkpoint {source!r} lacks {len(missing)} of the encoder's weights, such as "
            f"{sorted(missing)[0]!r}, which would stay random; expected all. Check which class it was saved by."
        )


# ---- what models say of themselves ----


def _prefix_tokens(model: PreTrainedModel) -> tuple[int, bool]:
    """How many class, distillation and register tokens come before the patches, and whether one is a class token."""
    if isinstance(model, TimmWrapperModel):
        has_class_token = getattr(model.timm_model, "cls_token", None) is not None
        return getattr(model.timm_model, "num_prefix_tokens", 0), has_class_token
    parameters = {name.rsplit(".", 1)[-1]: parameter for name, parameter in model.named_parameters()}
    has_class_token = not parameters.keys().isdisjoint(("cls_token", "class_token", "class_embedding"))
    num_registers = parameters["register_tokens"].shape[1] if "register_tokens" in parameters else 0
    return has_class_token + ("distillation_token" in parameters) + num_registers, has_class_token


def _final_norm(model: PreTrainedModel) -> nn.Module | None:
    encoder = model.target_encoder if isinstance(model, _FAMILY) else model
    norms = (getattr(encoder, name, None) for name in ("layernorm", "norm"))
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def _timm_processing(model: TimmWrapperModel) -> dict[str, Any]:
    from timm.data import resolve_data_config

    stated = getattr(model.config, "pretrained_cfg", None)
    data = resolve_data_config(pretrained_cfg=stated, model=model.timm_model)
    built_for = getattr(getattr(model.timm_model, "patch_embed", None), "img_size", None)
    size = _size_of(built_for or data["input_size"][1:])
    return {"image_mean": data["mean"], "image_std": data["std"], "image_size": size}


def find_processor(source: str, **hub: Any) -> Any | None:
    """The checkpoint's image processor, or None without one; `hub` is for `from_pretrained`."""
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    options |= {"revision": hub["revision"]} if "revision" in hub else {}
    names = ("preprocessor_config.json", "processor_config.json")
    if not any(cached_file(source, name, **options) for name in names):
        return None
    return AutoImageProcessor.from_pretrained(source, **hub)


def pixel_statistics_of(processor: Any, num_channels: int = 3) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel that an image processor normalises pixels from 0 to 1 with.

    Where it states one number, or does not normalise, it holds for `num_channels`.
    """
    # (x · factor - mean) / std, said in terms of x / 255.
    factor = 255.0 * (processor.rescale_factor if processor.do_rescale else 1.0)
    stated = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = ([value] * num_channels if isinstance(value, (int, float)) else value for value in stated)
    return [float(value) / factor for value in mean], [float(value) / factor for value in std]


def _read_processor(source: str, hub: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint's image processor says of its images; empty without one."""
    processor = find_processor(source, **hub)
    if processor is None:
        return {}
    mean, std = pixel_statistics_of(processor, getattr(processor, "num_channels", 3))
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    value_range = getattr(processor, "value_range", None)
    return {"image_mean": mean, "image_std": std, "image_size": _size_of(size), "value_range": value_range}


def _size_of(size: Any) -> int | tuple[int, int] | None:
    """The side of squares, or height and width, from any of the ways to write them; None where it cannot be told."""
    if size is None or isinstance(size, int):
        return size
    if not isinstance(size, (list, tuple)):
        size = dict(size)
        edge = size.get("shortest_edge")
        size = (edge, edge) if edge else (size.get("height"), size.get("width"))
    return size[0] if size[0] == size[-1] else (size[0], size[-1])
