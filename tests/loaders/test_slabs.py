"""Slabs give every tensor room of its own, and give the system's memory back with the last tensor in it."""

import weakref

from spqfmt.loaders.slabs import Slabs

MIB = 1 << 20


def test_rooms_do_not_overlap() -> None:
    sizes = [MIB] * 70 + [3 * MIB] * 5 + [40 * MIB] + [100] * 3
    slabs = Slabs(sizes)
    rooms = [slabs.take(size) for size in sizes]
    for number, room in enumerate(rooms):
        room[:] = number
    assert [room.size for room in rooms] == sizes
    assert all((room == number).all() for number, room in enumerate(rooms))


def test_a_slab_has_room_for_what_fits_and_no_more() -> None:
    slabs = Slabs([MIB] * 40)
    bases = [slabs.take(MIB).base for _ in range(40)]
    sizes = {id(base): base.size for base in bases}
    assert sorted(sizes.values()) == [8 * MIB, 32 * MIB]


def test_more_than_was_foretold_gets_room_too() -> None:
    slabs = Slabs([MIB])
    rooms = [slabs.take(MIB), slabs.take(MIB), slabs.take(2 * MIB)]
    assert [room.size for room in rooms] == [MIB, MIB, 2 * MIB]
    rooms[0][:] = 1
    assert not rooms[1].any()


def test_a_slab_goes_with_its_last_tensor() -> None:
    slabs = Slabs([16 * MIB] * 2)
    one, other = slabs.take(16 * MIB), slabs.take(16 * MIB)
    slab = weakref.ref(one.base)
    assert other.base is one.base
    del one
    assert slab() is not None
    del other
    assert slab() is None
