"""The model of the caching allocator."""

from hypothesis import given
from hypothesis import strategies as st

from ftkit.observe.allocator import LET_GO, CachingAllocator, OutOfMemory, Replay, replay, round_size, segment_size

MIB = 2**20


def test_a_small_request_reserves_a_segment_of_two_mebibytes_that_the_next_one_shares():
    allocator = CachingAllocator()
    allocator.allocate(1)
    allocator.allocate(MIB)

    assert (allocator.active_bytes, allocator.reserved_bytes) == (512 + MIB, 2 * MIB)


def test_requests_below_ten_mebibytes_share_segments_of_twenty_and_larger_ones_have_their_own():
    assert [segment_size(round_size(size)) for size in (MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 11 * MIB)] == [
        2 * MIB,
        20 * MIB,
        10 * MIB,
        10 * MIB,
        12 * MIB,
    ]


def test_the_rest_of_a_large_block_is_split_off_only_above_one_mebibyte():
    allocator = CachingAllocator()
    first = allocator.allocate(19 * MIB + 512)
    allocator.release(first)
    allocator.allocate(19 * MIB)

    assert allocator.active_bytes == 20 * MIB


def test_the_smallest_free_block_that_is_large_enough_is_taken():
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(30 * MIB)
    allocator.release(large)
    allocator.release(small)

    assert allocator.allocate(30 * MIB) == small


def test_empty_segments_are_given_back_before_a_device_is_full():
    events = [(0, 30 * MIB), (0, -1), (1, 40 * MIB)]

    assert replay(events, capacity=50 * MIB).fits
    assert not replay([*events, (2, 20 * MIB)], capacity=50 * MIB).fits


def test_a_full_device_is_waited_for_so_that_what_other_streams_used_is_free():
    events = [(0, 30 * MIB), (0, LET_GO), (1, 40 * MIB), (0, -1), (2, 1 * MIB)]

    assert replay(events).peak_reserved_bytes == (30 + 40 + 2) * MIB
    assert replay(events, capacity=50 * MIB).fits
    assert not replay([(0, 30 * MIB), (1, 40 * MIB), (0, -1)], capacity=50 * MIB).fits


def test_expandable_segments_grow_by_what_is_missing():
    events = [(0, 30 * MIB), (0, -1), (1, 40 * MIB)]

    assert replay(events).peak_reserved_bytes == 70 * MIB
    assert replay(events, expandable=True).peak_reserved_bytes == 40 * MIB


def test_pages_between_live_blocks_are_handed_back_where_segments_grow():
    events = [(0, 40 * MIB), (1, 60 * MIB), (2, 40 * MIB), (0, -1), (2, -1), (3, 80 * MIB)]

    assert replay(events, expandable=True).peak_reserved_bytes == (40 + 60 + 80) * MIB
    assert replay(events, capacity=140 * MIB, expandable=True) == Replay(140 * MIB, 140 * MIB, fits=True)
    assert not replay([*events[:-1], (3, 81 * MIB)], capacity=140 * MIB, expandable=True).fits


def test_a_full_device_is_waited_for_where_segments_grow_too():
    events = [(0, 30 * MIB), (0, LET_GO), (1, 40 * MIB), (0, -1)]

    assert replay(events, capacity=60 * MIB, expandable=True).fits
    assert not replay([(0, 30 * MIB), (1, 40 * MIB), (0, -1)], capacity=60 * MIB, expandable=True).fits


@given(st.lists(st.tuples(st.integers(2 * MIB, 300 * MIB), st.integers(0, 9)), max_size=80))
def test_where_segments_grow_only_live_blocks_and_the_pages_that_they_share_fill_a_device(requests):
    capacity = 2**30
    allocator, live, page = CachingAllocator(capacity, expandable=True), [], 20 * MIB
    for size, victim in requests:
        try:
            live.append(allocator.allocate(size))
        except OutOfMemory:
            # Each live block may hold a part of a page at either end, and the new one rounds up to whole pages.
            assert allocator.active_bytes + round_size(size) + (2 * len(live) + 1) * page > capacity
            allocator.release(live.pop(0))
        assert allocator.active_bytes <= allocator.reserved_bytes <= capacity
        if victim < len(live):
            allocator.release(live.pop(victim))


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.booleans()), max_size=60), st.booleans())
def test_reserved_bytes_never_fall_short_of_active_ones_and_all_is_free_in_the_end(requests, expandable):
    allocator = CachingAllocator(expandable=expandable)
    live: list[int] = []
    for size, frees in requests:
        live.append(allocator.allocate(size))
        assert allocator.reserved_bytes >= allocator.active_bytes >= round_size(size)
        assert len(set(live)) == len(live)
        if frees:
            allocator.release(live.pop(0))
    for address in live:
        allocator.release(address)

    assert allocator.active_bytes == 0
    assert allocator.peak_reserved_bytes >= allocator.peak_active_bytes


def test_memory_of_one_stream_is_not_given_to_another_with_or_without_expandable_segments():
    for expandable in (False, True):
        allocator = CachingAllocator(expandable=expandable)
        allocator.release(allocator.allocate(20 * MIB, stream=1))
        allocator.allocate(20 * MIB, stream=1)
        assert allocator.reserved_bytes == 20 * MIB
        allocator.allocate(20 * MIB)
        assert allocator.reserved_bytes == 40 * MIB
