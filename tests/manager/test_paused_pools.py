"""Calls that only a paused pool could run end with the reason, rather than wait for ever."""

from __future__ import annotations

from windlass.manager.placement import why_never
from windlass.messages import CallOptions, LibraryId, LibrarySpec, PoolName, PoolOffer, Resources

LIBRARY = LibrarySpec(LibraryId("lib@1"), "lib", (3, 11))
SPENT = PoolOffer(PoolName("slurm"), Resources(4.0), paused="Invalid account", spent=True)
PAUSED = PoolOffer(PoolName("slurm"), Resources(4.0), paused="Invalid account")


def why(*offers: PoolOffer, workers: tuple[Resources, ...] = (), options: CallOptions | None = None) -> str:
    return why_never(LIBRARY, options or CallOptions(), offers, workers)


def test_a_pool_that_is_spent_runs_nothing_and_says_why() -> None:
    assert why(SPENT) == (
        "no pool can ever run this call of library 'lib': "
        "pool 'slurm' is paused and has no pilots: Invalid account; when that is mended: windlass factory resume slurm, and submit again"
    )


def test_a_pool_that_is_only_paused_may_still_run_calls() -> None:
    """Its pilots are there, or in the queue."""
    assert why(PAUSED) == ""


def test_another_pool_or_a_worker_runs_what_a_spent_pool_cannot() -> None:
    assert why(SPENT, PoolOffer(PoolName("local"), Resources(1.0))) == ""
    assert why(SPENT, workers=(Resources(1.0),)) == ""
    assert why(SPENT, workers=(Resources(1.0),), options=CallOptions(expected_time=1e6)) == ""


def test_what_no_pool_gives_is_told_before_who_is_paused() -> None:
    text = why(SPENT, options=CallOptions(needs=Resources(8.0)))
    assert "it needs 8 cores" in text
    assert "paused" not in text
