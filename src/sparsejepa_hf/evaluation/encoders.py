# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One interface to the features of any vision checkpoint: this family, transformers, timm, modules and raw pixels."""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import cached_file, logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..data import normalize_images
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
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_BLOCK_LISTS = ("layer", "layers", "block", "blocks")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TARGET_ONLY = ("SparseJEPAVisionModel", "SparseJEPAForImageClassification")
# What a configuration says about its file instead of about the model.
_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


@dataclass
class _Tower:
    """A module with what is needed to read tokens off it.

    Attributes:
        module: everything that runs.
        encode: normalised images (B, 3, S, S) -> tokens (B, T, D), final norm applied.
        description: JSON-ready; with the weights it settles what is computed.
        image_size: side that the checkpoint takes, in pixels; None if it does not say.
        image_mean, image_std: normalisation that the checkpoint states; None if it does not.
        num_prefix_tokens: class, distillation and register tokens, which come first.
        latents: the model whose `encode_latents` gives latents and groups, if there is one.
        uninitialised: names of weights that no checkpoint held and no feature needs.
    """

    module: nn.Module
    encode: Callable[[Tensor], Tensor]
    description: dict[str, Any]
    image_size: int | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    num_prefix_tokens: int = 0
    has_class_token: bool = False
    blocks: list[nn.Module] = field(default_factory=list)
    norm: nn.Module | None = None
    latents: SparseJEPAModel | None = None
    uninitialised: frozenset[str] = frozenset()


class VisionEncoder:
    """A frozen encoder that turns uint8 images into pooled features; [`load_encoder`] makes it.

    Attributes:
        name: what tables call it.
        image_size: side of the images that `features` takes, in pixels.
        kinds: the feature kinds it has, `LAYERS/POOLING`. LAYERS: `last`, the final hidden states; `last4`, the last
            four blocks' outputs (all, where there are fewer) one after the other along the features, the final norm
            applied to each, as in DINOv2 (arXiv 2304.07193); `latents`, the means μ of SparseJEPA's latents;
            `groups`, the norms ‖u_g‖₂ of its groups, both as `SparseJEPAModel.encode_latents` gives them, whichever
            encoder was asked for. POOLING: `mean` over patches; `mean+max`, their mean and maximum
            one after the other; `cls`, the class token, where there is one. Class and register tokens take no part in
            `mean` and `max`. The raw-pixel baseline has the one kind `pixels`.
        image_mean, image_std: normalisation of each channel, on the scale from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        tower: _Tower | None,
        image_size: int,
        image_mean: Sequence[float] = _HALF,
        image_std: Sequence[float] = _HALF,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self._tower = tower
        self.kinds = (PIXELS,) if tower is None else _kinds_of(tower)

    def __repr__(self) -> str:
        return f"VisionEncoder({self.name!r}, image_size={self.image_size}, kinds={self.kinds})"

    @property
    def module(self) -> nn.Module | None:
        """What runs; None for raw pixels."""
        return None if self._tower is None else self._tower.module

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        parameter = None if self.module is None else next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights, and of the input it gets."""
        parameters = () if self.module is None else self.module.parameters()
        return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture, weights, preprocessing and image size, as 64 hexadecimal digits.

        Read off the weights anew each time, one tensor after the other, so it is right after any change; where the
        checkpoint came from has no part in it.
        """
        tower = self._tower
        digest = hashlib.sha256()
        described = {
            "description": PIXELS if tower is None else tower.description,
            "image_size": self.image_size,
            "normalisation": [self.image_mean, self.image_std],
        }
        digest.update(json.dumps(described, sort_keys=True, default=str).encode())
        weights = {} if tower is None else tower.module.state_dict()
        for name in sorted(weights.keys() - (frozenset() if tower is None else tower.uninitialised)):
            tensor = weights[name]
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def preprocess(self, pixel_values: Tensor) -> Tensor:
        """uint8 images (B, 3, S, S) -> normalised float32 of the same shape, on the same device."""
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
            pixel_values: uint8 images (B, 3, image_size, image_size), on any device.
            kinds: of [`VisionEncoder.kinds`].

        Returns:
            float32 (B, D) by kind, on the encoder's device; D depends on the kind.

        Raises:
            TypeError: the images are not uint8.
            ValueError: an unknown kind, or images of another shape or size.
        """
        kinds = self.check_kinds(kinds)
        self._check_size(pixel_values)
        if self._tower is None:
            return {PIXELS: small_pixel_features(pixel_values)}
        device = self.device
        with frozen_module(self._tower.module, device, device), preserved_rng(device):
            with torch.inference_mode():
                pooled = _pooled(self._tower, self.preprocess(pixel_values.to(device)).to(self.dtype), kinds)
            # Outside inference mode, so that features can take part in autograd.
            return {kind: values.clone() for kind, values in pooled.items()}

    def _check_size(self, pixel_values: Tensor) -> None:
        check_images(pixel_values)
        if pixel_values.shape[-1] != self.image_size:
            raise ValueError(
                f"The images are {pixel_values.shape[-1]} pixels a side, but {self.name} takes {self.image_size}. "
                f"Resize them with data.resize_to_square, or load it with image_size={pixel_values.shape[-1]}."
            )


