"""How much each output of a layer matters to the model: gradients, block by block from the last to the first.

The loss is the model's own: a token is drawn from what the float model predicts, and its negative log-likelihood is
differentiated. The mean square gradient is then the diagonal of the Fisher matrix, which is the curvature of the KL
divergence that quantization is judged by; labels from a text would add what the model does not know of it.
Memory holds one block's weights, one batch's activations, and the samples' hidden states before every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext

import torch

from spqfmt.calibration.blocks import Blocks, Call, record_calls
from spqfmt.calibration.ends import Ends
from spqfmt.calibration.model import ModelShell, running_errors

Taker = Callable[[torch.Tensor], None]

_HEAD_TOKENS = 128
"""Tokens of which the head computes at once where nothing else is asked of it."""


class OutputGradients:
    """Gradients by the outputs of one module, over tokens.

    `most_rows`: how many outputs may be looked at together; where there are more, each is by itself.
    """

    def __init__(self, most_rows: int = 0) -> None:
        self.n_tokens = 0
        self._most_rows = most_rows
        self._sum: torch.Tensor | None = None
        self._products: torch.Tensor | None = None

    def add(self, gradient: torch.Tensor) -> None:
        """Add some tokens, [..., rows]."""
        g = gradient.reshape(-1, gradient.shape[-1])
        self.n_tokens += g.shape[0]
        total = g.double().cpu().square().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        if g.shape[1] <= self._most_rows:
            products = (g.float().t() @ g.float()).cpu()
            self._products = products if self._products is None else self._products.add_(products)

    @property
    def mean(self) -> torch.Tensor | None:
        """The mean of the squares, float64 [rows]; None when no token was seen."""
        return None if self._sum is None else self._sum / self.n_tokens

    @property
    def moments(self) -> torch.Tensor | None:
        """The mean of products, float32 [rows, rows]; None where there are too many outputs, or no token."""
        return None if self._products is None else self._products / self.n_tokens


def output_gradients(
    shell: ModelShell,
    samples: torch.Tensor,
    modules: Callable[[str], Sequence[str]],
    *,
    seed: int,
    ends: Ends | None = None,
    most_rows: int = 0,
    stage: Callable[[str], None] = lambda text: None,
) -> dict[str, OutputGradients]:
    """Gradients by the outputs of the modules, by the module's full name; those of `most_rows` outputs also together.

    `samples` are token ids, int64 [samples, tokens]; `modules` names those inside a block that are wanted. Blocks must
    be empty and are left so. A module that no token reached is left out. `ends` counts what embedding and head do.
    """
    batches = list(torch.split(samples, 1))
    with ends.watching_embedding() if ends is not None else nullcontext():
        blocks = record_calls(shell, batches)
    # The hidden states before every block are kept, so that the way back needs one block at a time.
    states = [list(blocks.hidden)]
    for number, name in enumerate(blocks.names):
        stage(f"{name}: forward for gradients")
        block = _filled(shell, name)
        with torch.no_grad():
            calls = blocks.calls[number]
            states.append([call.run(block, h) for call, h in zip(calls, states[-1], strict=True)])
        shell.empty(block)
    generator = torch.Generator().manual_seed(seed)
    after = [
        _loss_gradient(shell, blocks, b, hidden=h, generator=generator, ends=ends)
        for b, h in zip(batches, states.pop(), strict=True)
    ]
    found: dict[str, OutputGradients] = {}
    for number in reversed(range(len(blocks.names))):
        name = blocks.names[number]
        stage(f"{name}: gradients")
        block = _filled(shell, name)
        sums = {module: OutputGradients(most_rows) for module in modules(name)}
        before = states.pop()
        for i, call in enumerate(blocks.calls[number]):
            after[i] = _through_block(block, call, before[i], gradient=after[i], sums=sums)
        shell.empty(block)
        if ends is not None and not states:
            ends.add_gradients(before, after)
        found |= {f"{name}.{m}": s for m, s in sums.items() if s.n_tokens}
    return found


def watch_head(shell: ModelShell, samples: torch.Tensor, blocks: Blocks, ends: Ends) -> None:
    """Let `ends` see what the model makes of the hidden states of `blocks`, which are those behind the last block.

    `samples` are the token ids that the first of them belong to, int64 [samples, tokens].
    """
    states = [one for hidden in blocks.hidden for one in torch.split(hidden, 1)]
    for ids, hidden in zip(torch.split(samples, 1), states, strict=False):
        # What stands behind the blocks sees each token alone: so only few rows of logits exist at once.
        for some, of_them in zip(
            torch.split(ids, _HEAD_TOKENS, 1), torch.split(hidden, _HEAD_TOKENS, 1), strict=True
        ):
            with (
                torch.no_grad(),
                running_errors(shell.model),
                blocks.ended_by(shell.model, of_them),
                ends.watching_head(),
            ):
                ends.add_logits(shell.model(input_ids=some.to(shell.device), use_cache=False).logits)


def _filled(shell: ModelShell, name: str) -> torch.nn.Module:
    block: torch.nn.Module = shell.model.get_submodule(name)
    shell.fill(shell.tensors_of(name))
    return block


def _loss_gradient(
    shell: ModelShell,
    blocks: Blocks,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    generator: torch.Generator,
    ends: Ends | None,
) -> torch.Tensor:
    """Gradient of the summed loss by the hidden states after the last block."""
    states = hidden.detach().requires_grad_()
    with ExitStack() as stack:
        for context in (
            running_errors(shell.model),
            torch.enable_grad(),
            blocks.ended_by(shell.model, states),
        ):
            stack.enter_context(context)
        if ends is not None:
            stack.enter_context(ends.watching_head())
        logits = shell.model(input_ids=ids.to(shell.device), use_cache=False).logits.float()
        flat = logits.reshape(-1, logits.shape[-1])
        if ends is not None:
            ends.add_logits(flat)
        # The model's own next tokens, not the text's: then the mean square is the Fisher information.
        drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(flat, drawn.to(flat.device), reduction="sum")
        [gradient] = torch.autograd.grad(loss, states)
    return gradient


def _through_block(
    block: torch.nn.Module,
    call: Call,
    hidden: torch.Tensor,
    gradient: torch.Tensor,
    sums: dict[str, OutputGradients],
) -> torch.Tensor:
    """Gradient by the block's input; those of the modules' outputs are added to `sums`."""
    states = hidden.detach().requires_grad_()
    with torch.enable_grad(), ExitStack() as hooks:
        for name, total in sums.items():
            hook = block.get_submodule(name).register_forward_hook(_on_output(total.add))
            hooks.callback(hook.remove)
        output = call.run(block, states)
        [result] = torch.autograd.grad(output, states, gradient)
    return result


def _on_output(take: Taker) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
    def hook(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        output.register_hook(take)  # type: ignore[no-untyped-call]

    return hook
