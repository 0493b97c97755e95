"""A source model becomes a file: options, plan, methods, chunks."""