def load_encoder(
    source: str | Path | nn.Module,
    *,
    encoder: str = "target",
    untrained: bool = False,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    image_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VisionEncoder:
    """Loads any vision checkpoint as a [`VisionEncoder`].

    Args:
        source: a folder or a Hub name of a checkpoint of this family, whichever class saved it, or of any transformers
            model of images whose output has `last_hidden_state` (of CLIP and the like, the vision tower); `timm/NAME`,
            with timm's weights, or `timm/NAME@FILE` with those of a local file; a module in memory, called with
            `pixel_values` if it has such an argument, that gives `last_hidden_state` or a tensor, (B, T, D), (B, D) or
            (B, D, H, W); or `"pixels"`, the raw-pixel baseline, 32 pixels a side unless `image_size` says otherwise
            (larger images are reduced to 32 by area).
        encoder: `"target"` or `"context"`, for checkpoints of this family.
        untrained: the same architecture, freshly initialised. For this family these are the weights that a
            pre-training run with `seed` starts from.
        seed: of the initialisation.
        revision: of a checkpoint on the Hub.
        trust_remote_code: run code that a checkpoint brings along.
        image_size: side of the images, in pixels. By default that of the checkpoint's `preprocessor_config.json`
            (`crop_size`, else `size`), else of its configuration; for this family always the configuration's.
        device: where to run; by default the CPU, and where it is for a module in memory.
        dtype: type of the weights; by default float32, and as it is for a module in memory.

    Returns:
        The encoder. Images are normalised as the checkpoint's `preprocessor_config.json` or timm's data configuration
        says; with mean and standard deviation 0.5, and a warning, where there is none. A module in memory is shared,
        and copied only where it has to change: for `untrained`, another device or type.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is not a vision model, lacks weights or the encoder asked for, cannot take such images, or an
            argument is out of its range.
        OSError: the Hub could not be reached.
    """
    if encoder not in ("target", "context"):
        raise ValueError(f"encoder is {encoder!r}; expected 'target' or 'context'.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected a number of pixels of at least 1, or None.")
    if isinstance(source, nn.Module):
        name, tower = type(source).__name__, _from_memory(source, encoder, untrained, seed, image_size, device, dtype)
    elif str(source) == PIXELS:
        return VisionEncoder("raw pixels", None, image_size or MAX_PIXEL_SIDE)
    else:
        name = str(source)
        hub = {"trust_remote_code": trust_remote_code} | ({} if revision is None else {"revision": revision})
        if name.startswith(_TIMM) and not Path(name).exists():
            tower = _timm_tower(_load_timm(name, untrained, seed, image_size))
        else:
            tower = _from_checkpoint(name, encoder, untrained, seed, image_size, hub)
        tower.module.to(device=device, dtype=dtype or torch.float32)
    is_family = "encoder" in tower.description
    name += " (context encoder)" if is_family and encoder == "context" else ""
    return _finish(name + (f" (untrained, seed {seed})" if untrained else ""), tower, image_size)


def _finish(name: str, tower: _Tower, image_size: int | None) -> VisionEncoder:
    size = image_size or tower.image_size
    if size is None:
        raise ValueError(f"{name} does not say which image size it takes; pass image_size, in pixels.")
    if tower.image_mean is None:
        logger.warning(f"{name} does not say how images are normalised; mean and standard deviation are taken as 0.5.")
    mean, std = tower.image_mean or _HALF, tower.image_std or _HALF
    _probe(VisionEncoder(name, tower, size, mean, std), tower)
    return VisionEncoder(name, tower, size, mean, std)


# ---- where models come from ----


def _from_memory(
    module: nn.Module,
    encoder: str,
    untrained: bool,
    seed: int,
    image_size: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> _Tower:
    if untrained:
        if not isinstance(module, PreTrainedModel):
            raise ValueError(
                f"A {type(module).__name__} in memory cannot be initialised anew; expected a model of transformers. "
                "Build the untrained module yourself."
            )
        home = module.device
        module = _initialise(copy.deepcopy(module.config), seed).to(home, module.dtype)
    parameter = next(module.parameters(), torch.empty(0))
    # "cuda" says any CUDA device.
    moves = device is not None and str(parameter.device) != str(device) != parameter.device.type
    if moves or (dtype is not None and dtype != parameter.dtype):
        module = copy.deepcopy(module).to(device=device, dtype=dtype)
    if _family_parts(module) is not None:
        return _family_tower(module, encoder, image_size)
    _refuse_context(encoder, type(module).__name__)
    if isinstance(module, PreTrainedModel):
        return _transformers_tower(module, image_size)
    if hasattr(module, "forward_features") and hasattr(module, "pretrained_cfg"):
        return _timm_tower(module)
    return _module_tower(module)


def _from_checkpoint(
    source: str, encoder: str, untrained: bool, seed: int, image_size: int | None, hub: dict[str, Any]
) -> _Tower:
    config = _load_config(source, hub)
    if isinstance(config, SparseJEPAConfig):
        model = _initialise(config, seed) if untrained else _load_family(source, config, encoder, hub)
        tower = _family_tower(model, encoder, image_size)
    else:
        _refuse_context(encoder, source)
        config = _vision_config(source, config)
        if untrained:
            model, missing = _initialise(config, seed, hub["trust_remote_code"]), frozenset()
        else:
            model, missing = _load_transformers(source, config, hub)
        processed = _processing(source, hub)
        tower = _transformers_tower(model, image_size or processed.get("image_size"))
        tower.uninitialised = missing
    for name, value in _processing(source, hub).items():
        if name != "image_size":
            setattr(tower, name, value)
    return tower


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
    except ValueError as error:
        raise ValueError(f"The checkpoint {source!r} cannot be used ({error})") from error


def _vision_config(source: str, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the part that sees images."""
    for candidate in (config, getattr(config, "vision_config", None)):
        if candidate is None:
            continue
        model_class = MODEL_MAPPING.get(type(candidate), None)
        model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
        # A class that comes with the checkpoint is not listed; it is tried out.
        if getattr(model_class, "main_input_name", "pixel_values") == "pixel_values":
            return candidate
    raise ValueError(
        f"{source!r} is a checkpoint of type {config.model_type!r}, which does not take images; expected a vision "
        "model, such as 'ijepa', 'vit' or 'sparsejepa'."
    )


def _initialise(config: PreTrainedConfig, seed: int, trust_remote_code: bool = False) -> nn.Module:
    with preserved_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        if isinstance(config, SparseJEPAConfig):
            # The class that pre-training builds, for the same draws.
            return SparseJEPAForPreTraining(config)
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


def _load_family(source: str, config: SparseJEPAConfig, encoder: str, hub: dict[str, Any]) -> nn.Module:
    saved_by = (config.architectures or ["SparseJEPAModel"])[0]
    if saved_by in _TARGET_ONLY and encoder == "context":
        raise ValueError(
            f"The checkpoint {source!r} was saved by {saved_by} and has no context encoder; expected one saved by "
            "SparseJEPAForPreTraining or SparseJEPAModel. Use encoder='target'."
        )
    model_class = SparseJEPAVisionModel if saved_by in _TARGET_ONLY else SparseJEPAModel
    model, info = model_class.from_pretrained(source, output_loading_info=True, dtype=torch.float32, **hub)
    _refuse_missing(source, info["missing_keys"])
    return model


def _load_transformers(
    source: str, config: PreTrainedConfig, hub: dict[str, Any]
) -> tuple[PreTrainedModel, frozenset[str]]:
    """The model, and the names of weights that it has but the checkpoint has not: those of a pooler at most."""
    model, info = AutoModel.from_pretrained(
        source, config=config, output_loading_info=True, dtype=torch.float32, **hub
    )
    missing = frozenset(info["missing_keys"])
    _refuse_missing(source, [name for name in missing if "pooler" not in name])
    return model, missing


def _refuse_missing(source: str, missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(
            f"The checkpoint {source!r} lacks {len(missing)} of the encoder's weights, such as "
            f"{sorted(missing)[0]!r}, which would stay random; expected all. Check which class it was saved by."
        )


def _refuse_context(encoder: str, name: str) -> None:
    if encoder != "target":
        raise ValueError(
            f"encoder is {encoder!r}, but {name} is not of the SparseJEPA family and has one encoder only. Leave "
            "encoder out."
        )


def _processing(source: str, hub: dict[str, Any]) -> dict[str, Any]:
    """`image_mean`, `image_std` and `image_size` by the checkpoint's image processor; empty without one."""
    revision = {"revision": hub["revision"]} if "revision" in hub else {}
    missing_ok = {"_raise_exceptions_for_missing_entries": False}
    if not any(cached_file(source, name, **revision, **missing_ok) for name in _PROCESSOR_FILES):
        return {}
    processor = AutoImageProcessor.from_pretrained(source, **hub)
    # (x · factor - mean) / std, said in terms of x / 255.
    factor = 255.0 * (processor.rescale_factor if processor.do_rescale else 1.0)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return {
        "image_mean": tuple(value / factor for value in _per_channel(mean)),
        "image_std": tuple(value / factor for value in _per_channel(std)),
        "image_size": _side_of(size, source),
    }


def _per_channel(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))


def _side_of(size: Any, name: str) -> int | None:
    """The side of square images from any of the ways to write one; None if it cannot be told."""
    if size is None or isinstance(size, int):
        return size
    if not isinstance(size, (list, tuple)):
        size = dict(size)
        edge = size.get("shortest_edge")
        size = (edge, edge) if edge else (size.get("height"), size.get("width"))
    if size[0] != size[-1]:
        raise ValueError(
            f"{name} takes images of {size[0]}x{size[-1]} pixels, but the data pipeline makes square ones. Pass "
            "image_size if the model takes square images too."
        )
    return size[0]


def _load_timm(name: str, untrained: bool, seed: int, image_size: int | None) -> nn.Module:
    # Takes seconds to import, and few need it.
    import timm

    architecture, _, file = name.removeprefix(_TIMM).partition("@")
    if not timm.is_model(architecture.split(".")[0]):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"timm has no model {architecture!r}.{hint}")
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"There is no file {file!r}; expected weights of timm's {architecture}.")
    options: dict[str, Any] = {"pretrained": not untrained and not file, "num_classes": 0}
    with preserved_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(architecture, **options, **({"img_size": image_size} if image_size else {}))
        except TypeError:
            # Convolutional networks take any size and have no such argument.
            model = timm.create_model(architecture, **options)
    if file and not untrained:
        _fill_timm(model, file)
    return model


