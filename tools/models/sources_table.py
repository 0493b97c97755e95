"""What becomes of checkpoints that are quantized already: packed, loaded, given back; the table of docs/sources.md.

    python tools/models/sources_table.py RESULTS.jsonl [TITLE ...] [--layers 6] [--table docs/sources.md]

The model is SmolLM2-135M, its first layers by default, with noise of half a step of its own grid
(tools/models/smollm2.py): else a quantizer would find that grid again. Rows are of ROWS, one for each kind of codes;
those named are made, all without any; results are added to the file, later ones in place of earlier ones. K-quants and
IQ4 need ggml's own quantizer, which the package xllamacpp brings; without it they are passed over. Blocks of 256 are of
the matrices alone whose rows they divide, one of seven of a layer. --table writes what the file has into the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import quantized
import smollm2
import torch
from ggml_quantizer import ggml_blocks

import spqfmt
from spqfmt.errors import SpqError
from spqfmt.exporters import export_huggingface
from spqfmt.importers import open_source

GGUF = "gguf"
"""The family of blocks, which is no module of importers/quantizers."""
_BEGIN, _END = "<!-- table by tools/models/sources_table.py -->", "<!-- end of the table -->"
_TOKENS = 24


@dataclass(frozen=True)
class Row:
    """A format, a kind of its codes, the family that takes them, and what writes a model of it.

    `layout` is one of tools/models/quantized.py, or a type of ggml. One that is empty has no maker here.
    """

    format: str
    kind: str
    family: str
    layout: str = ""

    @property
    def title(self) -> str:
        """What a row is called by on the command line; no two share it."""
        return f"{self.format} {self.kind}"


_KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "TQ1_0", "TQ2_0",
)  # fmt: skip
ROWS = (
    *(Row("GGUF", kind, GGUF, kind) for kind in _KINDS),
    Row("GPTQ", "4 bits, groups of 64", "gptq", "gptq"),
    Row("GPTQ", "3 bits, groups of 64", "gptq", "gptq-3"),
    Row("GPTQ", "8 bits, groups of 64", "gptq", "gptq-8"),
    Row("GPTQ", "4 bits, act-order, zero points", "gptq", "gptq-act-order"),
    Row("AWQ", "4 bits, groups of 64", "awq", "awq"),
    Row("compressed-tensors", "int4, groups of 64", "integers", "int4"),
    Row("compressed-tensors", "int8, rows", "integers", "int8"),
    Row("compressed-tensors, gpt-oss", "MXFP4", "mxfp4", "mxfp4"),
    Row("compressed-tensors, ModelOpt", "NVFP4", "nvfp4", "nvfp4"),
    Row("FP8", "blocks of 128 by 128", "fp8", "fp8"),
    Row("bitsandbytes", "NF4", "bitsandbytes", "nf4"),
    Row("bitsandbytes", "NF4, double quantization", "bitsandbytes", "nf4-nested"),
    Row("bitsandbytes", "FP4", "bitsandbytes", "fp4"),
    Row("bitsandbytes", "LLM.int8", "llm_int8", "llm-int8"),
    Row("HQQ", "4 bits, groups of 64", "hqq", "hqq"),
    Row("optimum-quanto", "int8", "quanto", "quanto-int8"),
    Row("torchao", "int8, rows", "torchao", "torchao-int8"),
    Row("torchao", "int4, groups of 64", "torchao", "torchao-int4"),
    Row("torchao", "float8, rows", "torchao", "torchao-float8"),
)
"""All formats whose codes are kept. A family of importers/quantizers has one at least."""


@dataclass(frozen=True)
class Result:
    """What was found of a row: whether values and files are the source's, whether a model runs, and what it took.

    `ratio` is of what is in the format alone, here to there; without the rest of the model.
    """

    title: str
    form: str
    exact: bool
    runs: bool
    returns: bool
    ratio: float


def _layers(source: Path, folder: Path, n: int) -> None:
    """Write the first layers of a model as a folder."""
    model = open_source(source)
    config = json.loads(model.asset_data["config.json"]) | {"num_hidden_layers": n}
    within = re.compile(r"model\.layers\.(\d+)\.")
    tensors = [t for t in model.tensors if (found := within.match(t.name)) is None or int(found[1]) < n]
    assets = model.asset_data | {"config.json": json.dumps(config, indent=2).encode()}
    export_huggingface(folder, tuple(tensors), assets)


def _write_gguf(file: Path, kind_name: str, n_layers: int) -> bool:
    """Write the first layers as GGUF, in blocks where these divide the rows; False where nothing makes these."""
    kind = gguf.GGMLQuantizationType[kind_name]
    n_weights, _ = gguf.GGML_QUANT_SIZES[kind]
    reader, writer = gguf.GGUFReader(smollm2.gguf_path()), gguf.GGUFWriter(file, "llama")
    for found in reader.fields.values():
        if found.name.startswith("GGUF.") or found.name == "general.architecture":
            continue
        value = n_layers if found.name == "llama.block_count" else found.contents()
        is_list = found.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(found.name, value, found.types[0], found.types[1] if is_list else None)
    for tensor in reader.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        if layer is not None and int(layer[1]) >= n_layers:
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if layer is None or values.ndim == 1:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        groups = values.reshape(-1, 32)
        noise = np.random.default_rng(zlib.crc32(tensor.name.encode())).uniform(-0.5, 0.5, groups.shape)
        steps = (groups.max(1) - groups.min(1)) / 15
        dithered = (groups + noise * steps[:, None]).astype(np.float32).reshape(values.shape)
        if dithered.shape[1] % n_weights:
            writer.add_tensor(tensor.name, dithered.astype(np.float16))
            continue
        blocks = ggml_blocks(np.ascontiguousarray(dithered), kind)
        if blocks is None:
            return False
        writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return True


def _made(row: Row, floats: Path, folder: Path, n_layers: int) -> Path | None:
    """The checkpoint of a row; None for one that nothing here makes."""
    if row.family == GGUF:
        file = folder / f"{row.layout}.gguf"
        return file if _write_gguf(file, row.layout, n_layers) else None
    out = folder / row.layout
    quantized.write(floats, out, row.layout)
    return out


def measured(row: Row, source: Path, folder: Path) -> Result:
    """Pack a checkpoint, load it, give it back."""
    path, out = folder / "m.spq", folder / "out"
    spqfmt.pack(source, path, force=True)
    report = spqfmt.inspect(path)
    forms = {} if report.source is None else report.source.forms
    mine = {form: of for form, of in forms.items() if row.family != GGUF or form == f"GGUF {row.kind}"}
    there, here = (sum(of[k] for of in mine.values()) for k in (1, 2))
    returns = spqfmt.unpack(path, out).identical
    given = {file.name: file.read_bytes() for file in ([source] if source.is_file() else source.iterdir())}
    returns = returns and all((out / name).read_bytes() == data for name, data in given.items())
    return Result(
        title=row.title,
        form=", ".join(mine),
        exact=_is_exact(source, path),
        runs=_runs(path),
        returns=returns,
        ratio=here / max(1, there),
    )


def _is_exact(source: Path, path: Path) -> bool:
    """Whether each tensor has the values that the importer gives it, the tests holding these against the libraries."""
    with spqfmt.open(path) as file:
        tensors = {tensor.name: tensor for tensor in open_source(source).as_weights().tensors}
        names = [name for name in file if file[name].info.tied_to is None]
        return all(torch.equal(file.read(name), tensors[name].load()) for name in names)


def _runs(path: Path) -> bool:
    """Whether a model is loaded that computes numbers, decoded and packed alike."""
    found = []
    try:
        for packed in (False, True):
            model, _ = spqfmt.load_model(path, packed=packed, dtype="float32")
            with torch.inference_mode():
                tokens = torch.arange(_TOKENS)[None] * 37 % model.config.vocab_size
                found.append(model(tokens).logits.float())
    except SpqError:
        return False
    return bool(torch.isfinite(found[0]).all() and (found[0] - found[1]).abs().max() < 0.05 * found[0].std())


def results_of(file: Path) -> dict[str, Result]:
    """What a file of results has, by title."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {result.title: result for result in (Result(**json.loads(line)) for line in lines)}


