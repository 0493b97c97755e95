"""What errors in the rows of embedding and head cost: the two layers that stand outside the blocks.

A row of the head makes one logit of all states behind the last block. The curvature of the KL divergence by a logit is
p (1 - p), p its probability. A row of the embedding is what a token becomes; how often it is looked up is taken from
what the model itself predicts, which is smoother than counts of a few thousand tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from spqfmt.quantize.statistics import Hessian

_ROWS = 128
"""Rows of logits that become probabilities at once: 128 rows of a vocabulary of 128,000 take 64 MiB."""


class Ends:
    """Sums over tokens of what goes into embedding and head of a transformers model, and of what comes back."""

    def __init__(self, model: Any) -> None:
        self._embedding = self._head = None
        with suppress(NotImplementedError, AttributeError):
            self._embedding = model.get_input_embeddings()
        with suppress(NotImplementedError, AttributeError):
            self._head = model.get_output_embeddings()
        names = {module: name for name, module in model.named_modules()}
        self.embedding_name = _weight_of(names, self._embedding)
        """The parameter's name; empty without one."""
        self.head_name = _weight_of(names, self._head)
        self.is_tied = self.head_name in getattr(model, "all_tied_weights_keys", ())
        self.states: Hessian | None = None
        """The Hessian of what the head reads."""
        self.gradients: Hessian | None = None
        """The Hessian of gradients by what the embedding gives, where they were computed."""
        self._probabilities: torch.Tensor | None = None
        self._curvatures: torch.Tensor | None = None
        self._n_tokens = 0
        self._n_scored = 0
        self._head_squares = 0.0
        self._looked_up: list[torch.Tensor] = []
        self._alike, self._squares = 0.0, 0.0

    @contextmanager
    def watching_embedding(self) -> Iterator[None]:
        """While the context lasts, rows that the model looks up are kept."""
        with ExitStack() as stack:
            if self._embedding is not None:
                stack.callback(self._embedding.register_forward_hook(self._see_rows).remove)
            yield

    @contextmanager
    def watching_head(self) -> Iterator[None]:
        """While the context lasts, what goes into the head is summed, and what gradients come back."""
        with ExitStack() as stack:
            if self._head is not None:
                for hook in (
                    self._head.register_forward_pre_hook(self._see_states),
                    self._head.register_forward_hook(self._see_gradients),
                ):
                    stack.callback(hook.remove)
            yield

    def add_logits(self, logits: torch.Tensor) -> None:
        """Add what the model predicts for some tokens, [..., vocabulary]."""
        flat = logits.detach().reshape(-1, logits.shape[-1])
        if self._probabilities is None or self._curvatures is None:
            self._probabilities = torch.zeros(flat.shape[1], dtype=torch.float64)
            self._curvatures = torch.zeros(flat.shape[1], dtype=torch.float64)
        self._n_tokens += len(flat)
        for rows in torch.split(flat, _ROWS):
            p = rows.float().softmax(-1)
            self._probabilities += p.sum(0).double().cpu()
            self._curvatures += (p - p.square()).sum(0).double().cpu()

    def add_gradients(self, hidden: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Add hidden states before the first block, [..., columns] each, and gradients by them.

        They belong to the batches that the model was run on first while it was watched, in that order.
        """
        for gradient in gradients:
            self.gradients = self.gradients or Hessian(gradient.shape[-1])
            self.gradients.add(gradient)
        for found, states in zip(self._looked_up, hidden, strict=False):
            if found.shape == states.shape:
                self._alike += float((found.double() * states.double()).sum())
                self._squares += float(found.double().square().sum())

    @property
    def looked_up(self) -> torch.Tensor | None:
        """Share of the tokens that is this row's, by prediction; float64 [rows]."""
        return None if self._probabilities is None else self._probabilities / self._n_tokens

    @property
    def curvatures(self) -> torch.Tensor | None:
        """Curvature of the KL divergence by what each row of the head gives; float64 [rows].

        Where gradients were computed, with what the model does to the logits behind the head: it may scale them.
        """
        if self._curvatures is None:
            return None
        behind = 1.0
        if self._n_scored and float(self._curvatures.sum()) > 0:
            behind = self._head_squares / float(self._curvatures.sum())
        return behind * self._curvatures / self._n_tokens

    @property
    def scale(self) -> float:
        """The factor by which the model multiplies what it has looked up, before the first block."""
        return self._alike / self._squares if self._squares and self._alike > 0 else 1.0

    def _see_rows(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Not what the module gives: a Gemma's multiplies its rows already.
        rows = torch.nn.functional.embedding(args[0], module.weight) if args else output
        self._looked_up.append(rows.detach())

    def _see_states(self, _: object, args: tuple[torch.Tensor, ...]) -> None:
        self.states = self.states or Hessian(args[0].shape[-1])
        self.states.add(args[0].detach())

    def _see_gradients(self, _: object, __: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._add_squares)  # type: ignore[no-untyped-call]

    def _add_squares(self, gradient: torch.Tensor) -> None:
        self._n_scored += gradient.numel() // gradient.shape[-1]
        self._head_squares += float(gradient.float().square().sum(dtype=torch.float64))


def _weight_of(names: dict[torch.nn.Module, str], module: torch.nn.Module | None) -> str:
    return f"{names[module]}.weight" if module in names else ""