def _fill_timm(model: nn.Module, file: str) -> None:
    from timm.models import load_state_dict

    outcome = model.load_state_dict(load_state_dict(file, weights_only=True), strict=False)
    _refuse_missing(file, outcome.missing_keys)


# ---- how tokens are read off them ----


def _family_parts(module: nn.Module) -> SparseJEPAModel | SparseJEPAVisionModel | None:
    if isinstance(module, (SparseJEPAForPreTraining, SparseJEPAForImageClassification)):
        return module.sparsejepa
    return module if isinstance(module, (SparseJEPAModel, SparseJEPAVisionModel)) else None


def _family_tower(module: nn.Module, encoder: str, image_size: int | None) -> _Tower:
    model, config = _family_parts(module), module.config
    if encoder == "context" and not isinstance(model, SparseJEPAModel):
        raise ValueError(
            f"A {type(module).__name__} has no context encoder; expected a SparseJEPAForPreTraining or "
            "SparseJEPAModel. Use encoder='target'."
        )
    if config.num_channels != 3:
        raise ValueError(f"The model takes images of {config.num_channels} channels; expected 3 (RGB).")
    side = image_size or _side_of(config.image_sides, "The model")
    chosen = model.context_encoder if encoder == "context" else model.target_encoder
    interpolate = (side, side) != tuple(config.image_sides)
    return _Tower(
        module=model,
        encode=lambda images: chosen(images, interpolate_pos_encoding=interpolate),
        description=_describe(model) | {"encoder": encoder},
        image_size=side,
        blocks=list(chosen.layers),
        norm=chosen.layernorm,
        latents=model if config.use_grouping and isinstance(model, SparseJEPAModel) else None,
    )


