"""Make transformers' Auto classes know our models as soon as both packages are imported.

`import cofi_deploy` must stay cheap (the command line's --help imports no framework), yet after
it `AutoModelForSequenceClassification.from_pretrained(path)` has to work. So when transformers is
not imported yet, a finder waits for its registry module and registers right after it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_REGISTRY = "transformers.models.auto.modeling_auto"


def register_auto_classes() -> None:
    """Register now if transformers' registry is loaded, else when it is."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the registry module the normal way, and wraps its loader."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Take part for one module only, once."""
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Loads as the wrapped loader does, then registers our classes."""

    def __init__(self, wrapped: importlib.abc.Loader) -> None:
        self._wrapped = wrapped

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave creation to the wrapped loader."""
        return self._wrapped.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then add to the registry that it made."""
        self._wrapped.exec_module(module)
        _register()


def _register() -> None:
    from transformers import (  # noqa: PLC0415 - must not be imported before it is needed
        AutoConfig,
        AutoModel,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from cofi_deploy import model  # noqa: PLC0415

    AutoConfig.register(model.CofiConfig.model_type, model.CofiConfig, exist_ok=True)
    for auto, ours in (
        (AutoModel, model.CofiModel),
        (AutoModelForSequenceClassification, model.CofiForSequenceClassification),
        (AutoModelForTokenClassification, model.CofiForTokenClassification),
        (AutoModelForQuestionAnswering, model.CofiForQuestionAnswering),
    ):
        auto.register(model.CofiConfig, ours, exist_ok=True)
