"""Double Compression's model of a pass: weights are loaded, decoded and computed with (arXiv 2502.15443)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one pass takes. `load` and `decode` from sizes and the machine's rates, `compute` as measured.

    `decode` is that of all threads that decode side by side, `parts` the pieces that pass through the buffers.
    """

    load_ms: float
    decode_ms: float
    compute_ms: float
    parts: int

    @property
    def serial_ms(self) -> float:
        """Time of a pass that does one step after the other, nothing side by side."""
        return self.load_ms + self.decode_ms + self.compute_ms

    @property
    def overlapped_ms(self) -> float:
        """The longest of the three, after the first part was loaded and decoded."""
        filling = (self.load_ms + self.decode_ms) / self.parts if self.parts else 0.0
        return filling + max(self.load_ms, self.decode_ms, self.compute_ms)
