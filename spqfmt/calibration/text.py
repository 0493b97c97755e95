"""Texts to calibrate with: the user's or the package's own, cut into samples of token ids."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spqfmt import stand_ins
from spqfmt.calibration.tokens import encode, leading_tokens
from spqfmt.device_names import check_device_name
from spqfmt.errors import OptionError

DEFAULT_SAMPLES = 128
DEFAULT_SEQ_LEN = 512
_MIN_SEQ_LEN = 8
_PLAIN, _LINES = (".txt", ".md"), (".jsonl", ".ndjson")


@dataclass(frozen=True)
class CalibrationOptions:
    """Which texts, how many samples of how many tokens, and the seed of their choice.

    `text` None is the text in the package. `sequential` feeds each block what the quantized blocks before it give;
    otherwise all blocks see the float model's activations. `no_bos` leaves out what the tokenizer puts before a text.
    `device` is where the model is run, and its statistics are made and used.
    """

    text: Path | None = None
    samples: int = DEFAULT_SAMPLES
    seq_len: int = DEFAULT_SEQ_LEN
    seed: int = 0
    sequential: bool = True
    no_bos: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise OptionError for numbers that make no sense."""
        if self.samples < 1:
            raise OptionError("calibration needs at least 1 sample")
        check_device_name(self.device)
        if self.seq_len < _MIN_SEQ_LEN:
            raise OptionError(f"a calibration sample has at least {_MIN_SEQ_LEN} tokens")


def default_text() -> str:
    """The public-domain text in the package (data/README.md names its sources)."""
    return resources.files("spqfmt.calibration").joinpath("data/calibration.txt").read_text("utf-8")


def read_text(path: Path) -> str:
    """A text file, JSON lines (.jsonl, .ndjson) with "text" fields, or a folder of both: all joined by blank lines.

    Of a folder the files named .txt, .md, .jsonl and .ndjson are read, in folders below it too, in the order of their
    paths. Raises OptionError for what is not UTF-8, not such JSON, or holds no text; OSError as it is.
    """
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.suffix in {*_PLAIN, *_LINES} and f.is_file()]
        if not files:
            raise OptionError(f"{path}: a folder without a text ({', '.join((*_PLAIN, *_LINES))})")
        text = "\n\n".join(_text_of(file) for file in files)
    else:
        text = _text_of(path)
    if not text.strip():
        raise OptionError(f"{path}: the calibration text is empty")
    return text


def _text_of(file: Path) -> str:
    text = stand_ins.read_text(file)
    return "\n\n".join(_fields(file, text)) if file.suffix in _LINES else text


def text_digest(options: CalibrationOptions) -> str:
    """SHA-256 of the text that these options choose."""
    return hashlib.sha256(_text(options).encode()).hexdigest()


def sample_start(tokenizer: Any, options: CalibrationOptions) -> list[int]:
    """Ids that every sample begins with: what the tokenizer puts before a text."""
    return [] if options.no_bos else leading_tokens(tokenizer, _text(options))


def _text(options: CalibrationOptions) -> str:
    return default_text() if options.text is None else read_text(options.text)


def _fields(path: Path, lines: str) -> Iterator[str]:
    # Not splitlines: a string in JSON may hold other ends of lines (U+2028) as they are.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise OptionError(f"{path}: line {number} is not JSON") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise OptionError(f'{path}: line {number} has no "text" field')
        yield entry["text"]


def choose_samples(tokenizer: Any, options: CalibrationOptions, longest: int | None) -> torch.Tensor:
    """Token ids [samples, tokens]: windows of the text, chosen by the seed, apart where it is long enough.

    Each begins with what the tokenizer puts before a text, as part of its tokens. `longest` is the model's own limit
    of tokens. Raises OptionError for a text shorter than one sample, SpqError for a tokenizer that cannot cut it.
    """
    what = "the package's text" if options.text is None else str(options.text)
    before = sample_start(tokenizer, options)
    seq_len = (options.seq_len if longest is None else min(options.seq_len, longest)) - len(before)
    if seq_len < 1:
        raise OptionError(f"a sample needs more than the {len(before)} tokens that every text begins with")
    ids = np.asarray(encode(tokenizer, _text(options), "calibration text"), np.int64)
    if ids.size < seq_len:
        raise OptionError(f"{what}: the calibration text has {ids.size} tokens, a sample needs {seq_len}")
    generator = np.random.default_rng(options.seed)
    windows = ids.size // seq_len
    if windows >= options.samples:
        spare = ids.size - windows * seq_len
        chosen = np.sort(generator.choice(windows, options.samples, replace=False))
        starts = chosen * seq_len + int(generator.integers(0, spare + 1))
    else:
        starts = np.sort(generator.integers(0, ids.size - seq_len + 1, options.samples))
    samples = [np.concatenate([before, ids[start : start + seq_len]]) for start in starts.tolist()]
    return torch.from_numpy(np.stack(samples).astype(np.int64))
