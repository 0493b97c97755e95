"""`plan_for_device`: what `load_model` would do on a device under two ceilings. Needs no device, reads no weights."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from spqfmt.container.shards import open_readers
from spqfmt.loaders.device.load import PART_BYTES, Ceilings, prepare_for_device
from spqfmt.loaders.model import stored_config
from spqfmt.loaders.packed.options import packing_options
from spqfmt.loaders.plan import Activations, estimate
from spqfmt.loaders.tensors import main_dtype, open_stored, parse_dtype
from spqfmt.models.assets import asset_folder
from spqfmt.models.config import find_model_class
from spqfmt.residency.device_rates import DEFAULT, DeviceRates
from spqfmt.residency.plan import Plan


@dataclass(frozen=True)
class DeviceModelPlan:
    """The plan, and what comes on top of it in device memory."""

    plan: Plan
    on_top: Activations

    def to_json(self) -> dict[str, object]:
        """The object that `spqfmt plan --device cuda --json` prints."""
        return self.plan.to_json() | {"on_top": vars(self.on_top)}


def plan_for_device(
    path: str | Path,
    *,
    memory: int | str | None = None,
    host_memory: int | str | None = None,
    dtype: torch.dtype | str | None = None,
    n_tokens: int = 2048,
    batch: int = 1,
    rates: DeviceRates = DEFAULT,
    zstd_on_device: bool = False,
) -> DeviceModelPlan:
    """Plan `path`, an .spq file, for a device of these rates. Raises as `plan_model` does."""
    path = Path(path)
    options = packing_options(path, "cuda", memory, memory is None or None, None, host_memory)
    assert options is not None
    with ExitStack() as stack:
        readers = open_readers(path)
        for reader in readers:
            stack.callback(reader.close)
        with open_stored(path) as stored, asset_folder(stored.assets) as folder:
            config = stored_config(path, folder, stored)
            weights = main_dtype(stored.tensors.values()) if dtype is None else parse_dtype(dtype)
        ceilings = Ceilings(
            options.memory_bytes, options.host_memory_bytes, rates, zstd_on_device, PART_BYTES
        )
        prepared = prepare_for_device(find_model_class(config, path), config, readers, weights, ceilings)
    return DeviceModelPlan(prepared.plan, estimate(config, weights, n_tokens, batch))
