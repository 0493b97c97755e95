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

TokenLayer = _native.TokenLayer
"""(norms, norms_heads, products, gate, n_heads, n_shared, key_size, value_size, scale, rotary): a decoder's layer.

h = x + after_attention(o(attend(q, k, v of before_attention(x)))), y = h + after_network(down(f(gate) * up of
before_network(h))). `norms`: those four, then of q and of k, (weight's address, epsilon, offset, rounds_first) as
root_mean_square has them, or None. `products`: those of q, k and v, of o, of gate and up, of down, each (the native
CodeMatrices, which it keeps, address and type of each matrix's bias one after the other, rounds). ValueError: they do
not fit together."""

step_layers = _native.step_layers
"""(layers, x, type, n_texts, cos, sin, caches, copies, outputs, n_threads): layers one after the other.

x [texts, hidden] is one token of each text, cos and sin are [texts, rotary]. `caches`: (keys, values, room, n_tokens)
of each layer, keys and values [texts, heads, room, size], of which n_tokens < room are there: the next one is written.
`outputs` are addresses of what each layer gives, [texts, hidden]; `copies` [layers, texts, hidden] has all of it, too.
The same bits as by the functions above, one by one."""

same_bytes = _native.same_bytes
"""(a, b, n): whether n bytes are the same."""

Unchanged = _native.Unchanged
"""(same, empty, kinds, tensors): whether things of Python are as they were, for who asks at each token.

`same`: (dict, key, its value), None too for a key that is not there; `empty`: (dict, key) of values without items;
`kinds`: (object, its class); `tensors`: (tensor, its data_ptr()). `is_so()` says whether all of it is so."""
