"""Methods: how a float model becomes a scheme's parameters, one file each. Free to change."""
