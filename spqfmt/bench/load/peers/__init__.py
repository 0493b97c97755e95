"""Other files that hold the same weights: `make(payload, folder, threads)` writes one and gives its loaders."""
