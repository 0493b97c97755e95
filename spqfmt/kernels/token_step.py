"""What a decoder's layer does between its products for one token of each text, natively.

Nobody checks the addresses."""

from typing import Final

from spqfmt.kernels import _native

MOST_OF_HEAD: Final = 512
"""The most numbers of a head that `attend` takes."""

SILU, GELU_TANH = 0, 1
"""Forms of a gate: x sigmoid(x), and the GELU by the hyperbolic tangent."""

attend = _native.attend
"""(q, type, keys, their steps, values, their steps, n_texts, n_heads, n_shared, n_tokens, key_size, value_size, scale,
y, n_threads): y = softmax(scale * q K^T) V.

q [texts, heads * shared, key_size] and y [texts, heads * shared, value_size] without gaps, keys [texts, heads, tokens,
key_size] and values [texts, heads, tokens, value_size] with steps of text, head and token in numbers. All are of one
float type, a number of FLOATS. In float32, rounded once. The same bits on every machine, for any number of threads."""

rotate = _native.rotate
"""(x, type, n_tokens, n_heads, size, cos, sin, rotary): rotary positions in halves.

x [tokens, heads, size] in place, cos and sin [tokens, rotary]. Each product and each sum is rounded."""

gate_values = _native.gate_values
"""(gate, up, type, form, n): gate = f(gate) * up in place, f's result rounded to the type before."""
