# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Images to run the examples on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder split/class/i.png: noise of 16 pixels in three tints, 20 of each to train on and 12 to test.

    The classes are named 1 to 3, so they may be counts. The first test image of each also occurs in train.
    """
    root, generator = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for channel, name in enumerate("123"):
        pixels = generator.integers(0, 160, (32, 16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 90
        pixels[20] = pixels[0]
        for split, chosen in (("train", range(20)), ("test", range(20, 32))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in chosen:
                Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    return root
