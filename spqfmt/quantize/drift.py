"""How far the inputs of layers have moved from those of the unquantized model, where both are run side by side."""

import torch


class Drift:
    """Sums over tokens of what a layer is to make up for, with x an input and r what the layer's output is added to.

    The quantized model has x^ and r^ in their place. A layer whose weights are W' adds W' x^ to r^; what it should give
    is W x + r.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self._inputs: torch.Tensor | None = None
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Add the inputs of some tokens without and with quantization, [..., columns] both."""
        x = _tokens(after)
        self.n_tokens += len(x)
        product = (_tokens(before) - x).t() @ x
        self._inputs = product if self._inputs is None else self._inputs.add_(product)

    def add_sum(self, module: str, before: torch.Tensor, after: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add what the output of `module` is added to, [..., rows], without and with quantization.

        `inputs` are those that `add` was given with quantization.
        """
        product = (_tokens(before) - _tokens(after)).t() @ _tokens(inputs)
        self._sums[module] = product if module not in self._sums else self._sums[module].add_(product)

    @property
    def inputs(self) -> torch.Tensor | None:
        """2/N sum (x - x^) x^^T, float32 [columns, columns] where the inputs are; None where nothing is known."""
        return self._scaled(self._inputs)

    def sums(self, module: str) -> torch.Tensor | None:
        """2/N sum (r - r^) x^^T, float32 [rows, columns]; None for a module whose output goes elsewhere first."""
        return self._scaled(self._sums.get(module))

    def _scaled(self, total: torch.Tensor | None) -> torch.Tensor | None:
        if total is None or not torch.isfinite(total).all():
            return None
        return total * (2 / self.n_tokens)


def _tokens(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1]).float()
