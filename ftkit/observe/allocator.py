"""A model of torch's caching allocator for CUDA: births and deaths of tensors in, reserved bytes out.

The rules are those of torch's c10/cuda/CUDACachingAllocator.cpp, told in its documentation ("Memory management" in
torch's CUDA notes): sizes are rounded to 512 bytes; requests of at most 1 MiB share 2 MiB segments, those below 10 MiB
share 20 MiB segments, larger ones get a segment of their own, rounded to 2 MiB; a segment serves the stream that asked
for it and no other; a free block is found by best fit and split where the rest is worth keeping; neighbours merge when
freed; when the device is full, the host waits for the other streams, so that what they were the last to use is free,
empty segments are handed back, and the request is tried once more. With expandable segments each pool is one range
that grows by whole pages, and when the device is full every free page is handed back, wherever it lies; the range goes
on behind its end, since of addresses there are always enough.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

MIN_BLOCK = 512
SMALL_REQUEST = 2**20
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
OWN_SEGMENT_FROM = 10 * 2**20
OWN_SEGMENT_STEP = 2 * 2**20
LET_GO = -2
"""In the place of a size: the host has no more use for a storage, but a stream that is not its own may have."""


@cache  # a step has hundreds of thousands of requests, of a few hundred sizes
def round_size(size: int) -> int:
    """Return the bytes that a block takes for a request of `size` bytes: a multiple of 512, at least 512."""
    return max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)


def segment_size(rounded: int) -> int:
    """Return the bytes of the segment that is asked of the driver when no free block holds `rounded` bytes."""
    if rounded <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if rounded < OWN_SEGMENT_FROM:
        return LARGE_SEGMENT
    return -(-rounded // OWN_SEGMENT_STEP) * OWN_SEGMENT_STEP


_RANGE = 2**60
"""Addresses between the beginnings of two ranges that grow."""


@dataclass(slots=True, eq=False)
class _Pool:
    """The memory that serves requests of one kind on one stream.

    Attributes:
        is_small: whether it is that of small requests.
        origin: where its range begins, if it has one: no other pool comes there.
        end: where its range ends.
        tail: the last block of its range; None where that was handed back.
        free: (size, address) of its free blocks, in order.
    """

    is_small: bool
    origin: int
    end: int
    tail: "_Block | None" = None
    free: list[tuple[int, int]] = field(default_factory=list)

    @property
    def page(self) -> int:
        """The bytes by which its range grows."""
        return SMALL_SEGMENT if self.is_small else LARGE_SEGMENT


@dataclass(slots=True, eq=False)
class _Block:
    """A stretch of one segment; `before` and `after` are its neighbours there."""

    address: int
    size: int
    pool: _Pool
    free: bool = True
    before: "_Block | None" = None
    after: "_Block | None" = None


class OutOfMemory(Exception):  # noqa: N818  # the condition that is modelled, not a fault of this program
    """The modelled device has no room for a request."""


class CachingAllocator:
    """Places blocks as torch's allocator does, without any memory.

    Attributes:
        active_bytes: bytes of blocks in use.
        reserved_bytes: bytes of segments.
        peak_active_bytes: the most that was in use at once.
        peak_reserved_bytes: the most that was reserved at once.
    """

    def __init__(
        self,
        capacity: int | None = None,
        *,
        expandable: bool = False,
        wait: Callable[["CachingAllocator"], None] | None = None,
    ) -> None:
        """Start empty.

        Args:
            capacity: bytes of the device that segments may take; None: no end.
            expandable: model `expandable_segments:True`.
            wait: releases what other streams have yet to be done with; None: nothing is.
        """
        self._capacity, self._wait = capacity, wait
        self._expandable = expandable
        self._pools: dict[tuple[bool, int], _Pool] = {}  # of small requests or not, and of a stream
        self._blocks: dict[int, _Block] = {}
        self._next_address = 0
        self.active_bytes = self.reserved_bytes = 0
        self.peak_active_bytes = self.peak_reserved_bytes = 0

    def allocate(self, size: int, stream: int = 0) -> int:
        """Place a request.

        Args:
            size: bytes, before rounding.
            stream: the stream that asks; memory of one is not given to another.

        Returns:
            The address, which `release` takes.

        Raises:
            OutOfMemory: not even without the empty segments is there room.
        """
        rounded = round_size(size)
        kind = rounded <= SMALL_REQUEST, stream
        pool = self._pools.get(kind)
        if pool is None:
            begin = len(self._pools) * _RANGE
            pool = self._pools[kind] = _Pool(kind[0], begin, begin)
        block = self._best_fit(rounded, pool) or self._reserve(rounded, pool)
        self._split(block, rounded)
        block.free = False
        self.active_bytes += block.size
        if self.active_bytes > self.peak_active_bytes:  # `max` takes several times as long
            self.peak_active_bytes = self.active_bytes
        return block.address

    def release(self, address: int) -> None:
        """Free the block at `address` and merge it with its free neighbours."""
        block = self._blocks[address]
        assert not block.free
        self.active_bytes -= block.size
        block.free = True
        if block.before is not None and block.before.free:
            self._unlist(block.before)
            block = self._join(block.before, block)
        if block.after is not None and block.after.free:
            self._unlist(block.after)
            block = self._join(block, block.after)
        insort(block.pool.free, (block.size, block.address))

    def _best_fit(self, rounded: int, pool: _Pool) -> _Block | None:
        place = bisect_left(pool.free, (rounded, -1))
        if place == len(pool.free):
            return None
        return self._blocks[pool.free.pop(place)[1]]

    def _reserve(self, rounded: int, pool: _Pool) -> _Block:
        find = self._extend if self._expandable else self._new_segment
        try:
            return find(rounded, pool)
        except OutOfMemory:
            self._hand_back()
            return find(rounded, pool)

    def _new_segment(self, rounded: int, pool: _Pool) -> _Block:
        size = segment_size(rounded)
        self._take(size)
        block = _Block(self._next_address, size, pool)
        self._next_address += size
        self._blocks[block.address] = block
        return block

    def _extend(self, rounded: int, pool: _Pool) -> _Block:
        """Grow the pool's range by pages, together with what is free at its end."""
        tail = pool.tail
        spare = tail.size if tail is not None and tail.free else 0
        size = -(-(rounded - spare) // pool.page) * pool.page
        self._take(size)
        block = _Block(pool.end, size, pool, before=tail)
        pool.end += size
        self._blocks[block.address] = block
        if tail is not None:
            tail.after = block
            if tail.free:
                self._unlist(tail)
                block = self._join(tail, block)
        pool.tail = block
        return block

    def _take(self, size: int) -> None:
        if self._capacity is not None and self.reserved_bytes + size > self._capacity:
            raise OutOfMemory(f"{self.reserved_bytes} bytes reserved, {size} more asked, {self._capacity} there")
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _hand_back(self) -> None:
        """Wait for what other streams still use, then give the driver what is free and whole."""
        if self._wait is not None:
            self._wait(self)
        for block in [block for block in self._blocks.values() if block.free]:
            if self._expandable:
                self._unmap(block)
            elif block.before is None and block.after is None:
                self._unlist(block)
                del self._blocks[block.address]
                self.reserved_bytes -= block.size

    def _unmap(self, block: _Block) -> None:
        """Give back the whole pages of a free block; what it has beside them stays free."""
        page, origin = block.pool.page, block.pool.origin
        first = origin + -(-(block.address - origin) // page) * page
        end = block.address + block.size
        last = origin + (end - origin) // page * page
        if first >= last:
            return
        self._unlist(block)
        del self._blocks[block.address]
        self.reserved_bytes -= last - first
        left = self._rest(_Block(block.address, first - block.address, block.pool, before=block.before))
        right = self._rest(_Block(last, end - last, block.pool, after=block.after))
        if block.before is not None:
            block.before.after = left
        if block.after is not None:
            block.after.before = right
        if block.pool.tail is block:
            block.pool.tail = None

    def _rest(self, block: _Block) -> _Block | None:
        if block.size == 0:
            return None
        self._blocks[block.address] = block
        insort(block.pool.free, (block.size, block.address))
        return block

    def _split(self, block: _Block, rounded: int) -> None:
        rest, pool = block.size - rounded, block.pool
        worth = rest >= MIN_BLOCK if pool.is_small or self._expandable else rest > SMALL_REQUEST
        if not worth:
            return
        other = _Block(block.address + rounded, rest, pool, True, block, block.after)
        if block.after is not None:
            block.after.before = other
        block.after, block.size = other, rounded
        self._blocks[other.address] = other
        if pool.tail is block:
            pool.tail = other
        insort(pool.free, (rest, other.address))

    def _unlist(self, block: _Block) -> None:
        free = block.pool.free
        free.pop(bisect_left(free, (block.size, block.address)))

    def _join(self, left: _Block, right: _Block) -> _Block:
        left.size += right.size
        left.after = right.after
        if right.after is not None:
            right.after.before = left
        del self._blocks[right.address]
        if left.pool.tail is right:
            left.pool.tail = left
        return left


@dataclass(frozen=True)
class Replay:
    """The result of a sequence of births and deaths.

    Attributes:
        peak_active_bytes: blocks in use at the worst moment.
        peak_reserved_bytes: segments at the worst moment.
        fits: whether every request was met.
    """

    peak_active_bytes: int
    peak_reserved_bytes: int
    fits: bool


def replay(
    events: Iterable[tuple[int, int] | tuple[int, int, int]], capacity: int | None = None, *, expandable: bool = False
) -> Replay:
    """Replay births and deaths.

    Args:
        events: (storage, bytes) for a birth, (storage, -1) for its death, in their order; a third number is the stream.
            (storage, `LET_GO`): dead, though another stream may use it until its death comes.
        capacity: bytes for segments; None: no end.
        expandable: model `expandable_segments:True`.

    Returns:
        Peaks up to the end, or up to the first request that was not met.
    """
    addresses: dict[int, int] = {}
    let_go: set[int] = set()

    def wait(allocator: CachingAllocator) -> None:
        for storage in sorted(let_go):
            allocator.release(addresses.pop(storage))
        let_go.clear()

    allocator = CachingAllocator(capacity, expandable=expandable, wait=wait)
    fits = True
    try:
        for storage, size, *stream in events:
            if size == LET_GO:
                let_go.add(storage)
            elif size < 0:
                if storage in addresses:  # else it was waited for
                    allocator.release(addresses.pop(storage))
                    let_go.discard(storage)
            else:
                addresses[storage] = allocator.allocate(size, *stream)
    except OutOfMemory:
        fits = False
    return Replay(allocator.peak_active_bytes, allocator.peak_reserved_bytes, fits)
