"""Arrays in which quantizers keep codes and scales, taken together to the weights that they stand for."""
