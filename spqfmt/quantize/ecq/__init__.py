"""Entropy-coded quantization."""

from spqfmt.quantize.ecq.method import Ecq

METHOD = Ecq()
