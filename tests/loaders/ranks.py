"""A script of test_ranks.py: processes that share a model, forked of one that has imported what takes long.

python ranks.py FOLDER: files in the folder, loaded by one process, by two and by four; JSON of what each has found.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers
from torch import distributed, multiprocessing
from transformers.models.llama import modeling_llama  # noqa: F401  # once for all
from transformers.models.mixtral import modeling_mixtral  # noqa: F401

import spqfmt
import spqfmt.loaders.model
from spqfmt.errors import MemoryBudgetError
from spqfmt.loaders.packed.modules import Packed

folder = Path(sys.argv[1])
INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(12)]])
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def make(name: str, config: Any) -> Path:
    """A folder of a small model whose weights are far from zero, biases too."""
    torch.manual_seed(5)
    with tiny.quiet():
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data = 1 + 0.1 * torch.randn_like(parameter)
        model.bfloat16().save_pretrained(folder / name)
    return folder / name


def llama(**more: Any) -> Any:
    known = tiny._LLAMA | HEADS | {"initializer_range": 0.2, "tie_word_embeddings": True} | more
    return transformers.LlamaConfig(attention_bias=True, mlp_bias=True, **known)


def prepare() -> None:
    source = make("llama", llama(intermediate_size=192))
    spqfmt.pack(source, folder / "lossless.spq", ranks=4)
    spqfmt.pack(source, folder / "rtn8.spq", method="rtn", bits=8)
    spqfmt.repack(folder / "rtn8.spq", folder / "shared8.spq", ranks=4)
    spqfmt.pack(source, folder / "rtn4.spq", method="rtn", bits=4, group_size=16)
    spqfmt.unpack(folder / "rtn4.spq", folder / "packed", keep_packed=True)
    jsq: dict[str, Any] = {"method": "jsq", "samples": 2, "seq_len": 32, "calibration": folder / "text"}
    (folder / "text").write_text("One, two, three, four, five, six, seven. " * 20)
    tiny.byte_tokenizer().save_pretrained(source)
    spqfmt.pack(source, folder / "jsq.spq", **jsq)
    damaged = bytearray((folder / "lossless.spq").read_bytes())
    with spqfmt.open(folder / "lossless.spq") as opened:
        record = opened.model.readers[0].index.by_name["model.layers.1.mlp.down_proj.weight"]
        damaged[record.streams[0].chunks[-1].planes[0].offset] ^= 1
    (folder / "damaged.spq").write_bytes(damaged)
    config = transformers.MixtralConfig(
        **tiny._LLAMA | {"initializer_range": 0.2}, num_local_experts=4, num_experts_per_tok=2
    )
    spqfmt.pack(make("mixtral", config), folder / "mixtral.spq", method="rtn", bits=8)
    spqfmt.pack(make("odd", llama(num_key_value_heads=1)), folder / "odd.spq")
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=264)
    spqfmt.pack(make("gpt2", gpt2), folder / "gpt2.spq")


def tokens(model: Any) -> list[int]:
    made = model.generate(INPUTS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    found: list[int] = made[0, INPUTS.shape[1] :].tolist()
    return found


def found_by(model: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"tokens": tokens(model)}
    loaded = getattr(model, "loaded_by_ranks", None)
    if loaded is not None:
        told |= {"read": loaded.n_read_bytes, "of": loaded.n_file_bytes, "whole": dict(loaded.whole)}
    weights = getattr(model, "packed_weights", None)
    if weights is not None:
        told |= {"parts": weights.n_read_bytes, "held": weights.held_bytes}
        told["modules"] = sum(isinstance(module, Packed) for module in model.modules())
        weights.close()
    told["numbers"] = model.num_parameters()
    return told


def load(name: str, **options: Any) -> dict[str, Any]:
    model, _ = spqfmt.load_model(folder / name, dtype="float32", tp_plan="auto", **options)
    return found_by(model)


def under_the_smallest_ceiling() -> dict[str, Any]:
    try:
        return load("shared8.spq", memory=1)
    except MemoryBudgetError as error:
        smallest = error.smallest_bytes
    return load("shared8.spq", memory=smallest) | {"ceiling": smallest}


def by_transformers(**options: Any) -> dict[str, Any]:
    with tiny.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "packed", dtype=torch.float32, tp_plan="auto", **options
        )
    return found_by(model)


def with_gradients() -> dict[str, Any]:
    model, _ = spqfmt.load_model(folder / "shared8.spq", dtype="float32", tp_plan="auto", packed=True)
    x = model.get_input_embeddings()(INPUTS).detach().requires_grad_()
    model(inputs_embeds=x, labels=INPUTS).loss.backward()
    return {"gradient": x.grad[0, :, 0].tolist()}


def dies() -> dict[str, Any]:
    if distributed.is_initialized() and distributed.get_rank() == 1:
        os._exit(7)
    return load("rtn8.spq")


WORK: dict[str, Callable[[], dict[str, Any]]] = {
    "lossless": lambda: load("lossless.spq"),
    "rtn8 packed": lambda: load("rtn8.spq", packed=True),
    "shared8": lambda: load("shared8.spq"),
    "shared8 packed": lambda: load("shared8.spq", packed=True),
    "shared8 at its smallest": under_the_smallest_ceiling,
    "from_pretrained": by_transformers,
    "from_pretrained packed": lambda: by_transformers(packed=True),
    "mixtral packed": lambda: load("mixtral.spq", packed=True),
    "gradients": with_gradients,
    "jsq": lambda: load("jsq.spq"),
    "jsq packed": lambda: load("jsq.spq", packed=True),
    "int8 inputs": lambda: load("shared8.spq", packed=True, activations="int8"),
}
REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "heads": lambda: load("odd.spq", packed=True),
    "no plan": lambda: load("gpt2.spq"),
    "damaged": lambda: load("damaged.spq"),
    "dies": dies,
}
OF_FOUR = ("lossless", "shared8 packed", "from_pretrained packed")


def rank_of(rank: int, size: int, port: int, names: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told: dict[str, Any] = {}
    for name in names:
        try:
            told[name] = (WORK | REFUSED)[name]()
        except Exception as error:  # noqa: BLE001  # what it is is what is asked
            told[name] = {"error": type(error).__name__, "words": str(error)}
        (folder / f"{size}.{rank}.json").write_text(json.dumps(told))
    # Without the goodbyes of a process group, of which one has died.
    os._exit(0)


def ranks(size: int, names: list[str]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=rank_of, args=(rank, size, port, names)) for rank in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()
    return [json.loads((folder / f"{size}.{rank}.json").read_text()) for rank in range(size)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare()
    alone = {name: work() for name, work in WORK.items()}
    every = {"1": [alone], "2": ranks(2, [*WORK, *REFUSED]), "4": ranks(4, list(OF_FOUR))}
    (folder / "found.json").write_text(json.dumps(every))
