"""From a file to a running model: load, generate, evaluate. The layer that ties torch modules to stored weights."""

from spqfmt.calibration.tokens import check_ids, described, leading_tokens
from spqfmt.loaders.answering import Generation
from spqfmt.loaders.choice import computes_in
from spqfmt.loaders.evaluate import Evaluation, encode_text, evaluate, window_limit
from spqfmt.loaders.generate import Messages, encode_prompt, generate
from spqfmt.loaders.model import load_model, need_language_model, need_tokenizer
from spqfmt.loaders.sampling import Sampling

__all__ = [
    "Evaluation",
    "Generation",
    "Messages",
    "Sampling",
    "check_ids",
    "computes_in",
    "described",
    "encode_prompt",
    "encode_text",
    "evaluate",
    "generate",
    "leading_tokens",
    "load_model",
    "need_language_model",
    "need_tokenizer",
    "window_limit",
]
