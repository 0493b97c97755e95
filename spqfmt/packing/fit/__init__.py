"""A wanted size becomes a step for each tensor: what is known of the file or memory, and what is spent."""
