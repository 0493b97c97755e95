"""The generator of spec/vectors: a writer of .spq files of its own, apart from the package and from its encoder."""
