# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Images to run the examples on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Builds NAME/split/class/i.png below `tmp_path`: three tints of noise of 16 pixels, 20 and 12 of each."""

    def build(name: str) -> Path:
        generator = np.random.default_rng(0)
        for split, count in (("train", 20), ("test", 12)):
            for channel, tint in enumerate(("red", "green", "blue")):
                folder = tmp_path / name / split / tint
                folder.mkdir(parents=True)
                pixels = generator.integers(0, 160, (count, 16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 90
                for i, image in enumerate(pixels):
                    Image.fromarray(image).save(folder / f"{i}.png")
        return tmp_path / name

    return build
