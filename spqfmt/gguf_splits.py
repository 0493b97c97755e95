"""How byte-level vocabularies split text before merging, by the names of `tokenizer.ggml.pre`."""

from tokenizers import Regex, pre_tokenizers

# Splits as the models' own tokenizer.json files state them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split_by(pattern: str) -> pre_tokenizers.Sequence:
    """What cuts text where a pattern says, then makes bytes of it."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), _BYTE_LEVEL])


_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2_SPLIT])
PRE_TOKENIZERS = {
    "gpt-2": _GPT2_SPLIT,
    "olmo": _GPT2_SPLIT,
    "mpt": _GPT2_SPLIT,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": split_by(_LLAMA3),
    "smaug-bpe": split_by(_LLAMA3),
    "falcon3": split_by(_LLAMA3),
    "tekken": split_by(_TEKKEN),
    "qwen2": split_by(_QWEN2),
    "stablelm2": split_by(_QWEN2),
    "deepseek-r1-qwen": split_by(_QWEN2),
}
# These vocabularies hold whole words that their merges cannot reach.
IGNORE_MERGES = frozenset({"llama-bpe", "falcon3", "tekken"})
# Files from before `tokenizer.ggml.pre`: these architectures only ever had one way.
DEFAULT_PRE = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen2moe": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2"}
