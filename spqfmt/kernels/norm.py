"""Root-mean-square norms of activations, natively."""

from spqfmt.kernels import _native

root_mean_square = _native.root_mean_square
"""(x_address, type, n_tokens, n_columns, weight_address, epsilon, offset, rounds_first, y_address, n_threads):
y = (offset + weight) * x / sqrt(mean(x^2) + epsilon), x and y [n_tokens, n_columns], weight [n_columns].

All are of one float type, a number of FLOATS. In float32, rounded once; with `rounds_first` the quotient is rounded
before it is multiplied, too. The same bits on every machine, for any number of threads. Nobody checks the addresses."""
