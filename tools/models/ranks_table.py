"""What ranks read of a file, stored with --ranks and without: the table of docs/tensor-parallel.md.

python tools/models/ranks_table.py FOLDER [--docs docs/tensor-parallel.md]

Makes a model of random weights in FOLDER, packs it in several ways, and loads each file in one, two and four processes.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from torch import distributed, multiprocessing

import spqfmt

BEGIN, END = "<!-- table: ranks -->", "<!-- end -->"
WAYS: dict[str, dict[str, Any]] = {
    "lossless, decoded": {},
    "rtn 8 bits, packed": {"method": "rtn", "bits": 8},
    "rtn 4 bits, packed": {"method": "rtn", "bits": 4, "group_size": 128},
}
SIZES = (1, 2, 4)


def make(folder: Path) -> Path:
    """A Llama of 50 million weights, of whose matrices most have several chunks."""
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    with tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder / "source")
    return folder / "source"


def rank_of(rank: int, size: int, port: int, path: Path, packed: bool, told: Any) -> None:
    """Load as one of several ranks, and tell what was read and is held."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    model, _ = spqfmt.load_model(path, packed=packed, tp_plan="auto")
    told.put(model.loaded_by_ranks.n_read_bytes if size > 1 else n_tensor_bytes(path))
    if size > 1:
        distributed.destroy_process_group()


def n_tensor_bytes(path: Path) -> int:
    """Bytes of all tensors, which one process reads."""
    with spqfmt.open(path) as opened:
        records = [record for reader in opened.model.readers for record in reader.index.tensors]
        return sum(stream.stored_bytes for record in records for stream in record.streams)


def read_by(size: int, path: Path, *, packed: bool) -> int:
    """The most that one of so many ranks reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    children = [
        context.Process(target=rank_of, args=(rank, size, port, path, packed, told)) for rank in range(size)
    ]
    for child in children:
        child.start()
    found = [told.get() for _ in children]
    for child in children:
        child.join()
    return int(max(found))


def rows(folder: Path) -> list[str]:
    """The lines of the table."""
    source = make(folder)
    head = [f"{size} {'process' if size == 1 else 'ranks'}" for size in SIZES]
    lines = ["| file | stored | " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(head)]
    for name, options in WAYS.items():
        for stored, ranks in (("as always", None), ("`--ranks 4`", 4)):
            path = folder / "model.spq"
            spqfmt.pack(source, path, ranks=ranks, force=True, **options)
            found = [read_by(size, path, packed=name.endswith("packed")) for size in SIZES]
            cells = [f"{n / 1e6:.1f} MB ({n / found[0]:.0%})" for n in found]
            lines.append(f"| {name} | {stored} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Write the table, into the page where one is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    table = "\n".join(rows(options.folder))
    print(table)
    if options.docs is not None:
        text = options.docs.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END, 1)[1]
        options.docs.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
