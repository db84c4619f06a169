"""Amounts of memory and time: what is read, what is refused, and that what is shown can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.errors import UsageError
from windlass.units import parse_memory, parse_seconds, show_memory, show_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("8G", 8 * 2**30),
        ("1.5MB", 1_500_000),
        (".5 KiB", 512),
        ("512B", 512),
        ("2 bytes", 2),
        ("1T", 2**40),
        ("1e3MB", 10**9),
        (4096, 4096),
        (1.0e9, 10**9),
        (0, 0),
    ],
)
def test_memory_is_decimal_with_b_and_binary_with_i_or_as_the_batch_systems_have_it(text: str | float, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("2h", 7200),
        ("30 min", 1800),
        ("1h30min", 5400),
        ("1h, 30 min", 5400),
        ("1.5d", 129600),
        ("2 weeks", 1209600),
        ("250ms", 0.25),
        ("1-00:00:00", 86400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("02:00:00", 7200),
        ("90:30", 5430),
        ("100:00:00", 360000),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_times_are_amounts_with_units_or_a_clock_as_slurm_reads_it(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "8XB", "GB", "-1GB", "1GB 2MB", "lots", "nan GB", "8,5GB", "1e999GB", -1, float("nan"), float("inf"), True, None]
)
def test_nonsense_is_no_memory(text: str | float) -> None:
    with pytest.raises(UsageError, match="write for example '500MB' or '8GB'"):
        parse_memory(text)


@pytest.mark.parametrize(
    "text",
    ["", "2x", "h", "-2h", "2h 3h", "1:99", "1-25:00:00", "1-", ":30", "1:2:3:4", "1e999h", -1, float("nan"), float("inf"), False, None],
)
def test_nonsense_is_no_time(text: str | float) -> None:
    with pytest.raises(UsageError, match="write for example '90s'"):
        parse_seconds(text)


def test_a_text_without_a_unit_is_refused_because_people_mean_different_ones() -> None:
    with pytest.raises(UsageError, match="'8' has no unit: is it MB or GB"):
        parse_memory("8")
    with pytest.raises(UsageError, match="'90' has no unit: is it seconds, or minutes as Slurm has it"):
        parse_seconds("90")


@pytest.mark.parametrize(("count", "text"), [(0, "0B"), (999, "999B"), (1500, "1.5KB"), (8e9, "8GB"), (999_999, "1MB"), (2**30, "1.07GB")])
def test_memory_is_shown_with_three_digits(count: float, text: str) -> None:
    assert show_memory(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.003, "3ms"),
        (12.5, "12.5s"),
        (60, "1min"),
        (3599.9, "1h"),
        (5400, "1h 30min"),
        (86400, "1d"),
        (129600, "1d 12h"),
        (-60, "-1min"),
        (float("inf"), "unlimited"),
    ],
)
def test_a_time_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


@given(st.floats(min_value=0.001, max_value=1e8))
def test_a_shown_time_reads_as_about_the_same(seconds: float) -> None:
    assert parse_seconds(show_seconds(seconds)) == pytest.approx(seconds, rel=0.03, abs=0.001)


@given(st.integers(min_value=0, max_value=10**17))
def test_a_shown_memory_reads_as_about_the_same(count: int) -> None:
    assert parse_memory(show_memory(count)) == pytest.approx(count, rel=0.01)
