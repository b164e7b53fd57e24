# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Serves a SparseJEPA checkpoint on Hugging Face Inference Endpoints, which look for this file beside the checkpoint.

A request is JSON, `{"inputs": image or [image, …], "parameters": {…}}` with images as base64 texts, or the bytes of
one image under an image content type. The parameters, all optional:

- `task`: "features"; "groups", the norms ‖u_g‖ of the groups; or "classes". Default: "classes" of a classifier, else
  "features". A checkpoint has the tasks that its model has.
- `pool`: true for one vector an image, the mean over its patches; false for one a patch, row by row. Default: true.
- `top_k`: how many classes, the likeliest first. Default: 5.

The answer is a list of numbers an image (a list of lists if not pooled) or a list of {"label", "score"}; for a list of
images, a list of these.
"""

import base64
import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)


# Of one request, all its images together: they are decoded before the first is encoded.
MAX_IMAGES = 64
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6

# Some of PIL's other readers run programs or fetch files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_CLASSES = {
    "SparseJEPAForImageClassification": AutoModelForImageClassification,
    "SparseJEPAForPreTraining": AutoModelForPreTraining,
    "SparseJEPAModel": AutoModelForPreTraining,
}


class EndpointHandler:
    """Loads a checkpoint once, and answers requests.

    Args:
        path: the folder of the checkpoint, whose code is run.
    """

    def __init__(self, path: str = "") -> None:
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        self.processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
        auto_class = _CLASSES.get((config.architectures or [""])[0], AutoModel)
        problem = getattr(config, "problem_type", None)
        if auto_class is AutoModelForImageClassification and problem not in (None, "single_label_classification"):
            raise ValueError(
                f"The classifier's problem_type is {problem!r}; expected single_label_classification. Serve it with a "
                "handler of your own, or take the features by AutoModel."
            )
        model = auto_class.from_pretrained(path, trust_remote_code=True).eval()
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = getattr(model, "sparsejepa", model)
        self.tasks: dict[str, Callable[..., list[Any]]] = {"features": self._features}
        if auto_class is AutoModelForImageClassification:
            self.tasks = {"classes": self._classes, **self.tasks}
        if auto_class is AutoModelForPreTraining and config.use_grouping:
            self.tasks["groups"] = self._groups

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Answers one request.

        Args:
            data: `inputs`: an image or a list of them, each a base64 text, the bytes of a file or a PIL image; and
                perhaps `parameters`.

        Returns:
            What the task gives for the image, or a list of that for a list of images; all of it is JSON.

        Raises:
            ValueError: the request is not one, is too large, or has an image that cannot be read.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('The request has no inputs; expected {"inputs": the base64 text of an image file}.')
        task, option = self._read_parameters(data.get("parameters") or {})
        inputs = data["inputs"]
        images = _read_images(inputs if isinstance(inputs, (list, tuple)) else [inputs])
        pixels = self.processor(images, do_convert_rgb=True, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            answers = task(pixels.to(self.model.device, self.model.dtype), option)
        return answers if isinstance(inputs, (list, tuple)) else answers[0]

    def _read_parameters(self, parameters: Any) -> tuple[Any, Any]:
        """The task, and the value of its one option."""
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is a {type(parameters).__name__}; expected an object, such as {{}}.")
        name = parameters.get("task", next(iter(self.tasks)))
        if name not in [*self.tasks]:
            raise ValueError(f"The task is {name!r}; this checkpoint has {', '.join(map(repr, self.tasks))}.")
        option, default = ("top_k", 5) if name == "classes" else ("pool", True)
        if unknown := sorted(map(str, parameters.keys() - {"task", option})):
            raise ValueError(f"The task {name!r} has no parameter {unknown[0]!r}; expected task or {option}.")
        value = parameters.get(option, default)
        if type(value) is not type(default) or (option == "top_k" and value < 1):
            expected = "a whole number of at least 1" if option == "top_k" else "true or false"
            raise ValueError(f"{option} is {value!r}; expected {expected}.")
        return self.tasks[name], value

    def _features(self, pixels: torch.Tensor, pool: bool) -> list[Any]:
        output = self.encoder(pixels)
        return _as_json(output.pooler_output if pool else output.last_hidden_state)

    def _groups(self, pixels: torch.Tensor, pool: bool) -> list[Any]:
        _, activations = self.encoder.encode_latents(pixels)
        norms = torch.linalg.vector_norm(activations.float(), dim=-1)
        return _as_json(norms.mean(dim=1) if pool else norms)

    def _classes(self, pixels: torch.Tensor, top_k: int) -> list[Any]:
        scores = self.model(pixels).logits.float().softmax(dim=-1)
        best = scores.topk(min(top_k, scores.shape[-1]))
        names = self.model.config.id2label
        return [
            [{"label": names[index], "score": score} for index, score in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), _as_json(best.values), strict=True)
        ]


def _as_json(values: torch.Tensor) -> list[Any]:
    if not values.isfinite().all():
        raise ValueError("The model gave numbers that are not finite; check the checkpoint and its dtype.")
    return values.float().tolist()


def _read_images(inputs: list[Any] | tuple[Any, ...]) -> list[Image.Image]:
    """The images of a request, decoded once they are known to be small enough."""
    if not 1 <= len(inputs) <= MAX_IMAGES:
        raise ValueError(f"The request has {len(inputs)} images; expected 1 to {MAX_IMAGES}.")
    size = sum(len(item) for item in inputs if isinstance(item, (str, bytes, bytearray)))
    if size > MAX_BYTES:
        raise ValueError(f"The images take {size:,} bytes; expected at most {MAX_BYTES:,} in a request.")
    images = [_open(item, place) for place, item in enumerate(inputs)]
    count = sum(image.width * image.height for image in images)
    if count > MAX_PIXELS:
        raise ValueError(f"The images have {count:,} pixels; expected at most {MAX_PIXELS:,} in a request.")
    for place, image in enumerate(images):
        _attempt(image.load, place)
    return images


def _open(item: Any, place: int) -> Image.Image:
    """An image whose header has been read, and no more."""
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, str):
        text = item.partition(",")[2] if item.startswith("data:") else item
        item = _attempt(lambda: base64.b64decode("".join(text.split()), validate=True), place)
    if not isinstance(item, (bytes, bytearray)):
        raise ValueError(f"Image {place} is a {type(item).__name__}; expected the base64 text of an image file.")
    return _attempt(lambda: Image.open(io.BytesIO(item), formats=_FORMATS), place)


def _attempt(step: Callable[[], Any], place: int) -> Any:
    """What a step of reading gives. PIL raises errors of many kinds on damaged files."""
    try:
        return step()
    except Exception as error:
        # Without the address of an object, which PIL's sentence ends in.
        reason = str(error).partition(" <")[0]
        raise ValueError(
            f"Image {place} cannot be read ({reason}); expected the base64 text of a complete image file: "
            f"{', '.join(_FORMATS)}."
        ) from error
