"""A cache of keys and values with room for tokens to come: appending one copies that one, and not all before it."""

import weakref
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

_LEAST_ROOM, _MOST_ROOM = 16, 64
"""Tokens: an eighth of those that are there, within these. More is memory that no plan knows, and saves nothing."""


class CacheRoom(NamedTuple):
    """Memory [texts, heads, tokens with room, size] of a layer, of which `n_tokens` are written."""

    owner: weakref.ref[Any]
    """Its layer; as more than a name it would keep all this until Python looks for circles."""
    keys: torch.Tensor
    values: torch.Tensor
    n_tokens: int
    seen: tuple[torch.Tensor, torch.Tensor] | None = None
    """The layer's keys and values where they are the begin of this memory for sure."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A growing layer of transformers' whose keys and values are the begin of a room, where nobody's are overwritten.

    Who has kept what they were before, or has a copy of this layer, keeps it as it is: where they are no longer the
    begin of this layer's own room, all of it written, they move to another.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _room: CacheRoom | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the room is this layer's alone."""
        return {name: value for name, value in vars(self).items() if name != "_room"}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `key_states` and `value_states` [texts, heads, tokens, size], and give all."""
        if key_states.shape[-2] != 1 or not self.is_initialized or not self.keys.numel():
            found: tuple[torch.Tensor, torch.Tensor] = super().update(
                key_states, value_states, *args, **kwargs
            )
            return found
        n_tokens = self.keys.shape[-2]
        room = self._room
        if room is None or not self._is_in(room, n_tokens):
            room = self._move(key_states.dtype, value_states.dtype, n_tokens)
        room.keys.narrow(2, n_tokens, 1).copy_(key_states)
        room.values.narrow(2, n_tokens, 1).copy_(value_states)
        return self._take(room)

    def room_for_one(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> CacheRoom | None:
        """Where another token may be written, of which nothing is seen before `take`.

        None where the cache is not of this `shape`, (texts, heads, size of a key, of a value), and `dtype`.
        """
        if not self.is_initialized or not self.keys.numel():
            return None
        n_texts, n_heads, key_size, value_size = shape
        keys, values = self.keys, self.values
        room = self._room
        if (
            room is not None
            and self._shows(room)
            and room.owner() is self
            and room.keys.dtype is dtype
            and room.values.dtype is dtype
            and room.n_tokens < (n := room.keys.shape[2])
            and room.keys.shape == (n_texts, n_heads, n, key_size)
            and room.values.shape == (n_texts, n_heads, n, value_size)
            and room.keys.is_inference() == torch.is_inference_mode_enabled()
        ):
            return room
        n_tokens = keys.shape[2]
        if (
            keys.dtype is not dtype
            or values.dtype is not dtype
            or keys.shape != (n_texts, n_heads, n_tokens, key_size)
            or values.shape != (n_texts, n_heads, n_tokens, value_size)
            or keys.requires_grad
            or values.requires_grad
        ):
            return None
        if room is None or not self._is_in(room, n_tokens):
            room = self._move(dtype, dtype, n_tokens)
            self._room = room
            self.keys, self.values = room.keys.narrow(2, 0, n_tokens), room.values.narrow(2, 0, n_tokens)
        return room

    def _shows(self, room: CacheRoom) -> bool:
        seen = room.seen
        return (
            seen is not None
            and self.keys is seen[0]
            and self.values is seen[1]
            # Somebody may have given them other data.
            and self.keys.data_ptr() == room.keys.data_ptr()
            and self.values.data_ptr() == room.values.data_ptr()
        )

    def take(self, room: CacheRoom) -> bool:
        """Have the token that was written to `room`; False: this has become another cache since."""
        if self._room is not room or not (self._shows(room) or self._is_in(room, self.keys.shape[2])):
            return False
        self._take(room)
        return True

    def _take(self, room: CacheRoom) -> tuple[torch.Tensor, torch.Tensor]:
        n = room.n_tokens + 1
        self.keys, self.values = seen = room.keys.narrow(2, 0, n), room.values.narrow(2, 0, n)
        self._room = CacheRoom(room.owner, room.keys, room.values, n, seen=seen)
        return seen

    def _is_in(self, room: CacheRoom, n_tokens: int) -> bool:
        keys, values = self.keys, self.values
        return (
            room.owner() is self
            and room.n_tokens == n_tokens < room.keys.shape[2]
            and keys.data_ptr() == room.keys.data_ptr()
            and values.data_ptr() == room.values.data_ptr()
            and keys.shape[:2] == room.keys.shape[:2]
            and keys.stride() == room.keys.stride()
            and values.stride() == room.values.stride()
            and keys.dtype is room.keys.dtype
            # Tensors of inference mode are not to be written outside of it.
            and room.keys.is_inference() == torch.is_inference_mode_enabled()
        )

    def _move(self, key_dtype: torch.dtype, value_dtype: torch.dtype, n_tokens: int) -> CacheRoom:
        """Copy all to memory with room, of the dtype that appending gives."""
        n = n_tokens + min(max(_LEAST_ROOM, n_tokens // 8), _MOST_ROOM)

        def moved(old: torch.Tensor, new: torch.dtype) -> torch.Tensor:
            dtype = torch.promote_types(old.dtype, new)
            memory = torch.empty((*old.shape[:2], n, old.shape[3]), dtype=dtype, device=old.device)
            memory.narrow(2, 0, n_tokens).copy_(old)
            return memory

        return CacheRoom(
            weakref.ref(self), moved(self.keys, key_dtype), moved(self.values, value_dtype), n_tokens
        )


_UPDATES = (DynamicCache.update, DynamicLayer.update)


def appends_as_ever(cache: DynamicCache) -> bool:
    """Whether nobody has put another way to append in the place of transformers', in the cache or in its classes."""
    return "update" not in cache.__dict__ and (DynamicCache.update, DynamicLayer.update) == _UPDATES


def make_roomy(layer: Any) -> None:
    """Let a growing layer of transformers' be one with room from now on; others stay what they are."""
    if type(layer) is DynamicLayer:
        layer.__class__ = RoomyLayer
