"""Which pilots are orphans: those that wait, and whose manager is gone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from windlass.factory.backend import JobId, Listed, PilotRequest, PilotState, Tag
from windlass.factory.orphans import find_pilots


class Batch:
    """A batch system that lists these."""

    def __init__(self, *listed: tuple[Tag, Listed]) -> None:
        self._listed = [(tag, PilotState(job=JobId(str(number)), listed=state)) for number, (tag, state) in enumerate(listed)]

    def find(self) -> Sequence[tuple[Tag, PilotState]]:
        return self._listed

    def probe(self, request: PilotRequest) -> JobId:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("tag", "listed", "manager", "orphan"),
    [
        (Tag("f", "m"), Listed.QUEUED, "ended", True),
        (Tag("f", "m"), Listed.HELD, "unknown", True),
        (Tag("f", "m"), Listed.RUNNING, "unknown", False),  # the manager may be where it cannot be seen from here
        (Tag("f", "m"), Listed.RUNNING, "ended", False),  # or begin anew; else its pilots leave
        (Tag("f", "m"), Listed.RUNNING, "running", False),
        (Tag("f", "m"), Listed.ENDING, "ended", False),
        (Tag("manager-m", "m"), Listed.QUEUED, "unknown", False),  # the manager itself, which waits for its node
    ],
)
def test_an_orphan_is_a_pilot_that_nobody_will_end(tag: Tag, listed: Listed, manager: str, orphan: bool) -> None:
    [found] = find_pilots(Batch((tag, listed)), ask=lambda name: manager)
    assert found.is_orphan == orphan


def test_a_factory_of_several_pools_is_meant_by_its_own_name() -> None:
    """In the batch system each pool has a name of its own, which begins with it."""
    batch = Batch(*((Tag(name, "m"), Listed.QUEUED) for name in ("night", "night.gpu", "nightly")))
    assert [one.tag.factory for one in find_pilots(batch, "night", lambda name: "ended")] == ["night", "night.gpu"]
