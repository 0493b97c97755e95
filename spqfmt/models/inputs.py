"""Layers whose input is clamped or quantized before it is used, as the file asks (FORMAT.md section 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from spqfmt.errors import CorruptError
from spqfmt.models.targets import Targets
from spqfmt.models.treatments import Treatment


class TreatInput:
    """A forward pre-hook that treats the first argument. A class, so that a model with it can be copied."""

    def __init__(self, treat: Treatment) -> None:
        self._treat = treat

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments that the module gets instead."""
        return (self._treat(args[0]), *args[1:])


def treat_inputs(
    model: Any,
    treatments: Mapping[str, Treatment],
    adapted: Callable[[str, Treatment], Treatment] = lambda _, treat: treat,
) -> None:
    """Hook the module of each tensor name. Raises CorruptError for a tensor that is no module's own weight.

    `adapted` gives what is done instead in a module of that name.
    """
    if not treatments:
        return
    targets = Targets(model, treatments)
    for name, treat in treatments.items():
        parameter, alone = targets.find(name)
        if not alone:
            raise CorruptError(
                f"tensor {name!r}: an input is to be treated, but the model has no layer of its own for it"
            )
        module = parameter.rpartition(".")[0]
        model.get_submodule(module).register_forward_pre_hook(TreatInput(adapted(module, treat)))
