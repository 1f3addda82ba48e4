import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftkit.errors import ConfigError
from ftkit.units import counted, format_bytes, format_count, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("24g", 24 * 2**30),
        ("24Gi", 24 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("500 MB", 500_000_000),
        (" 2TB ", 2 * 10**12),
        ("3kb", 3000),
        ("3k", 3072),
    ],
)
def test_a_size_means_what_its_unit_says(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "8 bananas", "8PiB", "1e9", "1,5GiB", "8GiB of it"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="such as 8GiB") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


def test_one_of_a_kind_is_not_several():
    assert [counted(number, "row") for number in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert [counted(number, "class has", "classes have") for number in (1, 2)] == ["1 class has", "2 classes have"]


@given(st.integers(min_value=0, max_value=2**53))
def test_bare_bytes_come_back_exactly(count):
    assert parse_bytes(str(count)) == count


@given(st.integers(min_value=0, max_value=2**20), st.sampled_from([("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)]))
def test_whole_binary_units_are_exact(number, unit):
    name, power = unit
    assert parse_bytes(f"{number}{name}") == number * 2**power


@given(st.integers(min_value=0, max_value=2**50))
@example(1152)  # just between two hundredths of a KiB
def test_a_formatted_size_reads_back_within_its_two_digits(count):
    # Two digits after the point of a number of at least 1: half a hundredth, and the rounding to a byte.
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005, abs=1)


@given(st.integers(min_value=0, max_value=2**50), st.integers(min_value=0, max_value=2**50))
def test_a_larger_size_never_reads_smaller(one, other):
    small, large = sorted((one, other))
    assert parse_bytes(format_bytes(small)) <= parse_bytes(format_bytes(large))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 * 2**29, "1.50 GiB"), (-(2**20), "-1.00 MiB")],
)
def test_sizes_are_shown_in_binary_units(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (22_713_216, "22.7 M"), (7.24e9, "7.2 B"), (3e12, "3.0 T")],
)
def test_counts_are_shown_in_decimal_units(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (60, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_durations_are_shown_in_their_two_largest_units(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(min_value=0, max_value=1e7))
def test_no_duration_shows_sixty_of_a_unit(seconds):
    assert not re.search(r"\b60(\.0)? (min|s)\b", format_seconds(seconds))  # hours have no end
