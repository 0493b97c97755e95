"""Reading ahead, and decompression buffers: right bytes for every request, explicit ownership, no hang."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import pytest

from spqfmt.codecs.base import Bytes
from spqfmt.errors import CorruptError, SpqError
from spqfmt.kernels.pages import allocate
from spqfmt.loaders.packed.buffers import Buffers, TakenBackError, View
from spqfmt.loaders.packed.lookup import RowCache
from spqfmt.loaders.packed.ring import Ring

SIZES = [3 + number for number in range(9)]


class Source:
    """Fills part n with bytes n, and remembers what was asked for."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self.fail: dict[int, BaseException] = {}

    def __call__(self, part: int, out: Bytes) -> None:
        self.filled.append(part)
        if part in self.fail:
            raise self.fail[part]
        out[:] = part


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def make(source: Source) -> Iterator[Callable[..., Ring]]:
    rings: list[Ring] = []

    def ring(n_slots: int = 3, n_workers: int = 2) -> Ring:
        buffers = [allocate(max(SIZES)) for _ in range(n_slots)]
        rings.append(Ring(SIZES, range(len(SIZES)), buffers, n_workers, source))
        return rings[-1]

    yield ring
    for made in rings:
        made.close()


def check_all(ring: Ring, parts: Iterable[int] = range(9)) -> None:
    for part in parts:
        check(ring, part)


def keep_all(ring: Ring, kept: list[Bytes]) -> None:
    for part in range(4):
        with ring.lend(part, f"part {part}") as view:
            kept.append(view.bytes)


def check(ring: Ring, part: int) -> None:
    with ring.lend(part, f"part {part}") as view:
        assert view.bytes.size == SIZES[part]
        assert (view.bytes == part).all()


@pytest.mark.parametrize(("n_slots", "n_workers"), [(2, 1), (3, 2), (4, 2)])
def test_any_order_shows_the_right_bytes(make: Callable[..., Ring], n_slots: int, n_workers: int) -> None:
    ring = make(n_slots, n_workers)
    generator = np.random.default_rng(0)
    for part in [*range(9), *range(9), *generator.integers(0, 9, 300).tolist()]:
        check(ring, part)


def test_the_next_part_is_filled_while_one_is_lent(make: Callable[..., Ring], source: Source) -> None:
    ring = make()
    with ring.lend(0, "part 0"):
        deadline = time.monotonic() + 60
        while not {1, 2} <= set(source.filled) and time.monotonic() < deadline:
            time.sleep(0.001)
    assert sorted(source.filled[:3]) == [0, 1, 2]


def test_in_order_nothing_is_filled_twice(make: Callable[..., Ring], source: Source) -> None:
    ring = make()
    for part in [*range(9)] * 3:
        check(ring, part)
    assert len(source.filled) <= 27 + 3


def test_another_order_is_learnt(make: Callable[..., Ring], source: Source) -> None:
    ring = make()
    order = [4, 2, 0, 8, 6]
    for part in order * 3:
        check(ring, part)
    source.filled.clear()
    for part in order * 4:
        check(ring, part)
    assert len(source.filled) <= 20 + 3


def test_a_view_that_was_taken_back_raises(make: Callable[..., Ring]) -> None:
    ring = make()
    with ring.lend(5, "part 5") as view:
        assert view.bytes[0] == 5
    with pytest.raises(TakenBackError, match="part 5 was taken back"):
        view.bytes  # noqa: B018


def test_an_array_that_outlives_its_loan_keeps_its_bytes(make: Callable[..., Ring]) -> None:
    ring = make()
    with ring.lend(5, "part 5") as view:
        kept = view.bytes
    for part in range(9):
        check(ring, part)
    assert (kept == 5).all()


def test_when_every_buffer_is_kept_the_keeper_is_told(make: Callable[..., Ring]) -> None:
    ring = make()
    kept: list[Bytes] = []
    with pytest.raises(TakenBackError, match="still held: part 0, part 1, part 2"):
        keep_all(ring, kept)
    assert [array[0] for array in kept] == [0, 1, 2]
    kept.clear()
    check(ring, 3)


def test_an_error_is_raised_where_the_part_is_wanted_and_not_before(
    make: Callable[..., Ring], source: Source
) -> None:
    source.fail[3] = CorruptError("broken")
    ring = make()
    for part in range(3):
        check(ring, part)
    for _ in range(2):
        with pytest.raises(CorruptError, match="broken"):
            check(ring, 3)
    del source.fail[3]
    check(ring, 3)
    check(ring, 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_die_do_not_hang_the_model(make: Callable[..., Ring], source: Source) -> None:
    source.fail = dict.fromkeys(range(2, 9), SystemExit())
    ring = make()
    with pytest.raises(SpqError, match="died"):
        check_all(ring)
    with pytest.raises(SpqError, match="died"):
        check_all(ring)


def test_closing_waits_for_what_is_read_and_ends_the_threads_and_whoever_waits() -> None:
    begun, let_go = threading.Event(), threading.Event()
    n_done = 0

    def fill(part: int, out: Bytes) -> None:
        nonlocal n_done
        begun.set()
        assert let_go.wait(60)
        n_done += 1

    before = set(threading.enumerate())
    ring = Ring(SIZES, range(len(SIZES)), [allocate(max(SIZES)) for _ in range(3)], 1, fill)
    assert begun.wait(60)
    threading.Timer(0.2, let_go.set).start()
    ring.close()
    # Who closed it may now close the file that the thread was reading.
    assert n_done == 1
    assert not [t for t in threading.enumerate() if t not in before and t.name.startswith("spqfmt-ring")]
    with pytest.raises(SpqError, match="closed"):
        check_all(ring)


def test_many_threads_at_once(make: Callable[..., Ring]) -> None:
    ring = make()

    def walk(seed: int) -> None:
        for part in np.random.default_rng(seed).integers(0, 9, 150).tolist():
            check(ring, part)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(walk, range(5)))


