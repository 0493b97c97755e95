"""The table of methods: each packed, loaded back and compared with the float model, on models that are on PyPI.

    python tools/evaluate_methods.py OUT_DIR --text FILE [--models smollm2 glass] [--rows REGEX] [--samples N]

Writes OUT_DIR/results.json and OUT_DIR/table.md, and keeps going where an earlier run stopped: a row with the same
settings is not computed again. FILE is the evaluation text; it must not be what the methods calibrate with. The
Jargon File (public domain) is in Debian's package jargon-text:

    apt-get download jargon-text && dpkg -x jargon-text_*.deb x && zcat x/usr/share/doc/jargon-text/jargon.txt.gz

SmolLM2's weights come from a 4-bit grid and are dithered (tools/models/smollm2.py), which makes the reference.
Columns: bits a weight and CR are of the layers that the method quantizes. `raw` counts codes at their bits, and scales,
zero points, orders and outliers as they are before the entropy coder; `paper` is the count of the method's own paper;
`CR` is raw / stored. `ratio` is the whole model's BF16 size / file size. KL in millinats a token.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import spqfmt
from spqfmt.loaders import encode_text, evaluate, load_model

sys.path.insert(0, str(Path(__file__).parent / "models"))

import smollm2

Options = Mapping[str, str | int | float]
_PACK = """
import sys
from spqfmt.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        sys.stderr.write(next(line for line in status if line.startswith("VmHWM")))
"""
# Not the process's ru_maxrss: that begins with what this tool itself holds when it starts the process.


@dataclass(frozen=True)
class Row:
    """A method and its options, as on the command line. `settings` is what the table shows."""

    method: str
    settings: str
    options: Options = field(default_factory=dict)
    calibrated: bool = True

    @property
    def title(self) -> str:
        """What --rows is matched with."""
        return f"{self.method} {self.settings}"


def _group(bits: int, size: int) -> tuple[str, dict[str, int]]:
    return f"{bits} bits, groups of {size}", {"bits": bits, "group-size": size}


ROWS: tuple[Row, ...] = (
    Row("lossless", "", calibrated=False),
    *(Row("rtn", *_group(bits, 16), calibrated=False) for bits in (3, 4)),
    *(Row("rtn", *_group(bits, 64), calibrated=False) for bits in (3, 4)),
    Row("rtn", "8 bits per row", {"bits": 8}, calibrated=False),
    *(Row("gptq", f"{bits} bits per row", {"bits": bits}) for bits in (3, 4)),
    *(Row("gptq", *_group(bits, 16)) for bits in (3, 4)),
    *(Row("gptq", *_group(bits, 64)) for bits in (3, 4)),
    *(Row("spqr", f"{bits} bits, threshold 0.2", {"bits": bits}) for bits in (2, 3, 4)),
    *(Row("spqr", f"{bits} bits, no outliers", {"bits": bits, "threshold": "inf"}) for bits in (3, 4)),
    Row("dc", "alpha 0.8"),
    Row("dc", "alpha 0.8, 20 % pruned", {"sparsity": 0.2}),
    Row("dc", "alpha 0.8, weights only", {"activations": "float"}),
    Row("dc", "alpha 0.5", {"alpha": 0.5}),
    Row("smoothquant", "alpha 0.5"),
    Row("smoothquant", "per tensor", {"granularity": "tensor"}),
    Row("llm_int8", "8 bits per row, outlier columns kept"),
    Row("zeroquant", "8 bits, groups of 128"),
    *(
        Row("smoothquant", f"after {criterion}, 50 %", {"pruning": criterion, "sparsity": 0.5})
        for criterion in ("magnitude", "wanda", "sparsegpt", "sar")
    ),
    Row("smoothquant", "after wanda, 2:4", {"pruning": "wanda", "pattern": "2:4"}),
    Row("jsq", "50 %"),
    Row("jsq", "50 %, no editing", {"search-steps": 0}),
    Row("jsq", "2:4, no editing", {"pattern": "2:4", "search-steps": 0}),
)


def build_model(name: str, folder: Path) -> Path:
    """The Hugging Face folder of a model to measure on; made once."""
    target = folder / name
    if not (target / "config.json").exists():
        if name == "smollm2":
            smollm2.build(target, dithered=True)
        else:
            import glass

            glass.build(target)
    return target


def pack(source: Path, out: Path, row: Row, calibration: Options) -> dict[str, float]:
    """Pack in a process of its own; its seconds and its peak memory in MB."""
    given = {**row.options, **(calibration if row.calibrated else {}), "embedding-bits": 16}
    if row.method == "lossless":
        given = {}
    command = [sys.executable, "-c", _PACK, "pack", str(source), str(out), "--force", "--json"]
    command += ["--method", row.method]
    for name, value in given.items():
        command += [f"--{name}"] if value == "" else [f"--{name}", str(value)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row.title}: pack failed: {done.stderr.strip()}")
    peak_kib = int(done.stderr.split()[-2])
    return {"seconds": time.monotonic() - started, "peak_mb": peak_kib * 1024 / 1e6}


def sizes(file: Path) -> dict[str, float | None]:
    """What the quantized layers cost, and the file."""
    report = spqfmt.inspect(file)
    options = json.loads(report.metadata["method_options"])
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
    side = sum(s.raw_bytes for t in layers for s in t.streams if s.role != "codes")
    raw = options["bits"] + 8 * side / n_weights
    stored = 8 * sum(t.stored_bytes for t in layers) / n_weights
    formula = report.metadata.get("formula_bits_per_weight")
    return result | {
        "raw": raw,
        "stored": stored,
        "cr": raw / stored,
        "outliers": sum(t.outliers for t in layers) / n_weights,
        "paper": None if formula is None else float(formula),
    }


class Judge:
    """Perplexity and KL to the float model on windows spread over a text."""

    def __init__(self, source: Path, text: str, window: int, n_windows: int) -> None:
        self._reference, tokenizer = load_model(source, dtype="float32")
        limit = self._reference.config.max_position_embeddings
        self._window = min(window, limit)
        ids = encode_text(tokenizer, text)
        n_windows = min(n_windows, len(ids) // self._window)
        starts = torch.linspace(0, len(ids) - self._window, n_windows).long().tolist()
        self._ids = torch.cat([ids[start : start + self._window] for start in starts])

    def __call__(self, file: Path) -> dict[str, float | None]:
        """Perplexity, and KL in millinats a token."""
        model, _ = load_model(file, dtype="float32")
        scored = evaluate(model, self._ids, reference=self._reference, window=self._window)
        return {
            "perplexity": scored.perplexity,
            "kl": None if scored.kl is None else 1000 * scored.kl,
            "tokens": scored.tokens,
        }


_HEAD = (
    "| method | settings | raw bits | paper's bits | stored bits | outliers | CR | ratio to BF16 | perplexity | KL | "
    "pack s | peak MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one table for each model, rows as in ROWS."""
    parts = []
    for model in dict.fromkeys(entry["model"] for entry in results.values()):
        mine = [entry for entry in results.values() if entry["model"] == model]
        order = {row.title: number for number, row in enumerate(ROWS)}
        lines = [
            f"| {e['method']} | {e['settings']} | {_show(e['raw'])} | {_show(e['paper'])} | {_show(e['stored'])} | "
            f"{_show(e['outliers'], '.2%')} | {_show(e['cr'])} | {_show(e['ratio'])} | {_show(e['perplexity'])} | "
            f"{_show(e['kl'], '.1f')} | {_show(e['seconds'], '.0f')} | {_show(e['peak_mb'], '.0f')} |"
            for e in sorted(mine, key=lambda e: order.get(f"{e['method']} {e['settings']}", len(order)))
        ]
        tokens = mine[0]["tokens"]
        parts.append(f"### {model} ({tokens} tokens scored)\n\n{_HEAD}\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _show(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=("smollm2", "glass"), default=("smollm2", "glass"))
    parser.add_argument("--rows", default="", help="only rows whose method and settings match")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    calibration = {"samples": arguments.samples, "seq-len": arguments.seq_len}
    rows = [row for row in ROWS if re.search(arguments.rows, row.title)]
    for model in arguments.models:
        judge: Judge | None = None
        for row in rows:
            measured = {"windows": arguments.windows, "window": arguments.window, **row.options}
            measured |= calibration if row.calibrated else {}
            key = f"{model} | {row.title} | {json.dumps(measured, sort_keys=True)}"
            if key in results:
                continue
            source = build_model(model, arguments.out)
            packed = arguments.out / "packed.spq"
            costs = pack(source, packed, row, calibration)
            judge = judge or Judge(
                source, arguments.text.read_text("utf-8"), arguments.window, arguments.windows
            )
            results[key] = {
                "model": model,
                "method": row.method,
                "settings": row.settings,
                **sizes(packed),
                **judge(packed),
                **costs,
            }
            file.write_text(json.dumps(results, indent=1), "utf-8")
            (arguments.out / "table.md").write_text(table(results), "utf-8")
            print(key, {k: results[key][k] for k in ("stored", "perplexity", "kl", "seconds")}, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
