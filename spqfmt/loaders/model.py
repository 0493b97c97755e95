"""Load a whole model: an .spq file, or a source that the importers open.

transformers' own `from_pretrained` puts the weights in place, so that renamed and merged tensors (experts), tied
weights, buffers that no checkpoint stores and modules kept in float32 come out as they do from a folder of safetensors.
It is given one lazy handle a tensor instead of values: a tensor is decoded when its turn comes, straight into the
memory that becomes the parameter.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spqfmt.container.reader import Reader
from spqfmt.errors import (
    OptionError,
    SpqError,
    UnsupportedError,
    UnusedTensorsWarning,
    foreign_errors,
    one_sentence,
)
from spqfmt.importers._quiet import quiet_transformers
from spqfmt.loaders.announce import announce, announce_assets
from spqfmt.loaders.auto_memory import room_at
from spqfmt.loaders.choice import settle
from spqfmt.loaders.config import (
    building_errors,
    settings_folder,
    stored_class,
    stored_config,
    stored_tokenizer,
)
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.lazy import lazy_state
from spqfmt.loaders.load import attach, device_road, on_host, open_device, packed_class, prepare
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.options import AUTO, PackedOption, Packing, packing_options
from spqfmt.loaders.packed.shares import refuse_rounding
from spqfmt.loaders.packed.weights import Weights
from spqfmt.loaders.ranks import ALONE, Counted, Ranks, counted_alone, join, of_ranks, together
from spqfmt.loaders.settings import read_generation_config
from spqfmt.loaders.tensors import StoredModel, open_stored
from spqfmt.models.claims import earned
from spqfmt.models.experts import tensors_of
from spqfmt.models.inputs import treat_inputs
from spqfmt.models.stacked_heads import whole_of
from spqfmt.progress import Progress, Silent
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import UNMEASURED, measure_rates
from spqfmt.stand_ins import given_place

_NAMES_SHOWN = 3


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    memory: int | str | None = None,
    host_memory: int | str | None = None,
    packed: PackedOption = None,
    n_tokens: int | None = None,
    activations: str | None = None,
    trust_remote_code: bool = False,
    tp_plan: str | None = None,
    progress: Progress | None = None,
) -> tuple[Any, Any]:
    """Load `path`, an .spq file or a source model, and return `(model, tokenizer)` ready for use.

    `model` is the transformers class that the embedded config names, in eval mode. Weights of an .spq file stay packed
    where that is at least as fast as floats: a quantizer's codes on the CPU, what fits under the ceiling "auto" on a
    CUDA device. All others, and with `packed` False these too, are decoded to `dtype` in ordinary layers, whose weights
    can be trained and changed, and moved to `device` (spec/decisions/0076). `dtype` is a torch dtype or its name; by
    default the file's main float dtype, the one most weights have, or bfloat16 where that is float16, most weights are
    codes, and the CPU is several times slower with float16 (spec/decisions/0044). "fast" does so for any weights.
    Inputs of layers are clamped and quantized as the file asks (FORMAT.md section 6). `tokenizer` is None for a file
    without one. Code that came with the model and that its config names is run with `trust_remote_code` only, as in
    transformers; never that of a repository elsewhere.

    `memory`, in bytes or as "300MiB", is a ceiling for all that is held of the weights of an .spq file on the CPU or on
    a CUDA device: layers keep their codes packed and compute from them, and what does not fit is decoded each time it
    is needed (spqfmt.loaders.packed, spqfmt.loaders.device). For a CUDA device `host_memory` is the ceiling for what
    waits in host memory besides. Of `memory` as much is kept free as the model's own code reads of weights at a
    time (`model.packed_weights.plan.fixed.values`). "auto" is what is free less what `n_tokens` tokens (2048) take
    besides: keys and values, activations, and a reserve for libraries. `packed` True keeps all weights packed, without
    a ceiling; "auto" is what happens where neither is given. `activations` "int8" or "float" tells packed
    layers of integer codes how to take their inputs; by default as the file says, and of up to 32 tokens in 16 bits,
    for codes in groups, rounded to 8 bits with a scale for each few columns ("float" leaves them as they are:
    spec/decisions/0019). Such a model gives
    gradients to inputs and to what is added to it (PEFT's adapters), none to its weights, and compiles without breaks;
    `model.packed_weights.close()`, or dropping the model, stops its threads and closes the file.

    `tp_plan` "auto", in processes that torchrun has started, shares every layer out among them as transformers does
    (docs/tensor-parallel.md): each reads, holds and computes its part, `memory` is the ceiling of each, and
    `model.loaded_by_ranks` tells what this one has read. All load, or all raise.

    `progress` is told of each tensor that is decoded. Tensors that the model's class has no place for are left out with
    one UnusedTensorsWarning, as transformers does.

    Raises CorruptError when a tensor of the config's model is missing or has another shape (ImporterError for a
    source), UnsupportedError for a model or tokenizer that the installed transformers does not have or cannot use,
    MemoryBudgetError for a ceiling that is too low, before weights are read, OptionError for options that make no
    sense, BackendError for a device that is not there, OSError and what says that memory ran out as they are.
    """
    path, where = given_place(path), torch_device(device)
    if packed is None and memory is None:
        packed = AUTO
    wanted = packing_options(
        path,
        where.type,
        memory,
        packed=packed,
        activations=activations,
        host_memory=host_memory,
        n_tokens=n_tokens,
    )
    ranks = join(tp_plan, where.type)
    target = open_device(where, packed=wanted is not None)
    return load_onto(
        path,
        where,
        target,
        wanted,
        dtype=dtype,
        progress=progress,
        trusted=trust_remote_code is True,
        ranks=ranks,
    )


def load_onto(
    path: Path,
    where: torch.device,
    target: Device | None,
    wanted: Packing | None,
    *,
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
    trusted: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[Any, Any]:
    """Load the model as `load_model` does, onto `where`; its packed weights, if they are `wanted`, onto `target`.

    The model owns `target`. Raises as `load_model` does.
    """

    def explained(reason: str) -> SpqError:
        return UnsupportedError(f"{path}: transformers cannot make a model of it: {reason}", "model")

    with (
        together(path, ranks) as meet,
        foreign_errors(explained),
        collection_paused(),
        open_stored(path) as stored,
        progress or Silent() as shown,
    ):
        if stored.opened is not None and target is None and ranks.size == 1:
            announce_assets(stored.opened)
        with settings_folder(path, stored, trusted=trusted) as folder, quiet_transformers():
            config = stored_config(path, folder, stored, trusted=trusted)
            tokenizer = stored_tokenizer(path, folder, stored, trusted=trusted)
            generation = None
            if "generation_config.json" in stored.assets:
                generation = read_generation_config(path, folder)
            model_class = stored_class(path, folder, config, trusted=trusted)
        wanted, weights = settle(stored, wanted, dtype, where)
        if wanted is None and target is not None:
            target.close()
        with building_errors(path, model_class):
            if wanted is not None:
                model, _ = load_packed(
                    path,
                    model_class,
                    config,
                    stored=stored,
                    dtype=weights,
                    wanted=wanted,
                    device=target,
                    progress=shown,
                    ranks=ranks,
                    meet=meet,
                )
            else:
                with earned(path, (t.shape for t in stored.tensors.values())):
                    counted = counted_alone(path, model_class, config, stored=stored, ranks=ranks)
                    meet()
                    if stored.opened is not None and ranks.size == 1:
                        announce(stored.opened, stored.tensors)
                    model, _ = _build(
                        path, model_class, config, stored=stored, dtype=weights, progress=shown, ranks=ranks
                    )
                counted(model)
                treat_inputs(
                    model,
                    {n: t.treatment for n, t in stored.tensors.items() if t.treatment is not None},
                    of_ranks(model, ranks),
                )
            if ranks.size == 1:
                model = model.to(where)
    # Not what the config says: transformers looks for more weights there (adapters of a language, draft layers).
    model.name_or_path = model.config.name_or_path = str(path.resolve())
    if generation is not None and model.can_generate():
        model.generation_config = generation
    return model, tokenizer


def torch_device(device: str | int | torch.device) -> torch.device:
    """torch's device of a name or number. Raises OptionError where there is none."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device {device!r}: {one_sentence(error)}") from None


