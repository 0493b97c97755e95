"""The plan of a whole model, and what comes on top of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spqfmt.residency.inventory import Inventory
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates

_FIXED_ACTIVATION_BYTES = 8 << 20


@dataclass(frozen=True)
class Activations:
    """Memory on top of a ceiling, estimated from above for `n_tokens` tokens in each of `batch` sequences.

    `kv_cache_bytes`: keys and values of all layers. `activation_bytes`: the widest layer's inputs and outputs while a
    prompt of that length is read, and the logits of one token.
    """

    n_tokens: int
    batch: int
    kv_cache_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class ModelPlan:
    """The plan, what it was made from, and what comes on top of it. `rates` are the host's.

    `changed`: names of layers that are not packed since their class changes them. `whole`: by name, why tensors are
    decoded whole that would be packed in another form.
    """

    plan: Plan
    inventory: Inventory
    rates: Rates
    on_top: Activations
    changed: tuple[str, ...]
    whole: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """The object that `spqfmt plan --json` prints."""
        return self.plan.to_json() | {
            "on_top": vars(self.on_top),
            "not_packed": list(self.changed),
            "decoded_whole": dict(self.whole),
        }


def activations(value: Callable[[str], object], itemsize: int, *, n_tokens: int, batch: int) -> Activations:
    """Estimate bytes from what a config has by transformers' common names, for a dtype of `itemsize` bytes."""

    def size(*names: str) -> int:
        found = (value(name) for name in names)
        return next((int(number) for number in found if isinstance(number, int)), 0)

    hidden = size("hidden_size")
    heads = size("num_attention_heads") or 1
    key_value = (size("num_key_value_heads") or heads) * (size("head_dim") or hidden // heads)
    tokens = n_tokens * batch
    # Of multi-head latent attention the vector is kept that keys and values of all heads are made of.
    latent = size("kv_lora_rank")
    of_token = latent + size("qk_rope_head_dim") if latent else 2 * key_value
    cache = size("num_hidden_layers") * of_token * tokens * itemsize
    wide = 3 * size("intermediate_size", "ffn_dim", "n_inner") or 12 * hidden
    # float32 copies stand beside what is computed in the model's dtype.
    per_token = (6 * hidden + wide) * (itemsize + 4)
    logits = 3 * 4 * size("vocab_size") * batch
    # The cache grows by being copied: once more its last layer, and the allocator's reserve. Or it has room for some
    # tens of tokens, while the activations of a prompt, which count here, are gone.
    return Activations(n_tokens, batch, cache, tokens * per_token + logits + _FIXED_ACTIVATION_BYTES)
