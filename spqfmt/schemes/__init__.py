"""Schemes: weights <-> streams, one file each (FORMAT.md section 5). Normative."""
