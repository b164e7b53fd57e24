# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Readers of files for the `datasets` library: of folders of images and of arrays, and of WebDataset archives.

`datasets` puts functions of its own in the place of `Path`, `open` and others in the module of a reader, so nothing
else lies here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Features, Image, Value
from datasets.builder import BuilderConfig
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset


# Samples that columns and their types are read from.
_LOOKED_AT = 100


class ImageFiles(ImageFolder):
    """`datasets`' reader of folders of images, with those that it does not know of."""

    EXTENSIONS: ClassVar[list[str]] = [*ImageFolder.EXTENSIONS, ".avif"]


class ArrayFiles(ImageFolder):
    """`datasets`' reader of folders of images, for images that are arrays in `.npy` files."""

    EXTENSIONS: ClassVar[list[str]] = [".npy"]


@dataclass
class ImageTarsConfig(BuilderConfig):
    """What becomes of a sample.

    Attributes:
        image: extension of its image, where there are several, and name of the column.
        others: extensions of the parts that become columns beside it.
    """

    image: str | None = None
    others: tuple[str, ...] = ()


def _class(content: bytes) -> int | str:
    text = content.decode("utf-8", "replace").strip()
    return int(text) if text.removeprefix("-").isdecimal() else text


def _details(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        # One damaged part must not end a run.
        return None


class ImageTars(WebDataset):
    """`datasets`' reader of WebDataset archives, with the image of each sample in one column.

    Images may be of any formats, where `datasets` alone looks for those of the first five samples.

    A sample is the files of one key: `0001.jpg`, `0001.cls`, ... Its image, of whatever extension, becomes `image`.
    Parts beside it become columns where the configuration names them, and so do labels in a `.json`'s top level.
    """

    BUILDER_CONFIG_CLASS = ImageTarsConfig
    IMAGE_EXTENSIONS: ClassVar[list[str]] = [*WebDataset.IMAGE_EXTENSIONS, "avif"]
    # Whatever else there is stays bytes.
    DECODERS: ClassVar[dict[str, Any]] = {"cls": _class, "cls2": _class, "json": _details}

    def _split_generators(self, dl_manager: Any) -> Any:
        if not self.info.features:
            archive = next(iter(dl_manager.download(self.config.data_files).values()))[0]
            self.info.features = self._find_features(archive, dl_manager)
        return super()._split_generators(dl_manager)

    def _find_features(self, archive: str, dl_manager: Any) -> Features:
        """Columns and their types, from the first samples.

        Raises:
            ValueError: there is no image among them.
        """
        samples = list(islice(self._get_pipeline_from_tar(archive, dl_manager.iter_archive(archive)), _LOOKED_AT))
        names = dict.fromkeys(name for sample in samples for name in sample)
        features = {}
        for name in names:
            if name == self._image_column or name.rsplit(".", 1)[-1].lower() in self.IMAGE_EXTENSIONS:
                features[name] = Image()
            else:
                values = pa.array([sample.get(name) for sample in samples])
                features[name] = Features.from_arrow_schema(pa.schema({name: values.type}))[name]
        if all(sample[self._image_column] is None for sample in samples):
            inside = dict.fromkeys(name for name, _ in islice(dl_manager.iter_archive(archive), _LOOKED_AT))
            raise ValueError(
                f"No image{f' .{self.config.image}' if self.config.image else ''} is among the first {len(samples)} "
                f"samples of {archive!r}; expected files named KEY.jpg, KEY.png, ... The first files are "
                f"{', '.join(list(inside)[:5]) or 'none'}."
            )
        return Features(features | {"__key__": Value("string"), "__url__": Value("string")})

    @property
    def _image_column(self) -> str:
        return self.config.image or "image"

    def _get_pipeline_from_tar(self, tar_path: str, tar_iterator: Any) -> Iterator[dict[str, Any]]:
        """Samples, with their image in its column, and of the rest what was asked for.

        Raises:
            ValueError: a sample holds several images, and none is chosen by its extension.
        """
        wanted = {"__key__", "__url__", *self.config.others}
        for sample in super()._get_pipeline_from_tar(tar_path, tar_iterator):
            taken = {name: value for name, value in sample.items() if name in wanted}
            details = sample.get("json")
            if isinstance(details, dict):
                found = {k: v for k, v in details.items() if k in wanted and isinstance(v, (int, str))}
                taken = found | taken
            yield {self._image_column: self._image_of(sample, tar_path)} | taken

    def _image_of(self, sample: dict[str, Any], tar_path: str) -> bytes | None:
        if self.config.image in sample:
            return sample[self.config.image]
        names = [name for name in sample if name.lower() in self.IMAGE_EXTENSIONS]
        # Beside an image, an array is something else, such as an embedding.
        names = names or [name for name in sample if name.lower() == "npy"]
        if len(names) > 1:
            raise ValueError(
                f"The sample {sample['__key__']!r} of {tar_path!r} holds {len(names)} images ({', '.join(names)}); "
                "expected one. Name the one to take with image_column."
            )
        return sample[names[0]] if names else None
