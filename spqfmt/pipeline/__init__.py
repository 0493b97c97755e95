"""pack, unpack, verify and inspect: one-way streams of frozen records."""
