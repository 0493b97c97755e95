"""Processes that do one work together, started by torchrun: they find each other, tell what they have, end together.

They are numbered, and the first has number 0. One that fails says so to all; one that is killed closes its connections.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from spqfmt.errors import BackendError, EndedError, one_sentence

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
_STARTED = "TORCHELASTIC_RUN_ID"
"""The variable that torchrun alone sets: RANK and WORLD_SIZE are set by others, for programs that are not this one."""
_FAILED, _TOLD = "failed", "told"
_JOINING = timedelta(minutes=5)
_LONGEST = timedelta(days=30)
"""How long a process waits for the others at one place: the slowest may be at work for long."""
_LOOKS_UP_SECONDS = 0.1
_WAITS = "waits for another process"
"""What a thread is called while it is in the library."""


class Processes(Protocol):
    """What the processes of one work have of each other; process `number` of `size`."""

    number: int
    size: int

    def exchange(self, value: Any) -> list[Any]:
        """What all processes give here, by their numbers. Raises EndedError where one does not come any more."""
        ...

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Hand tensors to the next process, which receives as many. Raises EndedError where it has ended."""
        ...

    def receive(self, into: Sequence[torch.Tensor]) -> None:
        """Fill tensors, contiguous and on the host, with those that the process before has sent.

        Raises EndedError where it has ended.
        """
        ...

    def hand_on(self, value: Any) -> None:
        """Hand plain data to the next process, which takes it over. Raises EndedError where it has ended."""
        ...

    def take_over(self) -> Any:
        """What the process before has handed on. Raises EndedError where it has ended."""
        ...

    def add(self, key: str, n: int) -> int:
        """Add to a number that all share and that begins at 0; returns the sum."""
        ...

    def check(self) -> None:
        """Raise EndedError where another process has failed."""
        ...

    def is_first_to_tell(self) -> bool:
        """Whether this process, which has failed, is to say so, and no other one. The others are told to end."""
        ...

    def leave(self) -> None:
        """The work of this process is done."""
        ...


class Alone:
    """One process, with nobody to wait for."""

    number = 0
    size = 1

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()

    def exchange(self, value: Any) -> list[Any]:
        """What this one process gives."""
        return [value]

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """There is no next one."""

    def receive(self, into: Sequence[torch.Tensor]) -> None:
        """There is none before."""

    def hand_on(self, value: Any) -> None:
        """There is no next one."""

    def take_over(self) -> Any:
        """There is none before."""

    def add(self, key: str, n: int) -> int:
        """Add to a number that begins at 0."""
        self._sums[key] += n
        return self._sums[key]

    def check(self) -> None:
        """Nobody else could fail."""

    def is_first_to_tell(self) -> bool:
        """Nobody else would tell."""
        return True

    def leave(self) -> None:
        """Nobody waits for it."""


def are_started() -> bool:
    """Whether torchrun has started this process, as one of several or as the only one."""
    return _STARTED in os.environ


def local_number() -> int | None:
    """This process's number among those that torchrun has started on its machine; None where it has not."""
    return int(os.environ.get("LOCAL_RANK", "0")) if are_started() else None


_joined = False


def speaks() -> bool:
    """Whether this process tells what goes wrong before all have found each other: one does on each machine."""
    return _joined or not local_number()


def is_waiting() -> bool:
    """Whether a thread still waits for another process. The end of Python would be an abort in the library."""
    return any(thread.name == _WAITS for thread in threading.enumerate())


def threads_of_one(usable: int) -> int:
    """How many threads a process of several has of those that this machine has: at least one beside its own.

    torchrun says 1 to OpenMP where nobody has said anything else.
    """
    given = os.environ.get("OMP_NUM_THREADS", "1")
    if given.isdecimal() and int(given) > 1:
        return int(given)
    return max(2, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def join() -> Processes:
    """Find the other processes that torchrun has started. Raises BackendError where they do not answer."""
    global _joined  # noqa: PLW0603  # a process finds the others once
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone()
    # torch takes seconds to import.
    from torch import distributed

    try:
        distributed.init_process_group("gloo", timeout=_LONGEST)
        found = _Joined()
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"the other processes do not answer: {one_sentence(error)}") from None
    _joined = True
    return found


