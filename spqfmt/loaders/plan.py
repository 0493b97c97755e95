"""What `load_model` would do under ceilings, on the CPU or on a device, and what comes on top; no weights are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from spqfmt.container.reader import Reader
from spqfmt.importers._quiet import quiet_transformers
from spqfmt.loaders import load
from spqfmt.loaders.config import building_errors, settings_folder, stored_config
from spqfmt.loaders.estimate import estimate
from spqfmt.loaders.load import Ceilings, Planner, on_device, on_host, prepare
from spqfmt.loaders.packed.options import packing_options
from spqfmt.loaders.tensors import main_dtype, open_stored, parse_dtype
from spqfmt.models.config import find_model_class
from spqfmt.residency.blocks import with_blocks_of
from spqfmt.residency.device import host_rates
from spqfmt.residency.device_rates import DEFAULT, DeviceRates
from spqfmt.residency.model_plan import Activations, ModelPlan
from spqfmt.residency.rates import Rates, measure_rates
from spqfmt.stand_ins import given_place

__all__ = ["Activations", "ModelPlan", "estimate", "plan_for_device", "plan_model"]


def plan_model(
    path: str | Path,
    *,
    memory: int | str | None = None,
    dtype: torch.dtype | str | None = None,
    n_tokens: int = 2048,
    batch: int = 1,
    rates: Rates | None = None,
) -> ModelPlan:
    """Plan `path`, an .spq file, for the CPU. `rates` are measured where they are not given.

    Raises MemoryBudgetError, and what `load_model` raises for the file and its config.
    """
    path = given_place(path)
    options = packing_options(path, "cpu", memory, packed=memory is None or None, activations=None)
    assert options is not None

    def planner(readers: Sequence[Reader]) -> tuple[Planner, Rates]:
        found = rates or measure_rates(readers[0])
        return on_host(options.memory_bytes, found), found

    return _plan(path, dtype, planner, n_tokens=n_tokens, batch=batch)


def plan_for_device(
    path: str | Path,
    *,
    memory: int | str | None = None,
    host_memory: int | str | None = None,
    dtype: torch.dtype | str | None = None,
    n_tokens: int = 2048,
    batch: int = 1,
    rates: DeviceRates = DEFAULT,
) -> ModelPlan:
    """Plan `path`, an .spq file, for a device of these rates, which need not be there. Raises as `plan_model` does."""
    path = given_place(path)
    options = packing_options(
        path, "cuda", memory, packed=memory is None or None, activations=None, host_memory=host_memory
    )
    assert options is not None

    def planner(readers: Sequence[Reader]) -> tuple[Planner, Rates]:
        ceilings = Ceilings(
            options.memory_bytes,
            options.host_memory_bytes,
            with_blocks_of(rates, readers),
            part_bytes=load.DEVICE_PART_BYTES,
        )
        return on_device(ceilings), host_rates(rates)

    return _plan(path, dtype, planner, n_tokens=n_tokens, batch=batch)


def _plan(
    path: Path,
    dtype: torch.dtype | str | None,
    planner: Callable[[Sequence[Reader]], tuple[Planner, Rates]],
    n_tokens: int,
    batch: int,
) -> ModelPlan:
    with open_stored(path) as stored:
        assert stored.opened is not None
        readers = stored.opened.readers
        with settings_folder(path, stored) as folder, quiet_transformers():
            config = stored_config(path, folder, stored)
        weights = main_dtype(stored.tensors.values()) if dtype is None else parse_dtype(dtype)
        model_class = find_model_class(config, path)
        planned, rates = planner(readers)
        with building_errors(path, model_class), quiet_transformers():
            prepared = prepare(model_class, config, readers, dtype=weights, planner=planned)
    on_top = estimate(config, weights, n_tokens, batch)
    return ModelPlan(
        plan=prepared.plan,
        inventory=prepared.inventory,
        rates=rates,
        on_top=on_top,
        changed=prepared.changed,
        whole=prepared.whole,
    )
