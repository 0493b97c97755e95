"""What a model with packed weights answers otherwise than its class does: how large it is, and whether it can move."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from spqfmt.errors import SpqError, UnusedTensorsWarning
from spqfmt.loaders.packed.embedding import PackedEmbedding
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.packed.modules import Packed
from spqfmt.loaders.packed.saving import LoadedFrom
from spqfmt.loaders.packed.weight import SAVE_INSTEAD
from spqfmt.loaders.packed.weights import Weights


class _PackedModel:
    """What stands in front of a transformers class while its weights are packed."""

    packed_weights: Weights
    packed_origin: LoadedFrom
    modules: Callable[[], Iterator[Any]]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count as transformers does, packed weights by the numbers that they stand for. None of these is trainable."""
        ordinary: Any = super()
        n: int = ordinary.num_parameters(only_trainable=only_trainable, exclude_embeddings=exclude_embeddings)
        if only_trainable:
            return n
        packed = [module for module in self._packed() if not module.is_tied]
        return n + sum(
            module.n_weights
            for module in packed
            if not (exclude_embeddings and isinstance(module, PackedEmbedding))
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes that are held now: parameters, buffers, and for packed weights codes, tables and room to decode."""
        ordinary: Any = super()
        n: int = ordinary.get_memory_footprint(return_buffers=return_buffers)
        return n + self.packed_weights.held_bytes + self.packed_weights.host_held_bytes

    def get_expanded_tied_weights_keys(self, *arguments: Any, **options: Any) -> dict[str, str]:
        """Leave packed weights out, as `replace` does: `tie_weights`, which users call too, looks for parameters."""
        ordinary: Any = super()
        found: dict[str, str] = ordinary.get_expanded_tied_weights_keys(*arguments, **options)
        modules: Any = self
        named = modules.named_modules(remove_duplicate=False)
        packed = {f"{name}.weight" for name, module in named if isinstance(module, Packed)}
        return {a: b for a, b in found.items() if a not in packed and b not in packed}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Do what torch does for `to`, `half`, `double` and the like. SpqError, before anything has changed."""
        for module in self._packed():
            module.check_move(fn)
        ordinary: Any = super()
        return ordinary._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        """Do what torch does. A warning where nothing of it would be trained: torch's words come from its backward."""
        ordinary: Any = super()
        model = ordinary.train(mode)
        if mode and not any(parameter.requires_grad for parameter in model.parameters()):
            warnings.warn(
                "no parameter of this model wants gradients, and packed weights have none: load with packed=False to "
                "train them, or put an adapter on it",
                UserWarning,
                stacklevel=2,
            )
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write a folder that `from_pretrained` takes: the packed file as it is, with the config as it is now.

        With an adapter that transformers has put on, the adapter alone, as transformers does. See LoadedFrom.save.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            ordinary: Any = super()
            ordinary.save_pretrained(save_directory, **options)
        else:
            self.packed_origin.save(self, save_directory, options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "peft_config":  # PEFT sets it on the model that it has put adapters on
            self._refuse_tied_adapters(value)
            self._tell_experts_left_out(value)
        ordinary: Any = super()
        ordinary.__setattr__(name, value)

    def _refuse_tied_adapters(self, configs: Mapping[str, Any]) -> None:
        """Refuse an adapter that is to be of a tied head too, which PEFT finds by a parameter that both share."""
        tied = next((module.tied for module in self._packed() if module.tied), None)
        if tied and any(getattr(config, "ensure_weight_tying", False) for config in configs.values()):
            raise SpqError(
                f"{tied}: ensure_weight_tying has no effect on packed weights; load with packed=False"
            )

    def _tell_experts_left_out(self, configs: Mapping[str, Any]) -> None:
        """Warn where an adapter is for experts, which PEFT looks for among parameters and does without otherwise."""
        wanted = {
            key for config in configs.values() for key in getattr(config, "target_parameters", None) or ()
        }
        modules: Any = self
        left = [
            full
            for at, module in modules.named_modules()
            if wanted and isinstance(module, PackedExperts)
            for own in module.place.matrices
            if (full := f"{at}.{own}") in wanted or any(full.endswith(f".{key}") for key in wanted)
        ]
        if left:
            warnings.warn(
                f"an adapter of experts has no effect on packed ones ({left[0]} and {len(left) - 1} more); load the "
                "model with packed=False for it",
                UnusedTensorsWarning,
                stacklevel=4,
            )

    def __deepcopy__(self, memo: object) -> Any:
        raise SpqError(
            "a model with packed weights cannot be copied; load it again, or with packed=False for one that can be"
        )

    def __reduce_ex__(self, protocol: object) -> Any:
        raise SpqError(f"a model with packed weights cannot be pickled: {SAVE_INSTEAD}")

    def _packed(self) -> Iterator[Packed]:
        return (module for module in self.modules() if isinstance(module, Packed))


@cache
def loaded_class(model_class: Any) -> Any:
    """The class of a model with packed weights that is loaded: `model_class` by its name, and a subclass of it."""
    names = {"__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (_PackedModel, model_class), names)
