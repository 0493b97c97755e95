"""Does a model stay under its ceilings? Runs it under a hard limit of the operating system, and compares the tokens.

python tools/bench/ceilings.py MODEL.spq [--tokens 64] [--shares 1.1,0.75,0.5,0.25] [--json]

A ceiling is a share of the decoded weights. They are tried in a process whose private writable memory the system
limits (RLIMIT_DATA) to what it has after importing everything, reading the tokenizer and running a model of as many
layers (and experts) with next to no weights, plus the ceiling, plus what `spqfmt plan` states for activations and KV
cache: one page more and it fails. At the end the whole model is tried, all decoded, under the lowest limit: it must not
fit where that is less than the decoded weights, else the limit would be worth nothing. Exit code 1 where anything is
not as it should.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import mixture
import tiny
import torch
import transformers

import spqfmt
from spqfmt.loaders.plan import ModelPlan, plan_model
from spqfmt.models.assets import asset_folder
from spqfmt.reading.report.experts import experts_in

N_PROMPT = 16
PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(N_PROMPT)]])


def private_bytes() -> int:
    """Private writable memory of this process: what RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])


def limit(n_bytes: int) -> None:
    """Private writable memory is at most so much from now on; -1 for no limit."""
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def generate(path: Path, n_tokens: int, **options: Any) -> tuple[list[int], int, set[str]]:
    """Tokens, the bytes of weights that the engine counts, and the residencies of its parts."""
    model, _ = spqfmt.load_model(path, dtype="bfloat16", **options)
    with torch.inference_mode():
        ids = model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    engine = model.packed_weights
    held: int = engine.held_bytes + sum(parameter.nbytes for parameter in model.parameters())
    engine.close()
    return ids[0].tolist(), held, {part.residency for part in engine.plan.parts}


def plan(path: Path, n_tokens: int, ceiling: int | None) -> ModelPlan:
    """Make the plan that `spqfmt plan` shows."""
    return plan_model(path, memory=ceiling, dtype="bfloat16", n_tokens=n_tokens + N_PROMPT)


def warm_up(n_layers: int, n_experts: int, folder: Path) -> None:
    """Run a model of `n_layers` with next to no weights, packed and from disk: what all models need is there then.

    `n_experts` of each layer; 0 for a model without. Python's objects for a matrix take some 12 kB.
    """
    path = folder / "m.spq"
    if n_experts:
        mixture.build(folder / "source", {**mixture.TINY, "num_experts": n_experts}, n_layers)
        spqfmt.pack(folder / "source", path, method="rtn")
    else:
        _pack_llama(n_layers, folder, path)
    generate(path, 4, packed=True)
    generate(path, 4, memory=plan_model(path).plan.smallest_bytes)
    gc.collect()


def _pack_llama(n_layers: int, folder: Path, path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": n_layers}
    config = transformers.LlamaConfig(**{**tiny._LLAMA, **sizes}, tie_word_embeddings=True)
    with tiny.quiet():
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    spqfmt.pack(folder, path, method="rtn")


def child(path: Path, n_tokens: int, ceilings: Sequence[int]) -> dict[str, Any]:
    """All ceilings, and the whole model under the limit of the last one, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        warm_up(layers_of(path), experts_of(path), Path(folder))
    # A tokenizer is no weights: one stands in the baseline, and makes room for the one that loading brings.
    stand_in = [tokenizer_of(path)]
    baseline = private_bytes()
    runs, allowed = [], 0
    for ceiling in ceilings:
        planned = plan(path, n_tokens, ceiling)
        on_top = planned.on_top.kv_cache_bytes + planned.on_top.activation_bytes
        allowed = ceiling + on_top
        limit(baseline + allowed)
        stand_in.clear()
        gc.collect()
        started = time.perf_counter()
        tokens, held, residencies = generate(path, n_tokens, memory=ceiling)
        limit(-1)
        gc.collect()  # a model refers to itself: its memory is free for the next one when it is collected
        runs.append(
            {
                "ceiling": ceiling,
                "held": held,
                "on_top": on_top,
                "in": sorted(residencies),
                "seconds": time.perf_counter() - started,
                "tokens": tokens,
            }
        )
    if allowed >= planned.plan.decoded_bytes:
        return {"runs": runs, "whole_fits": None}
    limit(baseline + allowed)
    try:
        generate(path, 1, packed=True)
    except (MemoryError, OSError, RuntimeError):
        return {"runs": runs, "whole_fits": False}
    return {"runs": runs, "whole_fits": True}


def tokenizer_of(path: Path) -> Any:
    """The tokenizer in a file, None where there is none."""
    with spqfmt.open(path) as file, asset_folder(file.assets) as folder:
        if "tokenizer.json" not in file.assets:
            return None
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def layers_of(path: Path) -> int:
    """Decoder layers of the model in a file."""
    with spqfmt.open(path) as file:
        config = json.loads(bytes(file.assets["config.json"]))
    return int(config.get("num_hidden_layers") or config.get("n_layer") or 1)


def experts_of(path: Path) -> int:
    """Experts of a layer of the model in a file; 0 where it has none."""
    found = experts_in(spqfmt.inspect(path).tensors)
    return 0 if found is None else found.n_experts


def in_child(path: Path, n_tokens: int, ceilings: Sequence[int]) -> dict[str, Any]:
    """`child` in a process of its own. SystemExit with its complaint where it fails."""
    listed = ",".join(map(str, ceilings))
    command = [sys.executable, __file__, str(path), "--tokens", str(n_tokens), "--child", listed]
    # Heaps of each thread and the system's own threads are no weights: as few as can be.
    quiet = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | quiet)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--shares", default="1.1,0.75,0.5,0.25")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path, n_tokens = arguments.file, arguments.tokens
    if arguments.child:
        print(json.dumps(child(path, n_tokens, [int(ceiling) for ceiling in arguments.child.split(",")])))
        return
    without = plan(path, n_tokens, None).plan
    shares = sorted(map(float, arguments.shares.split(",")), reverse=True)
    found = in_child(path, n_tokens, [int(share * without.decoded_bytes) for share in shares])
    runs, whole = found["runs"], found["whole_fits"]
    same = all(run["tokens"] == runs[0]["tokens"] for run in runs)
    under = all(run["held"] <= run["ceiling"] for run in runs)
    if arguments.json:
        sizes = {"decoded_bytes": without.decoded_bytes, "smallest_bytes": without.smallest_bytes}
        print(json.dumps(sizes | {"limit": "RLIMIT_DATA"} | found))
    else:
        print(f"decoded {without.decoded_bytes} bytes, smallest ceiling {without.smallest_bytes} bytes")
        for run in runs:
            print(
                f"under {run['ceiling']} bytes (RLIMIT_DATA, {run['on_top']} more for activations and cache): "
                f"{run['held']} held, {', '.join(run['in'])}; {n_tokens} tokens in {run['seconds']:.1f} s"
            )
        print("the same tokens at every ceiling" if same else "THE TOKENS DIFFER")
        if whole is not None:
            print(f"all decoded under the lowest limit: {'FITS' if whole else 'does not fit'}")
    if not (same and under) or whole:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
