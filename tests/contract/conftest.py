"""The contract of every batch backend, as one function that is run on each of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from windlass.factory.backend import Backend, JobId, Listed, PilotRequest, PilotState, Tag
from windlass.messages import PoolName, Resources

CheckBackend = Callable[..., None]


class Watch:
    """Asks a backend until it says what is waited for; the time between questions is the backend's own."""

    def __init__(self, backend: Backend, patience: float) -> None:
        self.backend, self.patience = backend, patience
        self.last: dict[JobId, PilotState] = {}

    def until(self, what: str, condition: Callable[[dict[JobId, PilotState]], bool]) -> dict[JobId, PilotState]:
        limit = time.monotonic() + self.patience
        while True:
            states = self.backend.query()
            listed = [state.job for state in states]
            assert len(set(listed)) == len(listed), f"listed twice: {states}"
            seen = {state.job: state for state in states}
            self.last.update(seen)
            if condition(seen):
                return seen
            assert time.monotonic() < limit, f"never: {what}; the last answer was {states}"
            time.sleep(min(0.05, self.backend.query_interval))


def run_contract(backend: Backend, folder: Path, *, patience: float = 30.0) -> None:
    """What the factory relies on. ``backend`` is new; ``patience`` is how long its batch system may take for one thing, in seconds."""
    watch = Watch(backend, patience)
    backend.open(Tag("contract", "manager"), folder, lambda: None)
    python = (sys.executable, "-S", "-E", "-c")
    request = PilotRequest(ticket="t-1", pool=PoolName("p"), command=(), resources=Resources(1.0), walltime=600.0, grace=1.0)
    long = replace(request, command=(*python, "import time; time.sleep(600)"))
    try:
        assert backend.query() == [], "a new factory has no pilots"

        # One submission, several pilots: ids of their own, found by their ticket, and they run.
        jobs = backend.submit(long, 2)
        assert len(set(jobs)) == 2
        states = watch.until("both are listed", lambda seen: set(jobs) <= set(seen))
        assert {states[job].ticket for job in jobs} <= {"t-1"}
        watch.until("both run", lambda seen: all(job in seen and seen[job].listed is Listed.RUNNING for job in jobs))

        # One is ended, the other is not; what is unknown or has ended is no error.
        backend.cancel([jobs[0], JobId("999999")])
        watch.until("one has ended", lambda seen: jobs[0] not in seen or seen[jobs[0]].listed is Listed.ENDED)
        backend.cancel([jobs[0]])
        # A real one may have told that it runs a moment before it began to bring its input.
        watch.until("the other runs", lambda seen: jobs[1] in seen and seen[jobs[1]].listed is Listed.RUNNING)

        # One that fails has last words, and its end is known if the batch system remembers it.
        words = "import sys; print('first line', flush=True); print('the account is wrong', file=sys.stderr); sys.exit(7)"
        [failing] = backend.submit(replace(request, ticket="t-2", command=(*python, words)), 1)
        watch.until("it has ended", lambda seen: failing not in seen or seen[failing].listed is Listed.ENDED)
        assert watch.last.get(failing) is None or watch.last[failing].exit_status in (7, None)
        assert backend.tail(failing).endswith("the account is wrong")

        # What a setup line sets is there for the worker; quotes and dollars arrive as they were written.
        shown = "import os, sys; print(os.environ['A'], sys.argv[1], file=sys.stderr); sys.exit(1)"
        odd = 'it\'s $HOME "quoted" %d 100%'
        [quoting] = backend.submit(replace(request, ticket="t-3", setup=("A=here", "export A"), command=(*python, shown, odd)), 1)
        watch.until("it has ended", lambda seen: quoting not in seen or seen[quoting].listed is Listed.ENDED)
        assert backend.tail(quoting).endswith(f"here {odd}")

        # A description names what would be run, and does nothing.
        assert "sleep(600)" in backend.describe(long, 3)
        assert len([state for state in backend.query() if state.listed is Listed.RUNNING]) == 1

        # One command ends all of the factory's.
        backend.submit(replace(long, ticket="t-4"), 2)
        backend.cancel_all()
        watch.until("all have ended", lambda seen: all(state.listed is Listed.ENDED for state in seen.values()))
    finally:
        backend.cancel_all()
        backend.close()
        backend.close()


@pytest.fixture
def check_backend() -> CheckBackend:
    """``check_backend(backend, folder, patience=...)``."""
    return run_contract
