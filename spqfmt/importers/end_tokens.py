"""Tokens that end what a model says, known by their text.

A model may end a turn by another token than the end of a document, and many files name only the latter. These texts
are the ends that llama.cpp knows, and those of Llama 4; a vocabulary that has one of them as a token of its own means
it as an end.
"""

from __future__ import annotations

from collections.abc import Mapping

KNOWN_ENDS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eot|>",
        "<|eom|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<end_of_utterance>",
        "</s>",
        "<eos>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
    }
)


def known_ends(tokens: Mapping[str, int]) -> list[int]:
    """Ids of the known ends among `tokens`, special tokens by text, in ascending order.

    Where a vocabulary has finer ends for the same purpose, the coarse one separates parts of an answer: <|end|> beside
    <|call|> and <|return|>, </s> beside <|tool_response>.
    """
    found = KNOWN_ENDS & tokens.keys()
    if found & {"<|call|>", "<|calls|>"} and found & {"<|return|>", "<|flush|>"}:
        found -= {"<|end|>"}
    if "<|tool_response>" in found:
        found -= {"</s>"}
    return sorted(tokens[text] for text in found)
