"""What `AutoModelForCausalLM.from_pretrained` does with a folder that holds a packed model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from spqfmt.calibration.harmless import dropped_values
from spqfmt.errors import OptionError
from spqfmt.loaders.inputs import treat_inputs
from spqfmt.loaders.lazy import lazy_state
from spqfmt.loaders.model import load_model, refuse_quantized
from spqfmt.loaders.tensors import StoredModel, main_dtype, open_stored, parse_dtype
from spqfmt.progress import Silent

_PACKED = ("memory", "packed", "activations")
# What transformers' Auto classes pass along, and what only says where files come from.
_OF_NO_CONCERN = frozenset(
    {"_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "adapter_name", "cache_dir", "config", "dtype",
     "force_download", "local_files_only", "low_cpu_mem_usage", "proxies", "revision", "subfolder", "token",
     "torch_dtype", "trust_remote_code", "use_safetensors", "weights_only"}
)  # fmt: skip


def load_pretrained(
    model_class: Any,
    from_state_dict: Callable[..., Any],
    path: Path,
    folder: str | os.PathLike[str],
    **options: Any,
) -> Any:
    """What `model_class.from_pretrained(folder, **options)` returns, with the weights of `path`, which lies there.

    `from_state_dict` is transformers' own method without a folder: it takes `config`, `state_dict` and all other
    options, `device_map` and `output_loading_info` among them. Config and generation config are the folder's. `dtype`
    is by default the config's, else the file's main float dtype.

    With `memory`, `packed` or `activations` the layers compute from packed weights as `load_model` describes; config
    and generation config are then the file's, and options of transformers that `load_model` does not know are refused
    with OptionError. Raises what `load_model` does for the file, and what transformers does for the rest.
    """
    if any(options.get(name) is not None for name in _PACKED):
        return _load_packed(path, model_class, options)
    options = {name: value for name, value in options.items() if name not in _PACKED}
    asked = options.pop("torch_dtype", None) if options.get("dtype") is None else options.get("dtype")
    options.pop("dtype", None)
    options.pop("torch_dtype", None)
    options.pop("subfolder", None)
    config = options.pop("config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        config, options = model_class.config_class.from_pretrained(
            folder if config is None else config, return_unused_kwargs=True, **options
        )
    refuse_quantized(path, config)
    _leave_out(Path(folder, "config.json"), config)
    with open_stored(path) as stored:
        dtype = _dtype(asked, config, stored)
        exact = dtype if isinstance(dtype, torch.dtype) else torch.float32
        with lazy_state(stored, config, exact, Silent()) as state:
            loaded = from_state_dict(config=config, state_dict=state, dtype=dtype, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = os.fspath(folder)
        treat_inputs(model, {n: t.treatment for n, t in stored.tensors.items() if t.treatment is not None})
    generation = Path(folder) / "generation_config.json"
    if options.get("generation_config") is None and generation.exists() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return loaded


def _leave_out(file: Path, config: Any) -> None:
    """Take back what `file` has set in `config` and `harmless` leaves out: kernels that a hub would be asked for."""
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return  # no such file: the config is the caller's
    dropped = [value for _, value in dropped_values(settings)]
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


def _load_packed(path: Path, model_class: Any, options: dict[str, Any]) -> Any:
    others = sorted(
        n for n, value in options.items() if n not in {*_PACKED, *_OF_NO_CONCERN} and value is not None
    )
    if others:
        raise OptionError(
            f"{', '.join(others)}: not for packed weights; leave memory, packed and activations out"
        )
    dtype = options.get("dtype") or options.get("torch_dtype")
    wanted = {name: options[name] for name in _PACKED if name in options}
    model, _ = load_model(path, dtype=None if dtype == "auto" else dtype, **wanted)
    if not isinstance(model, model_class):
        raise OptionError(
            f"{path}: from packed weights it is a {type(model).__name__}, not a {model_class.__name__}"
        )
    return model


def _dtype(asked: Any, config: Any, stored: StoredModel) -> Any:
    """A torch dtype, or what else transformers takes."""
    if asked is None or asked == "auto":
        found = getattr(config, "dtype", None)
        return found if isinstance(found, torch.dtype) else main_dtype(stored.tensors.values())
    return parse_dtype(asked) if isinstance(asked, str) else asked
