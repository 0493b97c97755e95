"""Kernels in CUDA C++, shipped as PTX that NVIDIA's driver compiles: products straight from compressed blocks."""
