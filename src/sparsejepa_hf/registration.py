# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Registers the family with transformers' Auto classes when those are loaded, and not before.

transformers loads its Auto classes, and with them torch, when they are first asked for. [`install`] keeps it that way:
it registers at once what is loaded already, and leaves an import hook for the rest.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


_PACKAGE = __name__.rpartition(".")[0]
_CONFIGURATION = f"{_PACKAGE}.configuration_sparsejepa"
_MODELING = f"{_PACKAGE}.modeling_sparsejepa"
_AUTO_CONFIGURATION = "transformers.models.auto.configuration_auto"
_AUTO_MODELS = "transformers.models.auto.modeling_auto"
_AUTO_IMAGE_PROCESSORS = "transformers.models.auto.image_processing_auto"


def _register_configuration() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration_sparsejepa import SparseJEPAConfig

    AutoConfig.register(SparseJEPAConfig.model_type, SparseJEPAConfig)
    # A saved checkpoint carries its code, for trust_remote_code=True where this package is not installed.
    SparseJEPAConfig.register_for_auto_class()


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import (
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForPreTraining,
    )

    from .configuration_sparsejepa import SparseJEPAConfig
    from .modeling_sparsejepa import SparseJEPAForImageClassification, SparseJEPAForPreTraining, SparseJEPAModel

    for auto_class, model_class in (
        (AutoModel, SparseJEPAModel),
        (AutoModelForPreTraining, SparseJEPAForPreTraining),
        (AutoModelForImageClassification, SparseJEPAForImageClassification),
    ):
        auto_class.register(SparseJEPAConfig, model_class)
        model_class.register_for_auto_class(auto_class.__name__)


def _register_image_processors() -> None:
    from transformers import ViTImageProcessor, ViTImageProcessorPil
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .configuration_sparsejepa import SparseJEPAConfig

    classes = {"torchvision": ViTImageProcessor, "pil": ViTImageProcessorPil}
    AutoImageProcessor.register(SparseJEPAConfig, image_processor_classes=classes)


# What is loaded first where the family's files are asked for by name: registration then takes place under the import
# lock of the Auto classes. Another thread may still find them without the family while a first import of a
# transformers model is under way.
AUTO_MODULES = {"configuration_sparsejepa": _AUTO_CONFIGURATION, "modeling_sparsejepa": _AUTO_MODELS}

# Each registration: the modules of which any one, once loaded, calls for it, and those for whose end it waits, in
# whichever thread: the Auto classes' own, and those that import Auto classes themselves, as modeling_layers does.
_STEPS: dict[Callable[[], None], tuple[tuple[str, ...], tuple[str, ...]]] = {
    _register_configuration: ((_AUTO_CONFIGURATION, _CONFIGURATION), (_AUTO_CONFIGURATION,)),
    _register_models: (
        (_AUTO_MODELS, _MODELING),
        (_AUTO_MODELS, _MODELING, "transformers.modeling_layers", "transformers.modeling_utils"),
    ),
    _register_image_processors: ((_AUTO_IMAGE_PROCESSORS,), (_AUTO_IMAGE_PROCESSORS,)),
}
_WATCHED = frozenset(name for modules in _STEPS.values() for names in modules for name in names)

_pending = set(_STEPS)
_running: set[tuple[Callable[[], None], int]] = set()  # with the thread
# Watched modules: by which thread their code is being run, and those whose code has run to its end. The import system
# calls the latter unfinished for a little longer.
_executing: dict[str, int] = {}
_executed: set[str] = set()


def install() -> None:
    """Registers with the Auto classes that are loaded, and leaves a hook for the others; may be called again."""
    if _pending and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _settle()


def _is_under_way(name: str, here: bool) -> bool:
    """Whether the module's import has begun and not ended, in this thread (`here`) or in any."""
    if name in _executing:
        return not here or _executing[name] == threading.get_ident()
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False) and name not in _executed


def _is_due(triggers: tuple[str, ...], needs: tuple[str, ...]) -> bool:
    if not any(name in sys.modules for name in triggers) or _is_under_way(_CONFIGURATION, here=True):
        return False
    return not any(_is_under_way(name, here=False) for name in needs)


def _settle(loaded: str | None = None) -> None:
    """Carries out what can be carried out now, of what concerns the module `loaded` (all, if None).

    Two threads may carry out the same step, which does no harm; a lock of ours, beside those of the import system,
    could keep them waiting for each other.
    """
    for step, modules in _STEPS.items():
        run = (step, threading.get_ident())
        concerned = loaded is None or any(loaded in names for names in modules)
        # A step that imports watched modules comes by here again.
        if not concerned or step not in _pending or run in _running or not _is_due(*modules):
            continue
        _running.add(run)
        try:
            step()
        finally:
            _running.discard(run)
        _pending.discard(step)
    if not _pending:
        # A list of its own: a thread that is walking through the old one must not skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _FINDER]


class _Loader:
    """A module's own loader, but for what happens once the module's code has run."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on nothing tells the module from one that was loaded without the hook.
        module.__spec__.loader = module.__loader__ = self.loader
        _executed.discard(module.__name__)
        _executing[module.__name__] = threading.get_ident()
        try:
            self.loader.exec_module(module)
        finally:
            del _executing[module.__name__]
        _executed.add(module.__name__)
        _settle(module.__name__)


class _Finder:
    """Finds what the finders after it find, with a [`_Loader`] for the watched modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _WATCHED:
            return None
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 if self in finders else 0 :]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


_FINDER = _Finder()
