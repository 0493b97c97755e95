"""A source model as a transformers model whose weights are not there until a module needs them.

The model is built without memory for its weights. Modules outside the blocks are filled the first time they are
called; a block is filled and emptied by its owner. transformers' own renaming and merging of tensors (experts) applies,
so that a block computes what the loaded model would.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
import transformers
from transformers.core_model_loading import (
    convert_and_load_state_dict_in_model,
)
from transformers.modeling_utils import LoadStateDictConfig

from spqfmt.calibration.limits import within_limits
from spqfmt.errors import ImporterError, SpqError, UnsupportedError, foreign_errors
from spqfmt.importers._quiet import quiet_transformers
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.models.assets import asset_folder
from spqfmt.models.claims import earned, false_claim
from spqfmt.models.config import class_named, read_config, read_tokenizer, text_config
from spqfmt.models.targets import Targets

NO_CALIBRATION = "take a method that needs no calibration, such as rtn, or ecq with --no-calibration"


def load_tokenizer(model: SourceModel) -> Any:
    """Load the source's own tokenizer. Raises ImporterError when it has none that transformers can use."""

    of_gguf = model.source_kind == "gguf"
    # A GGUF file has it inside, and what lies beside is nobody's.
    way = (
        "pack the Hugging Face folder that it was made of" if of_gguf else "put its files beside the weights"
    )
    if of_gguf and not any(name.startswith("tokenizer") for name in model.asset_data):
        why = model.left_out.get("tokenizer.json", "").partition(";")[0] or "it has no vocabulary"
        raise ImporterError(
            f"calibration needs the GGUF file's tokenizer ({why}); {way}, or {NO_CALIBRATION}"
        )

    def explained(reason: str) -> SpqError:
        return ImporterError(
            f"calibration needs the model's tokenizer, which cannot be used ({reason}); {way}, or {NO_CALIBRATION}"
        )

    with asset_folder(model.asset_data) as folder:
        return read_tokenizer(folder, explained)


def _unusable_config(reason: str) -> SpqError:
    return UnsupportedError(
        f"calibration: transformers cannot use the model's config.json ({reason}); {NO_CALIBRATION}", "config"
    )


def running_errors(model: object) -> AbstractContextManager[None]:
    """What transformers and torch raise while a model is built or run for calibration becomes UnsupportedError."""

    def explained(reason: str) -> SpqError:
        name = model if isinstance(model, str) else type(model).__name__
        return UnsupportedError(f"calibration: {name} cannot be run ({reason}); {NO_CALIBRATION}", name)

    return foreign_errors(explained)


