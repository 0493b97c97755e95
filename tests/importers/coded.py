"""Checkpoints with the arrays of quantizers, and what is true of all that `keep` takes them apart into."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import reference_decoder
import tiny
import torch
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import ImporterError

Arrays = dict[str, torch.Tensor]


def write_model(
    folder: Path,
    quantizer: Mapping[str, Any],
    quantize: Any,
    name: str = "llama",
    metadata: Mapping[str, str] | None = None,
) -> Arrays:
    """A small model whose linear layers `quantize(module, weight)` makes arrays of; its weights as they were.

    `metadata` is what the file says of them, once all are made.
    """
    tiny.build(name, folder, dtype=torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    arrays: Arrays = {}
    for key, value in weights.items():
        is_linear = key.endswith("_proj.weight")
        arrays |= quantize(key.removesuffix(".weight"), value) if is_linear else {key: value}
    _save(arrays, folder, metadata)
    file = folder / "config.json"
    said = {"quantization_config": quantizer} if quantizer else {}
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}, indent=1))
    return weights


def write_arrays(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A folder of these arrays and this config alone."""
    folder.mkdir()
    _save(arrays, folder, metadata)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _save(arrays: Mapping[str, torch.Tensor], folder: Path, metadata: Mapping[str, str] | None) -> None:
    own = {key: value.contiguous().clone() for key, value in arrays.items()}
    save_file(own, folder / "model.safetensors", None if metadata is None else dict(metadata))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def keep(folder: Path, **options: Any) -> Path:
    """The folder packed by `keep`, after its files have come back, from the package and the reference decoder."""
    path = folder.with_name("kept.spq")
    spqfmt.pack(folder, path, method="keep", force=True, **options)
    spqfmt.verify(path, content=True)
    out = folder.with_name("out")
    report = spqfmt.unpack(path, out)
    assert report.identical
    assert not report.left_out
    assert digests(out) == digests(folder)
    if path.stat().st_size < 30_000:  # it is plain Python
        made = reference_decoder.decode(path.read_bytes())
        assert {name: hashlib.sha256(data).hexdigest() for name, data in made.files.items()} == digests(
            folder
        )
        with spqfmt.open(path) as file:
            for name, restored in made.tensors.items():
                assert restored.data == bits(file.read(name)).numpy().tobytes(), name
    return path


def bits(value: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return value.contiguous().reshape(-1).view(torch.uint8)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are alike in shape, dtype and every bit."""
    return (first.shape, first.dtype) == (second.shape, second.dtype) and torch.equal(
        bits(first), bits(second)
    )


def check_loaded(path: Path, source: Path, expected: Arrays) -> None:
    """A kept model loads with exactly these weights: from the file, the folder, by from_pretrained, and packed."""
    import transformers

    inputs = torch.arange(20)[None]
    model, _ = spqfmt.load_model(path, packed=False)
    state = model.state_dict()
    assert all(same(state[name], value) for name, value in expected.items())
    assert getattr(model.config, "quantization_config", None) is None
    with torch.inference_mode():
        logits = model(inputs).logits
        for other in (
            spqfmt.load_model(source, packed=False)[0],
            _from_pretrained(transformers, path, path.with_name("packed"), keep_packed=True),
            _from_pretrained(transformers, path, path.with_name("dense"), as_="dense"),
        ):
            assert torch.equal(other(inputs).logits, logits)
        exact, packed = (
            spqfmt.load_model(path, dtype="float32", packed=packed)[0](inputs).logits
            for packed in (None, True)
        )
        assert torch.allclose(packed, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def _from_pretrained(transformers: Any, path: Path, folder: Path, **options: Any) -> Any:
    spqfmt.unpack(path, folder, **options)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def check_refused(source: Path, words: str) -> None:
    """Codes that contradict what is said are refused in one line, with `keep` or without; `lossless` keeps all."""
    path = source.parent / "m.spq"
    for options in ({"method": "keep"}, {}):
        with pytest.raises(ImporterError, match=words) as refused:
            spqfmt.pack(source, path, **options)
        assert "\n" not in str(refused.value)
        assert {file.name for file in source.parent.iterdir()} == {source.name}
    assert "--method lossless keeps" in str(refused.value)
    spqfmt.pack(source, path, method="lossless")
    assert spqfmt.unpack(path, source.parent / "out").identical
