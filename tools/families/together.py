"""Which small causal models of transformers' families `spqfmt serve` answers several requests of at once.

    python tools/families/together.py

One line for each class: yes, no, or why it was not built; and how many at the end. Takes some minutes.
"""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import torch
import transformers
from probe import build
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from spqfmt.loaders.together import can_step_together

_MOST_SECONDS = 60


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    signal.signal(signal.SIGALRM, _late)
    found: Counter[str] = Counter()
    for family, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        verdict = _verdict(name)
        found[verdict.partition(":")[0]] += 1
        print(f"{family}: {verdict}", flush=True)
    print(", ".join(f"{verdict} {n}" for verdict, n in found.most_common()))


def _verdict(name: str) -> str:
    signal.alarm(_MOST_SECONDS)
    try:
        model = build(getattr(transformers, name), torch.float32)
        return "yes" if can_step_together(model) else "no"
    except Exception as error:  # noqa: BLE001  # a class may raise anything
        return f"not built: {' '.join(str(error).split())[:80]}"
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"more than {_MOST_SECONDS} s")


if __name__ == "__main__":
    main()
