"""What `AutoModelForCausalLM.from_pretrained` does with a folder that holds a packed model."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import is_peft_available

from spqfmt.errors import OptionError
from spqfmt.loaders.config import building_errors, settings_folder, settle_quantized
from spqfmt.loaders.lazy import lazy_state
from spqfmt.loaders.load import open_device
from spqfmt.loaders.model import collection_paused, load_packed, torch_device
from spqfmt.loaders.packed.options import Packing, packing_options
from spqfmt.loaders.ranks import AUTO, Ranks, counted_alone, join, of_ranks, together
from spqfmt.loaders.tensors import StoredModel, main_dtype, open_stored, parse_dtype
from spqfmt.models.claims import earned
from spqfmt.models.config import find_model_class
from spqfmt.models.harmless import dropped_values
from spqfmt.models.inputs import treat_inputs
from spqfmt.progress import Silent

_PACKED = ("memory", "host_memory", "packed", "activations")
_WITH_PACKED = frozenset(
    {"adapter_kwargs", "adapter_name",
     "attn_implementation", "config", "device_map", "dtype", "experts_implementation", "generation_config",
     "output_loading_info", "torch_dtype"}
)  # fmt: skip
"""What packed weights do as transformers would, beside what changes the config."""
_OF_NO_CONCERN = frozenset(
    {"_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "cache_dir",
     "disable_mmap", "force_download", "from_flax", "from_tf", "local_files_only", "low_cpu_mem_usage", "mirror",
     "offload_state_dict", "proxies", "revision", "subfolder", "token", "tqdm_class", "trust_remote_code",
     "use_safetensors", "weights_only"}
)  # fmt: skip
"""Where files come from and how weights are read from them: nothing that a model here depends on."""
_NOT_PACKED = frozenset(
    {"allow_all_kernels", "device_mesh", "distributed_config", "fusion_config", "ignore_mismatched_sizes",
     "kernel_config", "key_mapping", "max_memory", "offload_buffers", "offload_folder", "quantization_config",
     "tp_plan", "tp_size", "use_kernels"}
)  # fmt: skip
"""What transformers does with weights that are parameters, or with other weights than the file's."""