def need_tokenizer(path: str | Path, tokenizer: Any) -> None:
    """Raise SpqError when `load_model` found no tokenizer in `path`."""
    if tokenizer is None:
        raise SpqError(
            f"{path}: no tokenizer in it, so text cannot become tokens; pack it from a folder that has its tokenizer"
        )


def need_language_model(path: str | Path, model: Any, *, decoder_only: bool = True) -> None:
    """Raise UnsupportedError for a model in `path` that does not continue a text, by what it is."""
    name, wants = type(model).__name__, model.main_input_name
    why = ""
    if wants != "input_ids":
        why = f"it takes {wants}, not a text alone"
    elif not model.can_generate():
        why = "it is no model that continues a text"
    elif decoder_only and model.config.is_encoder_decoder:
        why = "it has an encoder, so a text has no perplexity of its own"
    if why:
        raise UnsupportedError(f"{path}: a {name}: {why}; load it in Python with spqfmt.load_model", name)


def load_packed(
    path: Path,
    model_class: Any,
    config: Any,
    stored: StoredModel,
    dtype: torch.dtype,
    wanted: Packing,
    device: Device | None,
    progress: Progress,
    ranks: Ranks = ALONE,
    meet: Callable[[], None] = lambda: None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """The model with packed modules; transformers loads what is left, with its own `options`, and tells of that.

    `meet` waits until all ranks have come so far: none of them reads weights before.
    """
    assert stored.opened is not None
    readers = stored.opened.readers
    with ExitStack() as stack:
        weights: Callable[[Plan, Sequence[Reader], torch.dtype], Weights]
        room = room_at(device, config, dtype, wanted.auto_tokens) if wanted.auto_tokens else None
        if room is not None:
            wanted = replace(wanted, memory_bytes=room.memory_bytes)
        if device is None:
            # Measuring takes a tenth of a second, and without a ceiling nothing is chosen by it.
            rates = UNMEASURED if wanted.memory_bytes is None else measure_rates(readers[0])
            planner, weights = on_host(wanted.memory_bytes, rates), HostWeights
        else:
            stack.callback(device.close)
            planner, weights = device_road(device, wanted, readers)
        with nullcontext() if room is None else room.told():
            prepared = prepare(model_class, config, readers, dtype=dtype, planner=planner, ranks=ranks)
        if wanted.int8_activations:
            refuse_rounding(prepared.places)
        counted = Counted(ranks, readers, prepared.whole)
        meet()
        packed = packed_class(
            model_class,
            prepared.places,
            dtype,
            int8_activations=wanted.int8_activations,
            experts=prepared.experts,
        )
        held = {place.tensor for place in prepared.places} | tensors_of(prepared.experts)
        held |= {whole_of(name) for name in held}
        left = {n: t for n, t in stored.tensors.items() if n not in held}
        rest = replace(stored, tensors=left)
        if ranks.size == 1 and device is None:
            announce(stored.opened, left, prepared.plan)
        model, info = _build(
            path, packed, config, stored=rest, dtype=dtype, progress=progress, ranks=ranks, **options
        )
        treatments = {n: t.treatment for n, t in left.items() if t.treatment is not None}
        treat_inputs(model, treatments, of_ranks(model, ranks))
        stack.pop_all()
        # The weights own the readers and the device from here on, and close them too where they cannot be made.
        files = list(dict.fromkeys([*(reader.path for reader in readers), path]))
        attach(model, model_class, weights(prepared.plan, stored.opened.give_away(), dtype), files=files)
        counted(model)
    return model, info


def _build(
    path: Path,
    model_class: Any,
    config: Any,
    stored: StoredModel,
    dtype: torch.dtype,
    progress: Progress,
    ranks: Ranks = ALONE,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """The model with its weights, on the CPU, in eval mode, and what transformers says of the loading."""
    goes_on = ranks.size > 1
    with (
        lazy_state(stored, model_class, config, dtype=dtype, progress=progress, goes_on=goes_on) as state,
        quiet_transformers(),
    ):
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **ranks.options,
            **options,
        )
    _check(path, stored, type(model).__name__, info)
    return model, info


def _check(path: Path, stored: StoredModel, class_name: str, info: Mapping[str, Any]) -> None:
    """Raise unless every weight of the model came from the file; warn of tensors that the model has no place for."""
    if missing := sorted(info["missing_keys"]):
        raise stored.bad(f"{path}: {class_name} needs tensors that are not in it: {_listed(missing)}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise stored.bad(
            f"{path}: tensor {name} has shape {tuple(found)}, {class_name} wants {tuple(wanted)}"
        )
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{path}: not used, {class_name} has no place for them: {_listed(unused)}",
            UnusedTensorsWarning,
            stacklevel=4,
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def collection_paused() -> Iterator[None]:
    """Loading makes very many records and no garbage in cycles: a collection would only look at all of transformers."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
