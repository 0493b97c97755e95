"""Train a LoRA adapter on a packed model under a ceiling of memory, save it, and load it again.

python examples/lora.py MODEL.spq TEXT ADAPTER_FOLDER [--memory 300MiB] [--steps 30]

The weights stay packed: only the adapter is trained. It is an ordinary adapter of PEFT, for the source model too.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import spqfmt

TOKENS = 128
"""To a step."""


def main() -> None:
    """Train, save, load, and write how the loss went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("adapter")
    parser.add_argument("--memory")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    packed = {"memory": options.memory} if options.memory else {}

    base, tokenizer = spqfmt.load_model(options.model, **packed)
    text = Path(options.text).read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    batches = ids[: len(ids) // TOKENS * TOKENS].view(-1, 1, TOKENS)

    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    model.train()
    for step in range(options.steps):
        batch = batches[step % len(batches)]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f}")
    model.save_pretrained(options.adapter)

    base, _ = spqfmt.load_model(options.model, **packed)
    loaded = PeftModel.from_pretrained(base, options.adapter).eval()
    with torch.inference_mode():
        print(f"loaded again: loss {loaded(batches[0], labels=batches[0]).loss.item():.4f}")


if __name__ == "__main__":
    main()
