"""Codecs: bytes to bytes, one file each (FORMAT.md section 4); and elements to chunks."""
