# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What pre-training is worth: kNN and a linear probe of frozen features, before and after, and of raw pixels."""

from torch import Tensor
from transformers.utils import logging

from ..evaluation import extract_features, knn_accuracy, linear_probe
from ..evaluation.features import small_pixel_features
from .monitors import comparison_device, full_float32, labelled_images
from .pretraining import SparseJEPATrainer
from .processes import explain_silence, whole_encoder
from .run_data import MAX_BANK, PreTrainingData


logger = logging.get_logger(__name__)

# The most held-out images that are looked at.
MAX_HELDOUT = 10_000


def compare_features(
    trainer: SparseJEPATrainer, data: PreTrainingData, name: str, with_pixels: bool = False
) -> dict[str, dict[str, float]]:
    """Measures the target encoder as it stands, in the main process; the others wait for it.

    Args:
        trainer: of the encoder.
        data: its `bank` votes and trains the probe, its `heldout` is classified.
        name: what the encoder is called, such as "untrained".
        with_pixels: measure the raw pixels first.

    Returns:
        "raw pixels" and `name`, each with `knn_accuracy` and `linear_accuracy`, top-1 in [0, 1]; nothing of features
        that cannot be compared (which a warning says), without labels, or in other processes.
    """
    results: dict[str, dict[str, float]] = {}
    encoder = whole_encoder(trainer.model)
    if trainer.is_world_process_zero() and data.bank is not None and data.heldout is not None:
        (bank, bank_labels), (images, labels) = (
            labelled_images(dataset, limit) for dataset, limit in ((data.bank, MAX_BANK), (data.heldout, MAX_HELDOUT))
        )
        if with_pixels:
            pixels = [small_pixel_features(bank), small_pixel_features(images)]
            # Fits of thousands of dimensions are slow, but each begins where the one before ended: few steps do.
            results |= _probe(trainer, "raw pixels", pixels, (bank_labels, labels), max_iter=40)
        features = [extract_features(encoder, part, preprocess=trainer.normalize) for part in (bank, images)]
        results |= _probe(trainer, name, features, (bank_labels, labels))
    with explain_silence(trainer):
        trainer.accelerator.wait_for_everyone()
    return results


@full_float32()
def _probe(
    trainer: SparseJEPATrainer,
    name: str,
    features: list[Tensor],
    labels: tuple[Tensor, Tensor],
    max_iter: int = 200,
) -> dict[str, dict[str, float]]:
    args, (bank, heldout) = trainer.args, features
    # kNN and probe are computed where the bank lies.
    sets = (bank.to(comparison_device(args.device)), labels[0], heldout, labels[1])
    try:
        probe = linear_probe(*sets, seed=args.seed, max_iter=max_iter, allow_unseen_classes=True)
    except ValueError as error:
        # Too few images or classes to probe; that is no reason to lose the run.
        logger.warning(f"The features of {name} are not compared: {error}")
        return {}
    k = min(args.knn_k, len(bank))
    return {name: {"knn_accuracy": knn_accuracy(*sets, k=k), "linear_accuracy": probe.test_accuracy}}
