"""Keys of a file's metadata (FORMAT.md 3) that several folders know."""

FACT_PREFIX = "safetensors:"
"""Prefix of keys of a file's metadata: what the source's safetensors headers say of the model (licence, base model)."""
NO_MODEL = "no_model"
"""Key of a file's metadata: why no model is loaded of it."""
