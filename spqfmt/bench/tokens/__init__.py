"""Run rows: tokens a second and peak memory of a model, each configuration in a process of its own."""
