"""Plain torch twins of the Triton kernels, one file for each. They run on any device and allocate as they please."""
