"""Run by test_ceiling: loads and generates under a hard limit of the system on this process's data (RLIMIT_DATA).

python ceiling_child.py MODEL WARM_UP_MODEL N_TOKENS CEILING...

The limit is what the process has after importing and running a model of as many layers with next to no weights, plus
the ceiling, plus what `plan` estimates for activations and KV cache.
One JSON line for each ceiling; at the end one for the whole model under the last limit.
"""

import json
import resource
import sys
from pathlib import Path

import torch

import spqfmt
from spqfmt.loaders.plan import plan_model

PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(16)]])


def private_bytes() -> int:
    """Private writable memory of this process: what RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])


def generate(path: str, n_tokens: int, **options: object) -> tuple[list[int], int]:
    """Tokens, and the bytes of weights that the engine counts."""
    model, _ = spqfmt.load_model(path, dtype="bfloat16", **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        ids = model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
        )
    held = model.packed_weights.held_bytes
    model.packed_weights.close()
    return ids[0].tolist(), held


def emit(result: dict[str, object]) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Command line."""
    torch.set_num_threads(1)
    path, warm_up, n_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for memory in (None, plan_model(warm_up).plan.smallest_bytes):
        generate(warm_up, 4, memory=memory, packed=None if memory else True)
    baseline = private_bytes()
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = 0
    for ceiling in map(int, sys.argv[4:]):
        planned = plan_model(path, memory=ceiling, dtype="bfloat16", n_tokens=n_tokens + PROMPT.shape[1])
        on_top = planned.on_top.kv_cache_bytes + planned.on_top.activation_bytes
        limit = baseline + ceiling + on_top
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        tokens, held = generate(path, n_tokens, memory=ceiling)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        residencies = sorted({part.residency for part in planned.plan.parts})
        emit({"ceiling": ceiling, "tokens": tokens, "held": held, "on_top": on_top, "in": residencies})
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        generate(path, n_tokens, packed=True)
        outcome = "fits"
    except (MemoryError, OSError, RuntimeError) as error:
        outcome = type(error).__name__
    emit({"whole": outcome})


if __name__ == "__main__":
    main()
