"""The parts of the reference decoder; read them in the order of spec/reference_decoder.py."""
