"""The table of methods: each packed, loaded back and compared with the float model, on models that are on PyPI.

    python tools/paper/evaluate_methods.py OUT_DIR --text FILE [--models smollm2 glass FOLDER] [--rows REGEX]
        [--samples N] [--list] [--ggml LIBRARY] [--no-kl]

Writes OUT_DIR/results.json and OUT_DIR/table.md, and keeps going where an earlier run stopped: a row with the same
settings is not computed again (`--again` does). tools/paper/frontier.py plots the same results. FILE is the
evaluation text; it must not be what the methods calibrate with. The Jargon File (public domain) is in Debian's
package jargon-text:

    apt-get download jargon-text && dpkg -x jargon-text_*.deb x && zcat x/usr/share/doc/jargon-text/jargon.txt.gz

**Another model** is the folder of one, named by --models. To stand beside published perplexities it wants the text and
the windows that those were measured with, whole: `--text wiki.test.raw --window 2048 --windows 100000 --no-kl`. A KL is
computed from logits of the reference that are kept in memory, 4 bytes for each token and each word of the vocabulary.

**To add a row**, write a line into ROWS of tools/paper/method_rows.py: the method and its options as `spqfmt pack` has
them. Nothing else is needed; a method that counts no bits a code has no `raw` and no CR.

Every row is a real file: packed by the command line in a process of its own, and loaded back to be judged. Those of
GGUF are not packed: tools/paper/gguf_rows.py says what they are; they need `--ggml` and are left out without it. Nor
are those of a trellis of fixed rate (tools/paper/trellis_rows.py). Methods in tools/paper/peers are not the package's.
SmolLM2's weights come from a 4-bit grid and are dithered (tools/models/smollm2.py), which makes the reference.
Embedding and head are kept at 16 bits. Columns: bits a weight and CR are of the tensors that the method quantizes.
`raw` counts codes at their bits, and scales, zero points, orders and outliers as they are before the entropy coder;
`paper` is the count of the method's own paper; `stored` what they take in the file; `CR` is raw / stored. `ratio` is
the whole model's BF16 size / file size. KL in millinats a token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf_rows
import torch
import trellis_rows
from method_results import Results, key_of, table
from method_rows import ROWS, Options, Row

import spqfmt
from spqfmt.loaders import encode_text, evaluate, leading_tokens, load_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import smollm2

MODELS = ("smollm2", "glass")
_LONGEST = {"glass": 128}
"""Tokens that a model takes at once, where they are fewer than a sample has."""
PEERS = Path(__file__).with_name("peers")
"""Methods of others for single rows, each a module as the package's own are; packed with those, and nowhere else."""
_PACK = f"""
import sys
import spqfmt.quantize
spqfmt.quantize.__path__.append({str(PEERS)!r})
from spqfmt.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        sys.stderr.write(next(line for line in status if line.startswith("VmHWM")))
"""
# Not the process's ru_maxrss: that begins with what this tool itself holds when it starts the process.


def build_model(name: str, folder: Path) -> Path:
    """The Hugging Face folder of a model to measure on; made once. Any other name is a folder."""
    if name not in MODELS:
        return Path(name)
    target = folder / name
    if not (target / "config.json").exists():
        if name == "smollm2":
            smollm2.build(target, dithered=True)
        else:
            import glass

            glass.build(target)
    return target


def pack_options(row: Row, calibration: Options) -> Options:
    """All options of `spqfmt pack` for a row."""
    if row.method == "lossless":
        return {}
    return {**(calibration if row.calibrated else {}), **row.options, "embedding-bits": 16}