def test_one_who_stops_waiting_leaves_the_ring_whole(make: Callable[..., Ring], source: Source) -> None:
    ring = make()
    check(ring, 0)
    original = ring._wait

    def interrupted() -> None:
        raise KeyboardInterrupt

    ring._wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        check_all(ring, np.random.default_rng(1).integers(0, 9, 500).tolist())
    ring._wait = original  # type: ignore[method-assign]
    for part in range(9):
        check(ring, part)


def decode(buffers: Buffers, number: int) -> AbstractContextManager[View]:
    def fill(out: Bytes) -> None:
        out[:] = number

    return buffers.lend(f"part {number}", SIZES[number], fill)


def test_decompression_buffers_are_used_again_and_never_show_other_bytes() -> None:
    memory = [allocate(max(SIZES)) for _ in range(2)]
    buffers = Buffers(memory)
    for number in range(9):
        with decode(buffers, number) as view:
            assert view.bytes.tolist() == [number] * SIZES[number]
            assert any(np.shares_memory(view.bytes, one) for one in memory)
        with pytest.raises(TakenBackError, match=f"part {number} was taken back"):
            view.bytes  # noqa: B018


def test_an_array_over_a_decompression_buffer_keeps_its_bytes_and_its_keeper_is_told() -> None:
    buffers = Buffers([allocate(max(SIZES)) for _ in range(2)])
    kept = []
    for number in (1, 2):
        with decode(buffers, number) as view:
            kept.append(view.bytes)
    with pytest.raises(TakenBackError, match="still held: part 1, part 2"), decode(buffers, 3):
        pass
    assert [array[0] for array in kept] == [1, 2]
    del kept[0]
    for number in (3, 4):
        with decode(buffers, number) as view:
            assert (view.bytes == number).all()
    assert (kept[0] == 2).all()


def test_a_part_that_cannot_be_decoded_leaves_its_buffer_free() -> None:
    buffers = Buffers([allocate(max(SIZES))])

    def fail(out: Bytes) -> None:
        raise CorruptError("broken")

    for _ in range(3):
        with pytest.raises(CorruptError, match="broken"), buffers.lend("part 0", 3, fail):
            pass
    with decode(buffers, 5) as view:
        assert (view.bytes == 5).all()


class _Part:
    def __init__(self, n_bytes: int) -> None:
        self.decoded_bytes = self.stored_bytes = n_bytes


class _Store:
    """In place of a Store: part n decodes to bytes n."""

    def __init__(self) -> None:
        self.parts = [_Part(size) for size in SIZES]
        self.decoded: list[int] = []

    def held(self, number: int) -> Bytes:
        return allocate(self.parts[number].stored_bytes)

    def decode(self, number: int, stored: Bytes, out: Bytes) -> None:
        self.decoded.append(number)
        out[:] = number


def rows_of(store: _Store, n_slots: int = 2) -> RowCache:
    return RowCache(store, max(SIZES), max(SIZES), n_slots)  # type: ignore[arg-type]


def test_rows_are_kept_and_their_views_end_with_the_context() -> None:
    store = _Store()
    rows = rows_of(store)
    for number in (3, 5, 3, 5, 7, 5, 3):
        with rows.lend(number, f"part {number}") as view:
            assert view.bytes.tolist() == [number] * SIZES[number]
        with pytest.raises(TakenBackError, match=f"part {number} was taken back"):
            view.bytes  # noqa: B018
    assert store.decoded == [3, 5, 7, 3]


def test_an_array_over_rows_keeps_its_bytes_and_its_keeper_is_told() -> None:
    rows = rows_of(_Store())
    with rows.lend(3, "part 3") as view:
        kept = view.bytes
    for number in (5, 7, 3):
        with rows.lend(number, f"part {number}") as view:
            assert (view.bytes == number).all()
    assert (kept == 3).all()
    with rows.lend(5, "part 5") as view:
        other = view.bytes
    with pytest.raises(TakenBackError, match="still held: part 3, part 5"), rows.lend(8, "part 8"):
        pass
    assert (other == 5).all()
    del kept
    with rows.lend(8, "part 8") as view:
        assert (view.bytes == 8).all()


def test_two_parts_of_rows_at_once() -> None:
    rows = rows_of(_Store())
    with rows.lend(3, "part 3") as first, rows.lend(5, "part 5") as second:
        assert (first.bytes == 3).all()
        assert (second.bytes == 5).all()
