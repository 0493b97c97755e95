"""A file becomes another file with the same weights: other chunks compressed, other shards."""
