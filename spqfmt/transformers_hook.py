"""`from_pretrained` of transformers for a folder that holds a packed model, from `import spqfmt` on.

transformers has no registry for weight files (its quantizers are asked only after it has found safetensors or pickles),
but `PreTrainedModel.from_pretrained` takes a state dict. So that one public method is wrapped when transformers defines
it. This module costs nothing until then: it imports neither torch nor transformers.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from spqfmt.errors import OptionError
from spqfmt.packed_names import OWN_WEIGHTS, packed_models
from spqfmt.stand_ins import given_path

_MODULE = "transformers.modeling_utils"
MEMORY = "SPQFMT_MEMORY"
"""Environment variable of the ceiling for packed models that are loaded without one; `spqfmt exec --memory` sets it."""


def packed_file(folder: object) -> Path | None:
    """Path of the packed model in a folder. None where there is none, or weights that transformers takes itself.

    Raises OptionError for a folder with several.
    """
    if not isinstance(folder, str | os.PathLike):
        return None
    try:
        names = sorted(path.name for path in given_path(folder).iterdir() if not path.is_dir())
    except (OSError, OptionError):  # transformers has words for it
        return None
    if not OWN_WEIGHTS.isdisjoint(names):
        return None
    found = packed_models(names)
    if len(found) > 1:
        raise OptionError(f"{folder}: more than one packed model in it: {', '.join(found)}")
    return Path(folder, found[0]) if found else None


def install() -> None:
    """Wrap the method, now or when transformers is imported. Once is enough, twice does no harm."""
    module = sys.modules.get(_MODULE)
    if module is not None and hasattr(module, "PreTrainedModel"):
        _wrap(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Leaves finding to the others, and wraps the method once the module has run.

    No subclass of MetaPathFinder, whose module takes a third of the start of a command with it from Python 3.12 on.
    """

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have, for the one module; None for all others."""
        if fullname != _MODULE or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _wrap(module)
            if self in sys.meta_path:  # until then: a module that failed to run may be tried again
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # a loader belongs to one module
        return spec


def _wrap(module: ModuleType) -> None:
    base: Any = module.PreTrainedModel
    original = base.from_pretrained.__func__
    if getattr(original, "is_of_spqfmt", False):
        return

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        folder = pretrained_model_name_or_path  # callers may give it by this name
        at = Path(folder, options["subfolder"]) if folder and options.get("subfolder") else folder
        given = ("state_dict", "gguf_file", "variant")
        file = None if any(options.get(name) is not None for name in given) else packed_file(at)
        if file is None:
            return original(cls, folder, *arguments, **options)
        if MEMORY in os.environ and options.get("memory") is None and options.get("packed") is None:
            options["memory"] = os.environ[MEMORY]
        # torch takes seconds to import.
        from spqfmt.loaders.pretrained import load_pretrained

        from_state_dict = functools.partial(original, cls, None)
        return load_pretrained(cls, from_state_dict, file, folder=at, arguments=arguments, **options)

    from_pretrained.is_of_spqfmt = True  # type: ignore[attr-defined]
    base.from_pretrained = classmethod(from_pretrained)
