"""How loaders compute from the tensors of each scheme: products and rows on the CPU, and forms on a device."""
