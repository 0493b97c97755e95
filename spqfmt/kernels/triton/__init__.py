"""The device kernels in Triton: one file for each, and their launches."""