def table(results: dict[str, Result]) -> Iterator[str]:
    """The lines of the table; a row that has no result has no ratio."""
    yield "| format | kind | inspect calls it | exact | runs | goes back | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for row in ROWS:
        found = results.get(row.title)
        said = ["", "", "", "", ""]
        if found is not None:
            said = [found.form, *("yes" if ok else "no" for ok in (found.exact, found.runs, found.returns))]
            said.append(f"{found.ratio:.3f}")
        yield f"| {row.format} | {row.kind} | {' | '.join(said)} |"


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("titles", nargs="*")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    results = results_of(given.results)
    wanted = [row for row in ROWS if row.title in given.titles or not (given.titles or given.table)]
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        floats = Path(cut) / "model"
        if any(row.family != GGUF for row in wanted):
            smollm2.build(Path(whole) / "model", dithered=True)
            _layers(Path(whole) / "model", floats, given.layers)
        for row in wanted:
            with tempfile.TemporaryDirectory() as folder:
                source = _made(row, floats, Path(folder), given.layers)
                if source is None:
                    print(f"{row.title}: nothing here makes it")
                    continue
                results[row.title] = measured(row, source, Path(folder))
                print(results[row.title], flush=True)
            lines = (json.dumps(dataclasses.asdict(result)) for result in results.values())
            given.results.write_text("".join(f"{line}\n" for line in lines))
    if given.table is not None:
        page = given.table.read_text()
        before, after = page.split(_BEGIN)[0], page.split(_END)[1]
        given.table.write_text(before + "\n".join((_BEGIN, *table(results), _END)) + after)


if __name__ == "__main__":
    main()
