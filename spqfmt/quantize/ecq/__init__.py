"""Entropy-coded quantization: grid, sweep, allocation and budget of method ecq."""

from spqfmt.quantize.ecq.method import Ecq

METHOD = Ecq()