def pack(source: Path, out: Path, method: str, options: Options) -> dict[str, float]:
    """Pack in a process of its own; its seconds and its peak memory in MB."""
    command = [sys.executable, "-c", _PACK, "pack", str(source), str(out), "--force", "--json"]
    command += ["--method", method]
    for name, value in options.items():
        if value is False:
            command += [f"--no-{name}"]
        else:
            command += [f"--{name}"] if value == "" else [f"--{name}", str(value)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pack --method {method} failed: {done.stderr.strip()}")
    peak_kib = int(done.stderr.split()[-2])
    return {"seconds": time.monotonic() - started, "peak_mb": peak_kib * 1024 / 1e6}


def sizes(file: Path) -> dict[str, float | None]:
    """What the quantized tensors cost, and the file."""
    report = spqfmt.inspect(file)
    # Embedding and head are kept here; a dense tensor of a method is a folded norm, no layer.
    layers = [t for t in report.tensors if t.method and t.scheme != "dense"]
    n_weights = sum(t.n_weights for t in layers)
    result: dict[str, float | None] = {
        "file_bytes": report.file_bytes,
        "ratio": report.totals.raw_bytes / report.file_bytes,
        "raw": None,
        "stored": None,
        "cr": None,
        "outliers": None,
        "paper": None,
    }
    if not layers:
        return result
    stored = 8 * sum(t.stored_bytes for t in layers) / n_weights
    code_bits = json.loads(report.metadata["method_options"]).get("bits")
    if code_bits is not None:
        side = sum(s.raw_bytes for t in layers for s in t.streams if s.role != "codes")
        raw = code_bits + 8 * side / n_weights
        result |= {"raw": raw, "cr": raw / stored}
    formula = report.metadata.get("formula_bits_per_weight")
    return result | {
        "stored": stored,
        "outliers": sum(t.outliers for t in layers) / n_weights,
        "paper": None if formula is None else float(formula),
    }


class _Remembered:
    """A reference that every row is compared with: its logits are computed once, and kept at 4 bytes each."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._outputs: dict[bytes, Any] = {}
        self.device = model.device

    def forward(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        """Return what the model returns, remembered for inputs that come again."""
        key = input_ids.numpy().tobytes()
        if key not in self._outputs:
            self._outputs[key] = self._model(
                input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep
            )
        return self._outputs[key]

    __call__ = forward


class Judge:
    """Perplexity and KL to the float model on windows spread over a text."""

    def __init__(self, source: Path, text: str, window: int, n_windows: int, *, with_kl: bool = True) -> None:
        reference, tokenizer = load_model(source, dtype="float32")
        self._reference = _Remembered(reference) if with_kl else None
        limit = reference.config.max_position_embeddings
        self._window = min(window, limit)
        ids = encode_text(tokenizer, text)
        self._before = leading_tokens(tokenizer)
        length = self._window - len(self._before)
        n_windows = min(n_windows, len(ids) // length)
        starts = torch.linspace(0, len(ids) - length, n_windows).long().tolist()
        self._ids = torch.cat([ids[start : start + length] for start in starts])

    def __call__(self, file: Path) -> dict[str, float | None]:
        """Perplexity, and KL in millinats a token."""
        model, _ = load_model(file, dtype="float32", packed=False)
        scored = evaluate(
            model, self._ids, before=self._before, reference=self._reference, window=self._window
        )
        return {
            "perplexity": scored.perplexity,
            "kl": None if scored.kl is None else 1000 * scored.kl,
            "tokens": scored.tokens,
        }


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--models", nargs="+", default=MODELS, help=f"{', '.join(MODELS)}, or folders of models"
    )
    parser.add_argument("--rows", default="", help="only rows whose method and settings match")
    parser.add_argument(
        "--samples", type=int, default=32, help="of the calibration, where a row says no other"
    )
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--ggml", type=Path, help="shared library of ggml, for the rows of gguf")
    parser.add_argument("--list", action="store_true", help="only print the rows that are not measured yet")
    parser.add_argument("--no-kl", action="store_true", help="perplexity alone, of a text of any length")
    parser.add_argument("--again", action="store_true", help="measure rows that are there anew")
    arguments = parser.parse_args()
    for name in arguments.models:
        if name not in MODELS and not (Path(name) / "config.json").is_file():
            parser.error(f"{name} is none of {', '.join(MODELS)}, and no folder of a model (config.json)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out / "results.json")
    text = arguments.text.read_text("utf-8")
    judged_on = {
        "text": hashlib.sha256(text.encode()).hexdigest()[:8],
        "windows": arguments.windows,
        "window": arguments.window,
    }
    if arguments.no_kl:
        judged_on["kl"] = False
    for given in arguments.models:
        model = given if given in MODELS else Path(given).resolve().name
        judge: Judge | None = None
        for row in (row for row in ROWS if re.search(arguments.rows, row.title)):
            if row.method == "gguf" and arguments.ggml is None:
                continue
            n_samples = row.samples or arguments.samples
            n_tokens = min(row.seq_len or arguments.seq_len, _LONGEST.get(model, sys.maxsize))
            options = pack_options(row, {"samples": n_samples, "seq-len": n_tokens})
            key = key_of(model, row, {**options, **judged_on})
            if key in results.read() and not arguments.again:
                continue
            if arguments.list:
                print(f"{model}\t{row.title}")
                continue
            source = build_model(given, arguments.out)
            judge = judge or Judge(
                source, text, arguments.window, arguments.windows, with_kl=not arguments.no_kl
            )
            # In a folder of its own: another run may measure beside this one.
            with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
                if row.method == "gguf":
                    packed = Path(folder) / "gguf"
                    costs = gguf_rows.pack(source, packed, gguf_rows.open_quantizer(arguments.ggml), options)
                elif row.method == "trellis":
                    packed = Path(folder) / "trellis"
                    costs = trellis_rows.pack(source, packed, options)
                else:
                    packed = Path(folder) / "m.spq"
                    costs = {**pack(source, packed, row.method, options), **sizes(packed)}
                measured = {**costs, **judge(packed)}
            entry = {
                "model": model,
                "method": row.method,
                "settings": row.settings,
                "series": row.series,
                "calibration": f"{n_samples} x {n_tokens}" if row.calibrated else "",
                **measured,
            }
            (arguments.out / "table.md").write_text(table(results.add(key, entry)), "utf-8")
            print(key, {name: entry[name] for name in ("stored", "perplexity", "kl", "seconds")}, flush=True)
    if not arguments.list:
        print(table(results.read()))


if __name__ == "__main__":
    main()
