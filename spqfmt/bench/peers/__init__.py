"""The coders that ours is measured beside, one file each: `make(element_bytes, threads)` gives its contenders."""