class _Joined:
    """One of several, joined by torch.distributed: gloo, and the store that torchrun holds."""

    def __init__(self) -> None:
        # torch takes seconds to import.
        from torch import distributed

        self._distributed = distributed
        self.number, self.size = distributed.get_rank(), distributed.get_world_size()
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        held_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_master = self.number == 0 and not held_by_torchrun
        # torch documents both, and does not list them.
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            *address, is_master=is_master, multi_tenant=True, wait_for_workers=False, timeout=_JOINING
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = distributed.PrefixStore(f"spqfmt {attempt}", store)  # type: ignore[attr-defined]

    def exchange(self, value: Any) -> list[Any]:
        """What all processes give here, by their numbers. Raises EndedError where one does not come any more."""
        found: list[Any] = [None] * self.size
        self._wait(lambda: self._distributed.all_gather_object(found, value))
        return found

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Hand tensors to the next process, which receives as many. Raises EndedError where it has ended."""

        def send() -> None:
            for tensor in tensors:
                self._distributed.send(_as_bytes(tensor.cpu().contiguous()), self.number + 1)

        self._wait(send)

    def receive(self, into: Sequence[torch.Tensor]) -> None:
        """Fill tensors with those that the process before has sent. Raises EndedError where it has ended."""

        def receive() -> None:
            for tensor in into:
                self._distributed.recv(_as_bytes(tensor), self.number - 1)

        self._wait(receive)

    def hand_on(self, value: Any) -> None:
        """Hand plain data to the next process, which takes it over. Raises EndedError where it has ended."""
        self._wait(lambda: self._distributed.send_object_list([value], self.number + 1))

    def take_over(self) -> Any:
        """What the process before has handed on. Raises EndedError where it has ended."""
        found = [None]
        self._wait(lambda: self._distributed.recv_object_list(found, self.number - 1))
        return found[0]

    def _wait(self, call: Callable[[], object]) -> None:
        """Wait for a call of the library. Raises EndedError where another process does not come any more."""
        errors: list[Exception] = []

        def run() -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)

        # A signal is seen by the main thread, which must not wait in a library.
        thread = threading.Thread(target=run, name=_WAITS, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOKS_UP_SECONDS)
        if errors:
            self.check()
            raise _ended("another process has ended without a word") from errors[0]

    def add(self, key: str, n: int) -> int:
        """Add to a number that all share and that begins at 0; returns the sum."""
        return int(self._store.add(key, n))

    def check(self) -> None:
        """Raise EndedError where another process has failed."""
        if self._store.check([_FAILED]):
            raise _ended("another process has failed, as it says")

    def is_first_to_tell(self) -> bool:
        """Whether this process, which has failed, is to say so, and no other one. The others are told to end."""
        try:
            # In this order: who sees that one has failed must not come to tell it first.
            is_first = int(self._store.add(_TOLD, 1)) == 1
            self._store.set(_FAILED, "")
            return is_first
        except RuntimeError:  # torchrun has ended, or the process that held the store
            return True

    def leave(self) -> None:
        """The work of this process is done."""
        self._distributed.destroy_process_group()


def _ended(words: str) -> EndedError:
    """The error of a process that is about to end because another one has.

    torchrun ends it as well: an interrupt from there must not come in place of what is said now.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return EndedError(words)


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch  # takes seconds

    return tensor.view(-1).view(torch.uint8)


def taken(processes: Processes, key: str, n: int) -> Iterator[int]:
    """Numbers below `n`, each taken by one process.

    First those of its own share, which follow each other, then what is left of the shares of others.
    """
    shares = shares_of(n, processes.size)
    for k in range(processes.size):
        owner = (processes.number + k) % processes.size
        while (at := processes.add(f"{key} {owner}", 1) - 1) < len(shares[owner]):
            yield shares[owner][at]


def shares_of(n: int, size: int) -> Sequence[range]:
    """The numbers below `n` in even shares, one for each of `size` processes."""
    return [range(n * k // size, n * (k + 1) // size) for k in range(size)]


def shared(processes: Processes, n: int, make: Callable[[int], _T]) -> list[_T]:
    """What `make` gives for the numbers below `n`, in their order, each made by one process and known to all."""
    own = [make(at) for at in shares_of(n, processes.size)[processes.number]]
    return [one for found in processes.exchange(own) for one in found]
