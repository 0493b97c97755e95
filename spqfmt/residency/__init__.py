"""Where a model's weights live while it runs: parts of tensors, the plan under a ceiling, the rates it is made from.

Nothing here imports torch, nor reads weights. Which tensors a model packs only its class can tell, so that
`spqfmt plan` builds one without weights, unless the model is a plain decoder (spec/decisions/0030); pages estimate from
the index alone.
"""
