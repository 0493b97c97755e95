"""Runs a source model one block at a time on sample texts, and lets a method quantize each block."""