def load_pretrained(
    model_class: Any,
    from_state_dict: Callable[..., Any],
    path: Path,
    folder: str | os.PathLike[str],
    arguments: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """What `model_class.from_pretrained(folder, *arguments, **options)` returns, with the weights of `path`.

    `path` lies in `folder`, whose config and generation config they are. `from_state_dict` is transformers' own method
    without a folder: it takes `config`, `state_dict` and all other options, `device_map` and `output_loading_info`
    among them. `dtype` is by default the config's, else the file's main float dtype. An adapter of PEFT is put onto the
    model where transformers does so: one that was asked for, with the folder as its base, or one beside the weights.

    With `memory`, `host_memory`, `packed` or `activations` the layers compute from packed weights as `load_model`
    describes, on the one device that `device_map` names. What changes the config does so there too; what cannot be done
    with packed weights is refused by its name, with OptionError. Raises what `load_model` does for the file, and what
    transformers does for the rest.
    """
    tp_plan = _take_plan(options, packed=any(options.get(name) is not None for name in _PACKED))
    ranks = join(tp_plan, "cpu")
    with together(path, ranks) as meet:
        return _load(
            model_class,
            from_state_dict,
            path,
            folder=folder,
            arguments=arguments,
            options=options,
            ranks=ranks,
            meet=meet,
        )


def _take_plan(options: dict[str, Any], *, packed: bool) -> str | None:
    """The plan for ranks that is asked for; None for none, or where transformers alone knows what is meant."""
    plan, size = options.get("tp_plan"), options.get("tp_size")
    distributed = options.get("distributed_config")
    if plan is None and size is None and distributed is None:
        return None
    is_plain = distributed is None and plan == AUTO and size is None
    if not is_plain and not packed:
        return None
    if not is_plain:
        raise OptionError("packed weights are shared out by tp_plan='auto' alone, among all ranks")
    if options.get("device_map") is not None:
        raise OptionError("device_map: with tp_plan each rank has the device that transformers gives it")
    del options["tp_plan"]
    return AUTO


def _load(
    model_class: Any,
    from_state_dict: Callable[..., Any],
    path: Path,
    folder: str | os.PathLike[str],
    arguments: Sequence[Any],
    options: dict[str, Any],
    ranks: Ranks,
    meet: Callable[[], None],
) -> Any:
    adapter = _take_adapter(folder, options)
    asked = options.pop("torch_dtype", None) if options.get("dtype") is None else options["dtype"]
    packing = {name: options.pop(name, None) for name in _PACKED}
    device = wanted = None
    if any(value is not None for value in packing.values()):
        device = _device(options.get("device_map"))
        if packing["packed"] not in {None, True, False}:
            raise OptionError(f"packed is True or False, not {packing['packed']!r}")
        wanted = packing_options(path, "cpu" if device is None else device.type, **packing)
    if wanted is not None:
        if arguments:
            raise OptionError("packed weights take no arguments by position: give them by their names")
        _refuse_packed(name for name in _NOT_PACKED if options.get(name))
        if device is None:
            raise OptionError(f"device_map: packed weights are on one device, not {options['device_map']!r}")
    for name in ("dtype", "torch_dtype", "subfolder"):
        options.pop(name, None)
    with collection_paused(), open_stored(path) as stored:
        config, options = _config(model_class, folder, path=path, stored=stored, options=options)
        settle_quantized(path, config, stored)
        dtype = _dtype(asked, config, stored)
        if wanted is None or device is None:
            loaded = _load_decoded(
                path,
                model_class,
                from_state_dict,
                arguments,
                config=config,
                stored=stored,
                dtype=dtype,
                options=options,
                ranks=ranks,
                meet=meet,
            )
        else:
            loaded = _load_packed(
                path,
                model_class,
                config,
                stored=stored,
                dtype=dtype,
                wanted=wanted,
                device=device,
                options=options,
                ranks=ranks,
                meet=meet,
            )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = os.fspath(folder)
    generation = Path(folder) / "generation_config.json"
    if options.get("generation_config") is None and generation.exists() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    if adapter is not None:
        adapter(model)
    return loaded


def _take_adapter(folder: str | os.PathLike[str], options: dict[str, Any]) -> Callable[[Any], object] | None:
    """What puts the adapter onto a model that transformers would: of the folder that was asked for, or beside weights.

    None where there is none, or no PEFT, without which transformers looks for none either.
    """
    more = dict(options.pop("adapter_kwargs", None) or {})
    name = options.pop("adapter_name", "default")
    beside = folder if Path(folder, "adapter_config.json").is_file() else None
    path = more.pop("_adapter_model_path", beside)
    if path is None or not is_peft_available():
        return None

    def put(model: Any) -> object:
        return model.load_adapter(os.fspath(path), adapter_name=name, adapter_kwargs=more)

    return put


def _device(device_map: Any) -> torch.device | None:
    """The one device of a device map; None for a map of several, or for one that transformers would have to choose."""
    if isinstance(device_map, dict):
        return _device(device_map[""]) if device_map.keys() == {""} else None
    if device_map in {"auto", "balanced", "balanced_low_0", "sequential"}:
        return None
    return torch_device("cpu" if device_map is None else device_map)


def _config(
    model_class: Any,
    folder: str | os.PathLike[str],
    *,
    path: Path,
    stored: StoredModel,
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """transformers' config with the options that change it, and the other ones."""
    given = options.pop("config", None)
    with ExitStack() as stack:
        if isinstance(given, transformers.PreTrainedConfig):
            config = copy.deepcopy(given)
        else:
            if given is None and not Path(folder, "config.json").exists():
                given = stack.enter_context(settings_folder(path, stored))
            config, options = model_class.config_class.from_pretrained(
                folder if given is None else given, return_unused_kwargs=True, **options
            )
    _leave_out(Path(folder, "config.json"), config)
    return config, options


def _leave_out(file: Path, config: Any) -> None:
    """Take back what `file` has set in `config` and `harmless` leaves out: kernels that a hub would be asked for."""
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # no such file, or none that transformers reads: the config is the caller's
    dropped = [value for _, value in dropped_values(settings)] if isinstance(settings, dict) else []
    named = {name for value in dropped for name in _strings(value)}
    for part in _parts(config):
        for key in ("_attn_implementation_internal", "_experts_implementation_internal"):
            if getattr(part, key, None) in named:
                setattr(part, key, None)


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for part in (getattr(config, name, None) for name in config.sub_configs):
        if part is not None:
            yield from _parts(part)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, str):
        yield value


def _load_decoded(
    path: Path,
    model_class: Any,
    from_state_dict: Callable[..., Any],
    arguments: Sequence[Any],
    config: Any,
    stored: StoredModel,
    dtype: Any,
    options: dict[str, Any],
    ranks: Ranks,
    meet: Callable[[], None],
) -> Any:
    exact = dtype if isinstance(dtype, torch.dtype) else torch.float32
    shapes = (tensor.shape for tensor in stored.tensors.values())
    several = ranks.size > 1
    state_dict = lazy_state(stored, model_class, config, dtype=exact, progress=Silent(), goes_on=several)
    with earned(path, shapes):
        counted = counted_alone(path, model_class, config, stored=stored, ranks=ranks)
        meet()
        with state_dict as state:
            loaded = from_state_dict(
                *arguments, config=config, state_dict=state, dtype=dtype, **ranks.options, **options
            )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    counted(model)
    treatments = {n: t.treatment for n, t in stored.tensors.items() if t.treatment is not None}
    treat_inputs(model, treatments, of_ranks(model, ranks))
    return loaded


def _load_packed(
    path: Path,
    model_class: Any,
    config: Any,
    stored: StoredModel,
    dtype: Any,
    wanted: Packing,
    device: torch.device,
    options: dict[str, Any],
    ranks: Ranks,
    meet: Callable[[], None],
) -> Any:
    for name in ("attn_implementation", "experts_implementation"):
        if name in options:
            setattr(config, f"_{name}", options.pop(name))
    known = _WITH_PACKED | _OF_NO_CONCERN | _NOT_PACKED
    _refuse_packed(name for name, value in options.items() if value is not None and name not in known)
    if not isinstance(dtype, torch.dtype):
        raise OptionError("dtype: packed weights compute in one dtype")
    named = find_model_class(config, path)
    if not issubclass(model_class, named):
        raise OptionError(
            f"{path}: from packed weights it is a {named.__name__}, not a {model_class.__name__}"
        )
    generation = options.get("generation_config")
    target = open_device(device, packed=True)
    with building_errors(path, model_class):
        model, info = load_packed(
            path,
            model_class,
            config,
            stored=stored,
            dtype=dtype,
            wanted=wanted,
            device=target,
            progress=Silent(),
            generation_config=generation,
            ranks=ranks,
            meet=meet,
        )
        if ranks.size == 1:
            model = model.to(device)
    return (model, info) if options.get("output_loading_info") else model


def _refuse_packed(names: Iterable[str]) -> None:
    """Raise when there is any option among them."""
    if refused := sorted(names):
        raise OptionError(
            f"{', '.join(refused)}: not for packed weights; leave memory, packed and activations out"
        )


def _dtype(asked: Any, config: Any, stored: StoredModel) -> Any:
    """A torch dtype, or what else transformers takes."""
    if asked is None or asked == "auto":
        found = getattr(config, "dtype", None)
        return found if isinstance(found, torch.dtype) else main_dtype(stored.tensors.values())
    return parse_dtype(asked) if isinstance(asked, str) else asked
