"""From a file to decoded memory: .spq beside other ways to keep the same weights."""