def _transformers_tower(model: PreTrainedModel, image_size: int | None) -> _Tower:
    config = model.config
    if getattr(config, "mask_ratio", 0):
        # Masked autoencoders hide patches in every forward pass; features are of the whole image.
        model = copy.deepcopy(model)
        config = model.config
        config.mask_ratio = 0.0
    side = image_size or _side_of(getattr(config, "image_size", None), model.name_or_path or type(model).__name__)
    arguments = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in arguments and side != getattr(config, "image_size", side):
        options["interpolate_pos_encoding"] = True

    def encode(images: Tensor) -> Tensor:
        order = {"noise": _patch_order(images, config.patch_size)} if "noise" in arguments else {}
        return _as_tokens(model(pixel_values=images, **options, **order), model)

    tower = _Tower(model, encode, _describe(model), image_size=side)
    return _with_prefix(tower)


def _patch_order(images: Tensor, patch_size: int) -> Tensor:
    """What keeps a masked autoencoder from shuffling its patches: (B, N), ascending."""
    count = (images.shape[-2] // patch_size) * (images.shape[-1] // patch_size)
    return torch.linspace(0, 1, count, device=images.device).expand(len(images), -1)


def _with_prefix(tower: _Tower) -> _Tower:
    tokens = {
        name.rsplit(".", 1)[-1]: p for name, p in tower.module.named_parameters() if "token" in name or "class" in name
    }
    tower.has_class_token = any(name in tokens for name in _CLASS_TOKENS)
    registers = tokens.get("register_tokens")
    tower.num_prefix_tokens = (
        int(tower.has_class_token)
        + int("distillation_token" in tokens)
        + (0 if registers is None else registers.shape[1])
    )
    return tower


def _timm_tower(model: nn.Module) -> _Tower:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    channels_last = str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC")

    def encode(images: Tensor) -> Tensor:
        states = model.forward_features(images)
        is_map = isinstance(states, Tensor) and states.ndim == 4
        return _as_tokens(states.permute(0, 3, 1, 2) if is_map and channels_last else states, model)

    return _Tower(
        module=model,
        encode=encode,
        description={"class": type(model).__qualname__, "modules": repr(model)},
        image_size=_side_of(built_for or data["input_size"][1:], type(model).__name__),
        image_mean=data["mean"],
        image_std=data["std"],
        num_prefix_tokens=getattr(model, "num_prefix_tokens", 0),
        has_class_token=getattr(model, "cls_token", None) is not None,
    )


def _module_tower(module: nn.Module) -> _Tower:
    by_name = "pixel_values" in inspect.signature(module.forward).parameters

    def encode(images: Tensor) -> Tensor:
        return _as_tokens(module(pixel_values=images) if by_name else module(images), module)

    description = {"class": type(module).__qualname__, "modules": repr(module)}
    side = _side_of(getattr(getattr(module, "config", None), "image_size", None), type(module).__name__)
    return _Tower(module, encode, description, image_size=side)


def _describe(model: PreTrainedModel) -> dict[str, Any]:
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    return {"class": type(model).__qualname__, "config": config}


def _as_tokens(output: Any, module: nn.Module) -> Tensor:
    """(B, T, D) from an output with `last_hidden_state` or a tensor; of a map (B, D, H, W) each place is a token."""
    states = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if states is None:
        raise TypeError(
            f"the output of {type(module).__name__} has no last_hidden_state; expected one, or a tensor. Give the "
            "encoder instead of a model with a task head"
        )
    if states.ndim == 4:
        return states.flatten(2).transpose(1, 2)
    if states.ndim not in (2, 3):
        raise ValueError(f"the hidden states have the shape {tuple(states.shape)}; expected (B, T, D) or (B, D, H, W)")
    return states[:, None] if states.ndim == 2 else states


# ---- trying a model out, and pooling ----


def _probe(encoder: VisionEncoder, tower: _Tower) -> None:
    """Sends one image through: whether the model works, and which modules are its blocks and its final norm."""
    size = encoder.image_size
    ramp = torch.arange(3 * size * size).view(1, 3, size, size).remainder(251).to(torch.uint8)
    device = encoder.device
    if not tower.blocks:
        tower.blocks = _find_blocks(tower.module)
    try:
        with frozen_module(tower.module, device, device), preserved_rng(device), torch.inference_mode():
            images = encoder.preprocess(ramp.to(device)).to(encoder.dtype)
            tokens, outputs = _run(tower, images, tower.blocks[-_NUM_LAST_BLOCKS:])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{encoder.name} cannot encode an image of {size}x{size} pixels ({str(error).rstrip('.')}). Expected a "
            "vision model that takes RGB images of this size; another size can be chosen with image_size."
        ) from error
    _check_prefix(encoder, tower, tokens)
    if tower.norm is None:
        tower.norm = _find_norm(tower, tokens, outputs)
    if tower.norm is None:
        tower.blocks = []


