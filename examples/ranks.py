"""Continue a text with a model that several processes share, each with its part of every layer.

torchrun --nproc-per-node 2 examples/ranks.py MODEL.spq TEXT [--memory 300MiB] [--packed]
"""

import argparse

import torch

import spqfmt


def main() -> None:
    """Load, continue the text, and write what each rank has read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--memory", help="of each rank")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    packed = {"memory": options.memory} if options.memory else {"packed": options.packed}

    model, tokenizer = spqfmt.load_model(options.model, tp_plan="auto", **packed)
    ids = tokenizer(options.text, return_tensors="pt").input_ids
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=options.tokens, do_sample=False)

    ranks = getattr(model, "loaded_by_ranks", None)
    if ranks is None:
        print(f"one process: {tokenizer.decode(made[0])!r}")
    else:
        # One write for each line: ranks share the terminal.
        print(
            f"rank {ranks.rank} of {ranks.size}: read {ranks.n_read_bytes} of {ranks.n_file_bytes} bytes, "
            f"{len(ranks.whole)} tensors not as a part: {tokenizer.decode(made[0])!r}\n",
            end="",
            flush=True,
        )
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
