"""What is known of a transformers model: config, class, small files, layers that may be packed, treated inputs."""
