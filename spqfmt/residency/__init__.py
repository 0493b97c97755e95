"""Where a model's weights live while it runs: parts of tensors, the plan under a ceiling, the rates it is made from.

Nothing here imports torch: `spqfmt plan` answers from a file's index alone.
"""
