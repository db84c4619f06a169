"""What made each kept result: remakes are numbered apart, bounded, and forgotten when nothing can need them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from windlass.manager.lineage import FIRST_REMAKE, REMAKES_MOST, Lineage
from windlass.messages import CallId, CallSpec, FileName, FileRef, FunctionId, LibraryId


def name(number: int) -> FileName:
    return FileName(f"r-{number:032x}")


def spec(number: int, *inputs: int) -> CallSpec:
    refs = tuple(FileRef(name(each), 10, "data") for each in inputs)
    return CallSpec(CallId(number), LibraryId("l"), FunctionId(b"f"), b"", inputs=refs)


def remade(lineage: Lineage, number: int) -> CallSpec:
    found = lineage.remake(name(number))
    assert isinstance(found, CallSpec)
    return found


@pytest.fixture
def lineage() -> Iterator[Lineage]:
    lineage = Lineage()
    yield lineage
    lineage.check()


def test_a_lost_result_is_made_by_the_same_call_under_another_number(lineage: Lineage) -> None:
    """While that is under way nothing more is asked for."""
    lineage.made(spec(1), (name(1),))
    again = remade(lineage, 1)
    assert again.call >= FIRST_REMAKE
    assert (again.library, again.function) == (LibraryId("l"), FunctionId(b"f"))
    assert lineage.remake(name(1)) is None
    lineage.made(again, (name(1),))
    assert remade(lineage, 1).call != again.call


def test_a_result_is_made_again_so_often_and_no_more(lineage: Lineage) -> None:
    lineage.made(spec(1), (name(1),))
    for _ in range(REMAKES_MOST):
        lineage.made(remade(lineage, 1), (name(1),))
    assert lineage.remake(name(1)) == ("the result was lost with its workers 4 times; keep it in the program, or on fewer, safer pilots")


def test_a_result_that_nobody_knows_cannot_be_made(lineage: Lineage) -> None:
    assert lineage.remake(name(9)) == f"result {name(9)} was lost with its worker, and nobody knows what made it"


def test_a_remake_that_fails_says_what_cannot_be_had(lineage: Lineage) -> None:
    """Other calls that fail are none of its business."""
    lineage.made(spec(1), (name(1), name(2)))
    again = remade(lineage, 2)
    assert lineage.failed(CallId(1)) == ()
    assert lineage.failed(again.call) == (name(1), name(2))
    assert lineage.failed(again.call) == ()


def test_what_a_result_was_made_of_is_known_until_both_are_let_go(lineage: Lineage) -> None:
    lineage.made(spec(1), (name(1),))
    product, _ = lineage.made(spec(2, 1), (name(2),))
    assert lineage.borrowed(product) == []
    lineage.released([name(1)])
    assert lineage.borrowed(product) == [name(1)]
    assert remade(lineage, 1)
    lineage.made(spec(FIRST_REMAKE), (name(1),))
    lineage.released([name(2)])
    assert lineage.products == {}


def test_a_library_is_needed_while_what_it_has_made_may_have_to_be_made_again(lineage: Lineage) -> None:
    """Also for what calls of another one have made of that."""
    one, other = spec(1), msgspec.structs.replace(spec(2, 1), library=LibraryId("other"))
    assert not lineage.needs(one.library)
    lineage.made(one, (name(1), name(2)))
    lineage.made(other, (name(3),))
    lineage.made(remade(lineage, 1), (name(1),))
    lineage.released([name(1)])
    assert lineage.needs(one.library)
    assert lineage.needs(other.library)
    lineage.released([name(3)])
    assert not lineage.needs(one.library)
    assert not lineage.needs(other.library)


def test_a_long_chain_is_forgotten_without_recursion(lineage: Lineage) -> None:
    lineage.made(spec(0), (name(0),))
    for number in range(1, 20_000):
        lineage.made(spec(number, number - 1), (name(number),))
        lineage.released([name(number - 1)])
    assert len(lineage.products) == 20_000
    lineage.released([name(19_999)])
    assert lineage.products == {}


class Machine(RuleBasedStateMachine):
    """Calls that keep results of one or two earlier ones, losses, remakes and releases in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.lineage = Lineage()
        self.there: list[int] = []
        self.number = 0
        self.under_way: list[tuple[CallSpec, int]] = []

    @rule(inputs=st.lists(st.integers(0, 5), max_size=2))
    def make(self, inputs: list[int]) -> None:
        self.number += 1
        chosen = {self.there[-1 - each] for each in inputs if each < len(self.there)}
        self.lineage.made(spec(self.number, *sorted(chosen)), (name(self.number),))
        self.there.append(self.number)

    @rule(which=st.integers(0, 5))
    def lose(self, which: int) -> None:
        if which < len(self.there):
            number = self.there[-1 - which]
            found = self.lineage.remake(name(number))
            if isinstance(found, CallSpec):
                self.under_way.append((found, number))

    @rule(well=st.booleans())
    def end(self, well: bool) -> None:
        if self.under_way:
            again, number = self.under_way.pop(0)
            if well:
                self.lineage.made(again, (name(number),))
            else:
                assert self.lineage.failed(again.call) == (name(number),)

    @rule(which=st.integers(0, 5))
    def release(self, which: int) -> None:
        if which < len(self.there):
            self.lineage.released([name(self.there.pop(-1 - which))])

    @invariant()
    def agrees(self) -> None:
        self.lineage.check()
        for number in self.there:
            assert name(number) in self.lineage.products


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
