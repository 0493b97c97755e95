"""The way back: tensors and assets to the folder layouts that other programs read."""

from spqfmt.exporters.huggingface import ExportTensor, export_huggingface

__all__ = ["ExportTensor", "export_huggingface"]
