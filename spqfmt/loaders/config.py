"""What transformers makes of a stored model's config and tokenizer, with errors that name the file."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from spqfmt.container.located import located
from spqfmt.errors import SpqError, UnsupportedError, foreign_errors
from spqfmt.importers._quantized import QUANTIZER_KEYS
from spqfmt.loaders.tensors import StoredModel
from spqfmt.models.assets import asset_folder
from spqfmt.models.claims import false_claim
from spqfmt.models.config import find_model_class, read_config, read_tokenizer
from spqfmt.models.remote_code import AUTO_MAP, names_code, own_model_class

_TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}
)
_UNKNOWN_MODEL = re.compile(r"does not recognize this architecture|Unrecognized model")
_NOT_INSTALLED = re.compile(r"library but it was not found|^No module named")


def building_errors(path: Path, model_class: Any) -> AbstractContextManager[None]:
    """What transformers and torch raise over a config that they could read becomes UnsupportedError."""

    def explained(reason: str) -> SpqError:
        name = model_class.__name__
        advice = (
            "install it" if _NOT_INSTALLED.search(reason) else "mend that file, or try another transformers"
        )
        return UnsupportedError(
            f"{path}: transformers cannot build the {name} of its config.json: {reason}; {advice}", name
        )

    return foreign_errors(explained)


@contextmanager
def settings_folder(path: Path, stored: StoredModel, *, trusted: bool = False) -> Iterator[Path]:
    """The model's small files in a folder, as `asset_folder` makes it, with errors that name `path`.

    `trusted`: whether its own code is among them.
    """
    name = (re.sub(r"\W", "_", path.name) or "model") if trusted else ""
    with located(path), asset_folder(stored.assets, name) as folder:
        yield folder


def stored_config(path: Path, folder: Path, stored: StoredModel, *, trusted: bool = False) -> Any:
    """transformers' config of the model. Raises as `load_model` does."""
    if "config.json" not in stored.assets:
        message = (
            f"{path}: {stored.no_config or 'no config.json in it, so its weights cannot become a model'}"
        )
        if stored.no_config and stored.opened is not None:  # nothing is wrong with the file
            raise UnsupportedError(message, "config")
        raise stored.bad(message)

    def explained(reason: str) -> SpqError:
        # A model that has no class here may have one in a newer version; a value that does not fit will not.
        is_unknown = _UNKNOWN_MODEL.search(reason)
        advice = "a newer transformers may" if is_unknown else "mend that file, or try another transformers"
        if is_unknown and not trusted and names_code(stored.assets["config.json"]):
            advice = (
                "it names code of its own (auto_map), which load_model runs with trust_remote_code=True only"
            )
        return UnsupportedError(
            f"{path}: transformers cannot use its config.json: {reason.replace(str(folder), str(path))}; {advice}",
            "config",
        )

    if claim := false_claim(folder, len(stored.tensors)):
        raise stored.bad(f"{path}: its config.json is wrong: {claim}")
    config = read_config(folder, explained, trusted=trusted)
    settle_quantized(path, config, stored)
    return config


def settle_quantized(path: Path, config: Any, stored: StoredModel) -> None:
    """Take out of a config what it says of a quantizer, where the tensors are decoded: transformers would ask for it.

    Raises UnsupportedError where they are arrays that only that quantizer understands.
    """
    # The two places that transformers looks at.
    parts = (config, config.get_text_config(decoder=True))
    if stored.is_decoded:
        for part in parts:
            for key in QUANTIZER_KEYS:
                vars(part).pop(key, None)
        return
    found = (getattr(part, "quantization_config", None) for part in parts)
    quantization = next((one for one in found if one is not None), None)
    if quantization is not None:
        method = (
            dict(quantization).get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        )
        raise UnsupportedError(
            f"{path}: its tensors are quantized by another format ({method}); unpack it and load it with transformers",
            f"quantization {method}",
        )
    if stored.raw_codes:
        raise UnsupportedError(
            f"{path}: its tensors are quantized by another format ({stored.raw_codes}), of which its config.json says "
            "nothing; unpack it and load it with what wrote it",
            f"quantization {stored.raw_codes}",
        )


def stored_tokenizer(path: Path, folder: Path, stored: StoredModel, *, trusted: bool = False) -> Any:
    """transformers' tokenizer of the model, None where it has none. Raises UnsupportedError."""
    if _TOKENIZER_FILES.isdisjoint(stored.assets):
        return None

    def explained(reason: str) -> SpqError:
        why = reason.replace(str(folder), str(path))
        return UnsupportedError(f"{path}: transformers cannot use its tokenizer: {why}", "tokenizer")

    return read_tokenizer(folder, explained, trusted=trusted)


def stored_class(path: Path, folder: Path, config: Any, *, trusted: bool = False) -> Any:
    """The class of the model: of its own code, where that is trusted and there is any. Raises UnsupportedError."""

    def explained(reason: str) -> SpqError:
        why = reason.replace(str(folder), str(path))
        return UnsupportedError(f"its own code gives no model: {why}", AUTO_MAP)

    with located(path), foreign_errors(explained):
        own = own_model_class(config, folder) if trusted else None
    return own or find_model_class(config, path)
