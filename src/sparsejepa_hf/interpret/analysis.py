# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Every question about the groups of a checkpoint, asked on one data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ..evaluation import VisionEncoder
from .ablation import ablation_section
from .disentanglement import class_section, disentanglement_section
from .groups import GroupStructure, find_model, group_structure
from .information import information_section
from .measures import NotMeasurable, Section
from .objects import objects_section
from .patches import PatchRecord, collect_patches
from .stability import stability_section


@dataclass(frozen=True)
class Explanation:
    """What is known of a checkpoint's groups.

    Attributes:
        encoder: the checkpoint.
        record: what it makes of the images.
        structure: latents and groups; None where there are none, or none that are finite.
        sections: the questions. One that could not be answered says why.
    """

    encoder: VisionEncoder
    record: PatchRecord
    structure: GroupStructure | None
    sections: tuple[Section, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "fingerprint": self.encoder.fingerprint,
            "num_images": len(self.record),
            "num_patches": self.record.features.shape[1],
            "sections": {section.key: section.to_dict() for section in self.sections},
        }


def explain(
    encoder: VisionEncoder,
    dataset: datasets.Dataset,
    *,
    untrained: VisionEncoder | None = None,
    baseline: VisionEncoder | None = None,
    siblings: Sequence[VisionEncoder] = (),
    probe_dataset: datasets.Dataset | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Explanation:
    """Runs the checkpoint over a data set and asks everything that can be asked of its groups.

    What cannot be measured is said in its section, and the others go on: an I-JEPA has no groups, a data set may have
    neither labels nor masks, and one seed says nothing about stability.

    Args:
        encoder: a SparseJEPA, by [`evaluation.load_encoder`].
        dataset: with `image` and, where there are any, `label`, `mask`, `objects` and `count`, as
            `load_image_dataset(..., extra_columns=EXTRA_COLUMNS)` gives it.
        untrained: the same architecture with fresh weights, as a null.
        baseline: an I-JEPA, as a null.
        siblings: SparseJEPAs that differ from `encoder` in their seeds.
        probe_dataset: images with labels to fit probes on; half of `dataset` if not given.
        seed: of everything drawn.
        progress: show bars.

    Raises:
        NotMeasurable: the encoder is not of this family, or its features are not finite.
        ValueError: the data set is empty or has no column `image`.
    """

    def collect(other: VisionEncoder, images: datasets.Dataset = dataset) -> PatchRecord:
        return collect_patches(other, images, progress=progress)

    record = collect(encoder)
    structure = None
    if record.latents is not None:
        structure = group_structure(find_model(encoder.module), record.latents.reshape(-1, record.latents.shape[-1]))
    baseline_record = None if baseline is None else collect(baseline)
    # The only question that asks for it is that of objects.
    untrained_record = None if untrained is None or record.masks is None else collect(untrained)
    probe_record = None if probe_dataset is None or structure is None else collect(encoder, probe_dataset)
    questions: dict[str, tuple[str, Callable[[], Section]]] = {
        "objects": (
            "Do groups follow objects?",
            lambda: objects_section(record, untrained=untrained_record, baseline=baseline_record, seed=seed),
        ),
        "classes": ("Do groups follow classes?", lambda: class_section(record, seed=seed)),
        "factors": ("Does a group stand for one factor?", lambda: disentanglement_section(record, seed=seed)),
        "information": (
            "Do groups gather what is redundant?",
            lambda: information_section(record, structure, baseline=baseline_record, seed=seed),
        ),
        "stability": (
            "Are they the same groups over seeds?",
            lambda: stability_section([encoder, *siblings], [record, *map(collect, siblings)], seed=seed),
        ),
        "ablation": (
            "What does a group cause?",
            lambda: ablation_section(encoder, record, probe_record=probe_record, seed=seed),
        ),
    }
    sections = tuple(_ask(key, title, question) for key, (title, question) in questions.items())
    return Explanation(encoder, record, structure, sections)


def _ask(key: str, title: str, question: Callable[[], Section]) -> Section:
    try:
        return question()
    except NotMeasurable as reason:
        return Section(key, title, (), str(reason), is_measured=False)