def _check_prefix(encoder: VisionEncoder, tower: _Tower, tokens: Tensor) -> None:
    if tower.num_prefix_tokens and tokens.shape[1] <= tower.num_prefix_tokens:
        # Of a map, or of pooled states: the class token is no part of it.
        tower.num_prefix_tokens, tower.has_class_token = 0, False
    count, config = tokens.shape[1] - tower.num_prefix_tokens, getattr(tower.module, "config", None)
    patch = getattr(config, "patch_size", None)
    if tower.num_prefix_tokens and isinstance(patch, int) and count != (encoder.image_size // patch) ** 2:
        raise ValueError(
            f"{encoder.name} gives {tokens.shape[1]} tokens, of which {tower.num_prefix_tokens} look like class or "
            f"register tokens; expected {(encoder.image_size // patch) ** 2} patches beside them. Wrap it in a module "
            "that returns its patch tokens (B, N, D)."
        )


def _find_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost list of layers."""
    lists = (
        part
        for name, part in module.named_modules()
        if name.rsplit(".", 1)[-1] in _BLOCK_LISTS and isinstance(part, (nn.ModuleList, nn.Sequential)) and len(part)
    )
    return list(next(lists, ()))


def _find_norm(tower: _Tower, tokens: Tensor, outputs: list[Any]) -> nn.Module | None:
    """The module that turns the last block's output into the final hidden states; None if no block's output does."""
    if not outputs or not all(isinstance(output, Tensor) and output.shape == tokens.shape for output in outputs):
        return None
    inside = {part for block in tower.blocks for part in block.modules()}
    norms = (
        part
        for name, part in tower.module.named_modules()
        if "norm" in name.rsplit(".", 1)[-1].lower() and part not in inside and _width(part) == tokens.shape[-1]
    )
    with torch.inference_mode():
        for norm in (nn.Identity(), *norms):
            if torch.allclose(norm(outputs[-1]), tokens, rtol=1e-3, atol=1e-4):
                return norm
    return None


def _width(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else None


def _kinds_of(tower: _Tower) -> tuple[str, ...]:
    poolings = ("mean", "mean+max", *(("cls",) if tower.has_class_token else ()))
    layers = ("last", *(("last4",) if tower.blocks else ()))
    kinds = [f"{layer}/{pooling}" for layer in layers for pooling in poolings]
    if tower.latents is not None:
        kinds += [f"{layer}/{pooling}" for layer in ("latents", "groups") for pooling in ("mean", "mean+max")]
    return tuple(kinds)


def _run(tower: _Tower, images: Tensor, blocks: Sequence[nn.Module]) -> tuple[Tensor, list[Any]]:
    """Tokens (B, T, D) and what each of `blocks` put out on the way, in their order."""
    outputs: dict[int, Any] = {}

    def keep(place: int) -> Callable[..., None]:
        return lambda module, args, output: outputs.update({place: output[0] if isinstance(output, tuple) else output})

    handles = [block.register_forward_hook(keep(place)) for place, block in enumerate(blocks)]
    try:
        tokens = tower.encode(images)
    finally:
        for handle in handles:
            handle.remove()
    return tokens, [outputs.get(place) for place in range(len(blocks))]


def _pooled(tower: _Tower, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
    wanted = {kind.split("/")[0] for kind in kinds}
    layers: dict[str, Tensor] = {}
    if wanted & {"last", "last4"}:
        blocks = tower.blocks[-_NUM_LAST_BLOCKS:] if "last4" in wanted else []
        layers["last"], outputs = _run(tower, images, blocks)
        if "last4" in wanted:
            layers["last4"] = torch.cat([tower.norm(output) for output in outputs], dim=-1)
    if wanted & {"latents", "groups"}:
        latents, inputs = _latents(tower, images)
        layers |= {"latents": latents, "groups": torch.linalg.vector_norm(inputs.float(), dim=-1)}
    pooled = {}
    for kind in kinds:
        layer, pooling = kind.split("/")
        pooled[kind] = pool_tokens(layers[layer], pooling, tower.num_prefix_tokens)
    return pooled


def _latents(tower: _Tower, images: Tensor) -> tuple[Tensor, Tensor]:
    """μ (B, N, K) and u (B, N, G, p)."""
    config = tower.latents.config
    return tower.latents.encode_latents(
        images, interpolate_pos_encoding=tuple(images.shape[-2:]) != tuple(config.image_sides)
    )
