"""What operators that were timed say of others of their name."""

import pytest

from ftkit.plan.seconds.timed import Law, Timed, law_of, seconds_of


def of(law, sizes, off=1.0):
    return [Timed(flops, moved, off * law.seconds(flops, moved + 1)) for flops, moved in sizes]


def test_a_call_its_arithmetic_and_its_bytes_are_told_apart():
    law = Law(1e-4, 1e-12, 1e-10)
    found = law_of(of(law, [(10**6, 10**4), (10**9, 10**5), (10**7, 10**7), (10**8, 10**6)]))
    assert (found.each_call, found.each_flop, found.each_byte) == pytest.approx((1e-4, 1e-12, 1e-10), rel=1e-6)


def test_what_was_timed_in_one_size_grows_with_it():
    once = [Timed(0, 999, 1e-3)]
    assert seconds_of(once, law_of(once), 0, 1999) == pytest.approx(2e-3)


def test_no_part_of_a_law_is_below_zero_whatever_was_timed():
    # The larger one was quicker, as noise has it.
    noisy = [Timed(0, 10**4, 3e-4), Timed(0, 10**5, 2e-4)]
    law = law_of(noisy)
    assert min(law.each_call, law.each_flop, law.each_byte) >= 0
    assert law.seconds(0, 10**6) > 0


def test_a_size_that_was_timed_takes_what_it_took_and_its_neighbours_are_as_far_off_the_law():
    law = Law(1e-4, 0.0, 1e-10)
    # Larger than the caches: twice as long as the law of the small ones has it.
    timed = [*of(law, [(0, 10**3), (0, 10**4), (0, 10**5), (0, 2 * 10**5)]), *of(law, [(0, 10**8)], off=2.0)]
    found = law_of(timed)
    assert seconds_of(timed, found, 0, 10**8) == pytest.approx(timed[-1].seconds)
    ratio = found.seconds(0, 2 * 10**8 + 1) / found.seconds(0, 10**8 + 1)
    assert seconds_of(timed, found, 0, 2 * 10**8) == pytest.approx(ratio * timed[-1].seconds)


def test_what_does_far_more_than_anything_that_was_timed_is_not_told():
    timed = [Timed(10**6, 10**4, 1e-3)]
    assert seconds_of(timed, law_of(timed), 10**8, 10**4) is None