class ModelShell:
    """The transformers model of a source, empty; `model` computes in `dtype` on `device`."""

    def __init__(
        self, source: SourceModel, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.device = torch.device(device)
        with (
            asset_folder(source.asset_data) as folder,
            quiet_transformers(),
            running_errors(source.architecture),
        ):
            if claim := false_claim(folder, len(source.tensors)):
                raise ImporterError(f"calibration: the model's config.json is wrong: {claim}")
            config = read_config(folder, _unusable_config)
            self.model = _build_empty(source, config, dtype)
        targets = Targets(self.model, (tensor.name for tensor in source.tensors))
        self._mapping = targets.mapping
        self.targets = {tensor.name: targets.find(tensor.name) for tensor in source.tensors}
        _restore_buffers(self.model, self.device)
        self.model.eval().requires_grad_(False)
        self._fill_on_call()

    @property
    def longest(self) -> int | None:
        """The most tokens the model takes, where its config says so."""
        limit = getattr(text_config(self.model.config), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def tensors_of(self, prefix: str) -> list[SourceTensor]:
        """The source tensors that fill the module `prefix` and what is below it."""
        inside = f"{prefix}." if prefix else ""
        return [tensor for tensor in self.source.tensors if self.targets[tensor.name][0].startswith(inside)]

    def fill(self, tensors: Iterable[SourceTensor]) -> None:
        """Read these tensors into their parameters, converted to the model's dtype."""
        state = {tensor.name: tensor.load() for tensor in tensors}
        config = LoadStateDictConfig(
            device_map={"": self.device}, dtype=self.dtype, weight_mapping=list(self._mapping)
        )
        with quiet_transformers(), within_limits():
            convert_and_load_state_dict_in_model(self.model, state, config)
        self.model.requires_grad_(requires_grad=False)

    def empty(self, module: torch.nn.Module) -> None:
        """Give back the memory of the parameters of `module`."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                blank = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                setattr(part, name, blank)

    def _fill_on_call(self) -> None:
        names = {module: name for name, module in self.model.named_modules()}

        def fill_own(module: torch.nn.Module) -> None:
            own = [name for name, p in module.named_parameters(recurse=False) if p.is_meta]
            wanted = {f"{names[module]}.{name}".lstrip(".") for name in own}
            if wanted:
                self.fill(self._sources(wanted))

        def fill(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
            if any(isinstance(x, torch.Tensor) and x.is_meta for x in inputs):
                name = names[module]
                raise UnsupportedError(
                    f"calibration: {name} reads what its model has sent to a weight that is not read yet; "
                    f"{NO_CALIBRATION}",
                    name,
                )
            fill_own(module)
            if isinstance(module, transformers.PreTrainedModel):
                # Llama 4 sends ids to the device of its embedding before it calls that.
                with suppress(NotImplementedError):
                    embedding = module.get_input_embeddings()
                    if embedding in names:
                        fill_own(embedding)
                # A model's device is that of its first parameter, and Idefics 3 sends its hidden states there.
                first = next((name for name, _ in module.named_parameters()), "")
                with suppress(ImporterError):
                    fill_own(module.get_submodule(first.rpartition(".")[0]))

        for module in self.model.modules():
            module.register_forward_pre_hook(fill)

    def _sources(self, parameters: set[str]) -> list[SourceTensor]:
        found = [tensor for tensor in self.source.tensors if self.targets[tensor.name][0] in parameters]
        missing = parameters - {self.targets[tensor.name][0] for tensor in found}
        if missing:
            raise ImporterError(
                f"calibration: the source has no tensor for {', '.join(sorted(missing))} of "
                f"{type(self.model).__name__}; {NO_CALIBRATION}"
            )
        return found


def _build_empty(source: SourceModel, config: Any, dtype: torch.dtype) -> Any:
    named = class_named(source.architecture)
    if named is None:
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UnsupportedError(
                f"calibration: transformers has no language model of type {config.model_type!r}; {NO_CALIBRATION}",
                config.model_type,
            )
        named = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"calibration needs a decoder-only model, {named.__name__} has an encoder; {NO_CALIBRATION}",
            "encoder",
        )
    if named.main_input_name != "input_ids":
        raise UnsupportedError(
            f"calibration runs a model on text, {named.__name__} takes {named.main_input_name}; {NO_CALIBRATION}",
            named.main_input_name,
        )
    text_config(config).use_cache = False
    # Expert by expert, each with the tokens that are routed to it.
    config._experts_implementation = "eager"
    shapes = (tensor.shape for tensor in source.tensors)
    with torch.device("meta"), earned("calibration", shapes):
        return named._from_config(config, dtype=dtype)


def _restore_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no checkpoint stores (rotary frequencies), as from_pretrained does."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            module.register_buffer(
                name,
                torch.zeros_like(buffer, device=device),
                persistent=name not in module._non_persistent_buffers_set,
            )
        if buffers:
            owner = _owner(model, module)
            with torch.no_grad():
                owner._init_weights(module)


def _owner(model: Any, module: torch.nn.Module) -> Any:
    """The innermost pretrained model around `module`: its class knows how to initialize it."""
    owner = model
    for candidate in model.modules():
        if isinstance(candidate, transformers.PreTrainedModel) and any(
            m is module for m in candidate.modules()
        ):
            owner = candidate
    return owner
