"""The pytest plugin: the fixture `windlass_pool`, the marker ``windlass``, the option ``--windlass-seed``.

Theory of operation
-------------------
pytest loads this module at the start of every run in an environment that has Windlass; so it loads nothing else of Windlass until a test
asks for the fixture.  The fixture makes a `FakePool` from the test's markers, and watches the time as long as it is there; a hook adds the
pool's story to the report of a test that failed.

What is left behind at the end, and faults that never happened, fail the test (as an error of its teardown, as other fixtures may use the
pool until then).  A test that has failed already is not blamed for faults that never happened.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from windlass.testing.pool import FakePool

MARKER: Final = (
    "windlass(pilots=2, cores=1, nodes=4, faults=(), chaos=0, seed=None, limit=60, **options): how the fixture windlass_pool makes its pool"
    " (windlass.testing.FakePool)"
)
_POOL: Final = pytest.StashKey["FakePool"]()
_FAILED: Final = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("windlass")
    group.addoption(
        "--windlass-seed", type=int, default=None, metavar="SEED", help="the seed of windlass_pool, to repeat a run that failed"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def windlass_pool(request: pytest.FixtureRequest) -> Iterator[FakePool]:
    """A pool whose faults are scripted: an Executor, with pilots as processes of this machine (docs/testing.md)."""
    from windlass.errors import UsageError
    from windlass.testing.limit import within
    from windlass.testing.pool import FakePool

    options: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("windlass"))):  # the closest last
        if mark.args:
            raise UsageError(
                f"@pytest.mark.windlass({mark.args[0]!r}): options are given by name, as in faults=[...], chaos=10 or limit=30"
            )
        options |= mark.kwargs
    seed: int | None = request.config.getoption("--windlass-seed")
    if seed is not None:
        options["seed"] = seed
    pool = request.node.stash[_POOL] = FakePool(**options)
    try:
        with within(pool.limit, pool.doing, _too_long):
            yield pool
    finally:
        problems = pool.end()
    if request.node.stash.get(_FAILED, False):
        problems = [text for text in problems if text.startswith("left behind")]
    if problems:
        pytest.fail("windlass_pool: " + "\n".join(problems), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if any(mark.name == "windlass" for mark in item.own_markers) and "windlass_pool" not in getattr(item, "fixturenames", ()):
        # Its faults would happen nowhere, and the test would prove nothing.
        pytest.fail(f"{item.name} has @pytest.mark.windlass and no windlass_pool; add that to its arguments", pytrace=False)


def _too_long(text: str) -> NoReturn:
    __tracebackhide__ = True
    pytest.fail(f"windlass_pool: {text}\nA longer limit: @pytest.mark.windlass(limit=300); none: limit=0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    pool = item.stash.get(_POOL, None)
    if pool is not None and report.failed:
        item.stash[_FAILED] = True
        again = f"seed {pool.seed}; again with the same:  pytest '{item.nodeid}' --windlass-seed {pool.seed}"
        report.sections.append(("windlass_pool: what happened", f"{pool.story()}\n\n{again}"))
    return report
