"""What this machine does: codec rates beside other coders, and load rates beside other files.

Everything is measured in one process, in interleaved rounds: noise of the machine then falls on all alike.
"""
