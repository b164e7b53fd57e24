# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Packaging of sparsejepa_hf."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search('__version__ = "(.+)"', (HERE / "src/sparsejepa_hf/__init__.py").read_text(encoding="utf-8"))[1]

# Floors that `make test-floors` proves, on Python 3.10.
INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "transformers>=5.17",
    "datasets>=4.4",
    "accelerate>=1.12",
    "evaluate>=0.4.6",
    "safetensors>=0.8",
    "scikit-learn>=1.7",
    "scipy>=1.13",
    "threadpoolctl>=3.1",
    "timm>=1.0.24",
    "tensorboard>=2.20",
    "pillow>=11.0",
    "pyyaml>=6.0.2",
    "tqdm>=4.67",
]
# The page to try. Tested with this version.
APP = ["gradio>=6.31"]
# What draws figures, and the page about a checkpoint's groups.
PLOTS = ["matplotlib>=3.8", "jinja2>=3.1"]
# Reads TIFF files of many channels.
TIFF = ["tifffile>=2025.5"]
# What builds docs/.
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]
# What the benchmarks time beside this package, and what runs its exported models.
BENCHMARK = ["lightly>=1.6", "onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.7"]
# Tools that tests run the models with. Apart from `dev`, since transformers imports what it finds, which takes seconds
# and prints their warnings.
ECOSYSTEM = ["bitsandbytes>=0.50", "optuna>=4.0", "peft>=0.21", "torchao>=0.18"]

setup(
    name="sparsejepa_hf",
    version=VERSION,
    description="SparseJEPA (arXiv 2504.16140) for Hugging Face Transformers: pre-train sparse, grouped JEPA encoders",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The sparsejepa_hf authors",
    keywords="jepa self-supervised sparse representation learning transformers pytorch vision",
    package_dir={"": "src"},
    packages=find_packages("src"),
    # `evaluate` loads a metric from a folder of its own, which is no package.
    package_data={
        "sparsejepa_hf": ["py.typed"],
        "sparsejepa_hf.evaluation": ["tasks.yaml"],
        "sparsejepa_hf.evaluation.metrics": ["*/*.py"],
        # What a Space of the Hub needs beside the code.
        "sparsejepa_hf.interpret.app": ["README.md", "requirements.txt", "page.css"],
        "sparsejepa_hf.interpret": ["report_template.html"],
        "sparsejepa_hf.publishing": ["model_card_template.md"],
        "sparsejepa_hf.training": ["recipes/*.yaml"],
    },
    exclude_package_data={"sparsejepa_hf.training": ["recipes/queue-*"]},
    entry_points={"console_scripts": ["sparsejepa = sparsejepa_hf.commands:main"]},
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "dev": [
            *APP,
            *BENCHMARK,
            *DOCS,
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "mypy>=1.18",
            "types-PyYAML",
            "hypothesis>=6.100",
            "ruff==0.17.5",
            "playwright>=1.60",
            *PLOTS,
            *TIFF,
        ],
        "app": APP,
        "plots": PLOTS,
        "tiff": TIFF,
        "benchmark": BENCHMARK,
        "docs": DOCS,
        "ecosystem": ECOSYSTEM,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
