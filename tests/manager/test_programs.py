"""Whose is what among attached programs: plain calls on the book, and everything that is let go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from windlass.framing import ProtocolError
from windlass.manager.call import TAG_MOST
from windlass.manager.programs import FOUND, SHIFT, Fate, Program, Programs
from windlass.manager.unread import Unread
from windlass.messages import (
    CANCELLED,
    MAX_FRAME_BYTES,
    RAISED,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallsDone,
    CallSent,
    FileName,
    FunctionId,
    LibraryId,
    ObjectName,
    ObjectRef,
    SubmitCalls,
)
from windlass.session import encode_one

LIBRARY, FUNCTION = LibraryId("lib@1"), FunctionId(b"f" * 16)
RESULT = ObjectName("r-" + "0" * 32)
ARGUMENT = ObjectName("b3-" + "1" * 32)


@pytest.fixture
def programs() -> Iterator[Programs]:
    book = Programs()
    yield book
    book.check()


def submit(book: Programs, program: Program, *calls: int, options: CallOptions | None = None) -> list[int]:
    message = SubmitCalls(LIBRARY, options or CallOptions(), [CallSent(CallId(call), FUNCTION, b"x") for call in calls])
    return [spec.call for spec in book.submitted(program, message)]


def done(call: int, *objects: ObjectName) -> CallDone:
    return CallDone(CallEnd(CallId(call), 1, RETURNED, b"", tuple(ObjectRef(name, 1) for name in objects)))


def test_the_same_id_of_two_programs_is_two_calls_and_each_hears_of_its_own(programs: Programs) -> None:
    """Programs count from 1 each, as the manager's own does; ids at the manager never meet, and ends find back."""
    one, two = programs.join("one"), programs.join("two")
    first, second = submit(programs, one, 1), submit(programs, two, 1)
    assert len({*first, *second, 1}) == 3
    own, theirs = programs.ended([done(1), done(first[0]), done(second[0])])
    assert [each.end.call for each in own] == [1]
    assert {number: [each.end.call for message in messages for each in message.done] for number, messages in theirs.items()} == {
        one.number: [1],
        two.number: [1],
    }
    assert not one.calls
    assert not two.calls


def test_a_program_has_its_name_in_lists_of_calls_also_when_it_is_gone(programs: Programs) -> None:
    """Its calls that failed are listed still."""
    one = programs.join("one")
    [call] = submit(programs, one, 7)
    assert programs.name_of(CallId(call)) == ("one", 7)
    programs.left(one)
    programs.ended([done(call)])
    assert one.number not in programs.known
    assert programs.name_of(CallId(call)) == ("one", 7)
    assert programs.name_of(CallId(7)) == ("", 7)


@pytest.mark.parametrize("calls", [(0,), (-1,), (1 << SHIFT,), (5, 5), (7,)])
def test_ids_that_cannot_be_are_refused_whole(programs: Programs, calls: tuple[int, ...]) -> None:
    """A second call under an id that is in use would make the manager lose one; nothing of such a message counts."""
    program = programs.join("one")
    submit(programs, program, 7)
    with pytest.raises(ProtocolError, match="program one submitted"):
        submit(programs, program, 3, *calls)
    assert {call & 0xFF for call in program.calls} == {7}


def test_equal_options_are_one_object_for_the_core(programs: Programs) -> None:
    """The core finds a call's queue by the identity of its options; each message brings new ones that are equal."""
    program = programs.join("one")
    specs = [
        programs.submitted(program, SubmitCalls(LIBRARY, CallOptions(priority=2.0), [CallSent(CallId(call), FUNCTION, b"")]))[0]
        for call in (1, 2)
    ]
    assert specs[0].options is specs[1].options


def test_a_program_cancels_only_its_own_calls(programs: Programs) -> None:
    """What it names is taken for its own id, whatever it names."""
    one, two = programs.join("one"), programs.join("two")
    (mine,), (others,) = submit(programs, one, 1), submit(programs, two, 2)
    assert programs.cancelled(one, [CallId(1), CallId(2), CallId(others)]) == [mine]


def test_a_library_goes_with_the_last_program_that_has_it(programs: Programs) -> None:
    """Versions are shared by content, so one program's removing it takes it from no other."""
    one, two = programs.join("one"), programs.join("two")
    one.libraries.add(LIBRARY)
    two.libraries.add(LIBRARY)
    programs.removed(one, LIBRARY)
    assert programs.remove == []
    programs.left(two)
    assert programs.remove == [LIBRARY]


def test_what_was_put_stays_until_it_is_released_as_often(programs: Programs) -> None:
    """A release may be overtaken by the next put of the same object, on another connection: counts make the order indifferent."""
    program = programs.join("one")
    program.pins[ARGUMENT] += 2
    programs.released(program, [ARGUMENT])
    assert programs.unpin == [ARGUMENT]
    assert program.pins[ARGUMENT] == 1
    programs.released(program, [ARGUMENT, ARGUMENT])
    assert programs.unpin == [ARGUMENT, ARGUMENT], "there were two pins, whatever a program says"


def test_files_are_forgotten_with_their_last_release(programs: Programs) -> None:
    """A program may stay for months: of what it has let go nothing is kept. What it has not released as often as it declared it goes with
    it."""
    program, (gone, kept) = programs.join("one"), (FileName("b3-" + "2" * 32), FileName("b3-" + "3" * 32))
    program.files.update([gone, kept, kept])
    programs.files_released(program, [gone, kept, gone], prune=False)
    assert programs.release == [(gone, False), (kept, False)]
    assert program.files == {kept: 1}
    programs.left(program)
    assert programs.release[2:] == [(kept, False)]


def test_a_program_cannot_release_what_is_not_its(programs: Programs) -> None:
    """Neither other programs' objects nor results."""
    one, two = programs.join("one"), programs.join("two")
    (call,) = submit(programs, one, 1)
    programs.ended([done(call, RESULT)])
    one.pins[ARGUMENT] += 1
    programs.released(two, [RESULT, ARGUMENT])
    assert (programs.unpin, programs.discard) == ([], [])
    programs.released(one, [RESULT])
    assert programs.discard == [RESULT]


def test_when_a_program_is_gone_its_calls_are_cancelled_and_all_is_let_go(programs: Programs) -> None:
    """Results that nobody will read, objects that it put and libraries: when the last of its calls has ended."""
    program = programs.join("one")
    first, second = submit(programs, program, 1, 2)
    program.pins[ARGUMENT] += 1
    program.libraries.add(LIBRARY)
    programs.ended([done(first, RESULT)])
    assert programs.left(program) == [second]
    assert programs.discard == [RESULT]
    assert programs.unpin == [], "the call may still read it"
    own, theirs = programs.ended([done(second, RESULT)])
    assert (own, theirs) == ([], {})
    assert (programs.discard, programs.unpin, programs.remove) == ([RESULT, RESULT], [ARGUMENT], [LIBRARY])
    assert programs.known == {}
    assert programs.left(program) == []


def test_calls_that_are_kept_go_on_without_their_program(programs: Programs) -> None:
    """It asked for that; what they need stays as long as they run."""
    program = programs.join("one")
    (call,) = submit(programs, program, 1)
    program.keep, program.working = True, True
    program.libraries.add(LIBRARY)
    assert programs.left(program) == []
    assert programs.working == 0
    assert programs.remove == []
    programs.ended([done(call)])
    assert programs.remove == [LIBRARY]


class Found:
    """A book with a program that has left calls 1 to 4 behind; the first two had the tag "a", the third "b"."""

    def __init__(self, book: Programs) -> None:
        self.book = book
        self.left = book.join("left")
        self.left.keep = True
        self.ids = submit(book, self.left, 1, 2, 3, 4)
        self.tags = dict(zip(self.ids, ("a", "a", "b", ""), strict=True))
        self.cancelled = book.left(self.left)

    def end(self, number: int, *objects: ObjectName) -> tuple[list[CallDone], dict[int, list[CallsDone]]]:
        one = done(self.ids[number - 1], *objects)
        one.tag = self.tags[self.ids[number - 1]]
        one.queued_at = float(number)
        return self.book.ended([one])

    def find(self, program: Program, tag: str) -> tuple[list[tuple[int, float]], list[CallDone]]:
        found, ended = self.book.find(program, tag, lambda call: (self.tags[call], 7.0))
        assert [message.more for message in found] == [True] * (len(found) - 1) + [False]
        return [call for message in found for call in message.calls], [one for message in ended for one in message.done]


@pytest.fixture
def found(programs: Programs) -> Found:
    return Found(programs)


def test_calls_that_were_left_are_found_by_their_tag_once(found: Found) -> None:
    """Those that run and those that have ended, in the order of their submission; from then on they are the finder's."""
    assert found.cancelled == []
    assert found.end(2, RESULT) == ([], {})
    assert found.book.discard == []
    finder = found.book.join("finder")
    calls, ended = found.find(finder, "a")
    assert calls == [(FOUND + 1, 7.0), (FOUND + 2, 2.0)]
    assert [one.end.call for one in ended] == [FOUND + 2]
    assert finder.results == {RESULT}
    assert found.find(finder, "a") == ([], [])
    assert found.find(found.book.join("late"), "a") == ([], [])
    _, theirs = found.end(1)
    assert [one.end.call for message in theirs[finder.number] for one in message.done] == [FOUND + 1]
    assert found.book.known[found.left.number].calls == {found.ids[2], found.ids[3]}


def test_what_has_no_tag_is_nobodys_when_it_ends(found: Found) -> None:
    """And when nothing of a program can be found any more, it is forgotten."""
    for number in (1, 2, 3, 4):
        found.end(number, ObjectName(f"r-{number}"))
    assert found.book.discard == ["r-4"]
    assert found.left.number in found.book.known
    finder = found.book.join("finder")
    found.find(finder, "a")
    found.find(finder, "b")
    assert found.left.number not in found.book.known
    found.book.left(finder)
    assert sorted(found.book.discard) == ["r-1", "r-2", "r-3", "r-4"]


def test_a_finder_cancels_what_it_found(found: Found) -> None:
    """By its own ids; what it has not found is not its to cancel."""
    finder = found.book.join("finder")
    found.find(finder, "a")
    assert found.book.cancelled(finder, [CallId(FOUND + 1), CallId(FOUND + 9), CallId(3)]) == [found.ids[0]]


def test_a_finder_that_leaves_takes_what_it_found_with_it(found: Found) -> None:
    finder = found.book.join("finder")
    found.find(finder, "a")
    assert sorted(found.book.left(finder)) == found.ids[:2]
    assert found.end(1, RESULT) == ([], {})
    assert found.book.discard == [RESULT]
    assert found.find(found.book.join("late"), "a") == ([], [])


def test_when_all_that_a_program_has_left_goes_with_its_finder_nothing_of_either_stays(found: Found) -> None:
    """What the calls may still read stays until they have ended; then who left them is forgotten, with all that was its."""
    found.left.pins[ARGUMENT] += 1
    found.left.libraries.add(LIBRARY)
    found.end(4)
    finder = found.book.join("finder")
    (own,) = submit(found.book, finder, 1)
    found.find(finder, "a")
    found.find(finder, "b")
    assert sorted(found.book.left(finder)) == [*found.ids[:3], own]
    assert (found.book.unpin, found.book.remove) == ([], [])
    for number in (1, 2, 3):
        assert found.end(number, ObjectName(f"r-{number}")) == ([], {})
    assert (found.book.discard, found.book.unpin, found.book.remove) == (["r-1", "r-2", "r-3"], [ARGUMENT], [LIBRARY])
    found.book.ended([done(own)])
    assert found.book.known == {}


def test_a_finder_that_keeps_its_calls_leaves_them_to_be_found_again(found: Found) -> None:
    finder = found.book.join("finder")
    finder.keep = True
    found.find(finder, "a")
    assert found.book.left(finder) == []
    found.end(1)
    assert [call for call, _ in found.find(found.book.join("late"), "a")[0]] == [FOUND + 1, FOUND + 2]


def test_what_a_killed_program_never_heard_is_found(programs: Programs) -> None:
    """Ends that were on their way when its connection was cut, as far as they have a tag."""
    program = programs.join("killed")
    program.keep = True
    first, second = submit(programs, program, 1, 2)
    ends = [done(first, RESULT), done(second)]
    ends[0].tag = "a"
    _, theirs = programs.ended(ends)
    unheard = [one for message in theirs[program.number] for one in message.done]
    programs.left(program, unheard)
    assert programs.discard == []
    calls, ended = programs.find(programs.join("finder"), "a", lambda call: ("", 0.0))
    assert len(calls) == len(next(iter(ended)).done) == 1


def test_what_a_killed_program_has_not_read_is_found(programs: Programs) -> None:
    """Also what it was told, large or small; what it says that it has read is its own, and what has no tag is nobody's."""
    program = programs.join("killed")
    program.keep = program.tells_read = True
    ends = [done(call, ObjectName(f"r-{number}")) for number, call in enumerate(submit(programs, program, 1, 2, 3, 4))]
    for end in ends[:3]:
        end.tag = "a"
    programs.ended(ends)
    programs.check()
    programs.read(program, [CallId(2), CallId(9)])
    programs.released(program, [ObjectName("r-1")])
    assert programs.would_leave(program, "a", lambda call: ("", 0.0)) == 2
    programs.left(program)
    programs.check()
    assert programs.discard == ["r-1", "r-3"]
    [calls], [ended] = programs.find(finder := programs.join("finder"), "a", lambda call: ("", 0.0))
    assert [[span.name for span in one.end.spans] for one in ended.done] == [["r-0"], ["r-2"]]
    assert [call for call, _ in calls.calls] == [one.end.call for one in ended.done] == [FOUND + 1, FOUND + 2]
    assert finder.results == {"r-0", "r-2"}


def tagged(book: Programs, program: Program, *calls: int, size: int = 0) -> None:
    """Calls that end, with a result of so many bytes each."""
    ends = [done(call) for call in submit(book, program, *calls)]
    for end in ends:
        end.tag, end.end.spans = "a", (ObjectRef(ObjectName(f"r-{end.end.call}"), size),)
    book.ended(ends)
    book.check()


def kept(book: Programs) -> dict[str, list[int]]:
    """What is to be found when all have left, by program."""
    return {
        program.name: [call & 0xFF for call in (*program.ended, *program.unread)]
        for program in book.known.values()
        if program.ended or program.unread
    }


def test_of_what_programs_were_told_and_never_read_the_newest_are_kept(programs: Programs) -> None:
    """Night after night one calls functions for what they do, and closes: its ends would stay, and with them their objects."""
    programs.unread = Unread(5)
    for night in range(3):
        program = programs.join(f"night-{night}")
        program.keep = program.tells_read = True
        tagged(programs, program, 1, 2, 3)
        if night:
            programs.is_leaving(program)
        programs.left(program)
    assert kept(programs) == {"night-1": [2, 3], "night-2": [1, 2, 3]}
    assert len(programs.discard) == 4
    [warning] = programs.warn
    assert "more than 5 of their calls with a tag" in warning
    assert "the oldest is of program night-0, with the tag 'a'" in warning
    here = programs.join("here")
    here.keep = here.tells_read = True
    tagged(programs, here, *range(1, 8))
    assert kept(programs) == {"here": [3, 4, 5, 6, 7]}
    assert not here.results.isdisjoint(f"r-{here.number << SHIFT | call}" for call in (1, 2)), "the program may read them still"
    programs.read(here, [CallId(1), CallId(5)])
    tagged(programs, here, 9)
    assert kept(programs) == {"here": [3, 4, 6, 7, 9]}
    programs.find(finder := programs.join("finder"), "a", lambda call: ("", 0.0))
    programs.left(here)
    programs.check()
    programs.find(finder, "a", lambda call: ("", 0.0))
    assert kept(programs) == {}
    assert programs.unread.bytes == 0
    assert len(programs.warn) == 1


def test_large_results_that_are_never_read_take_no_more_than_their_share(programs: Programs) -> None:
    """But one that is larger than that alone."""
    programs.unread = Unread(99, 10_000)
    program = programs.join("one")
    program.keep = program.tells_read = True
    tagged(programs, program, 1, 2, size=6_000)
    assert kept(programs) == {"one": [2]}
    tagged(programs, program, 3, size=20_000)
    assert kept(programs) == {"one": [3]}


def test_what_was_left_to_be_found_stays_however_much_it_is(programs: Programs) -> None:
    """What came when its program was gone, and what one hands over that leaves: of that, too, what had been too much."""
    programs.unread = Unread(3)
    one, two = programs.join("one"), programs.join("two")
    one.keep = two.keep = one.tells_read = two.tells_read = True
    later = submit(programs, one, 8)
    ends = [done(call) for call in submit(programs, one, 1, 2, 3, 4)]
    for end in ends:
        end.tag = "a"
    _, told = programs.ended(ends)
    programs.is_leaving(one)
    programs.given_back(one, [end for message in told[one.number] for end in message.done])
    programs.left(one)
    [end] = [done(call) for call in later]
    end.tag = "a"
    programs.ended([end])
    tagged(programs, two, 1, 2, 3, 4)
    assert {name: sorted(calls) for name, calls in kept(programs).items()} == {"one": [1, 2, 3, 4, 8], "two": [2, 3, 4]}
    # Before one that leaves has handed over what it has, others may have driven it out.
    programs.is_leaving(two)
    (tells := programs.join("tells")).tells_read = True
    tagged(programs, tells, 1)
    objects = [ObjectName(f"r-{two.number << SHIFT | call}") for call in (1, 2, 3, 4)]
    assert kept(programs)["two"] == [3, 4]
    programs.given_back(two, [replace(done(call, name), tag="a") for call, name in zip((1, 2, 3, 4), objects, strict=True)])
    programs.left(two)
    programs.check()
    assert programs.discard == []


def test_what_a_program_reads_for_itself_as_it_leaves_is_found_too(programs: Programs) -> None:
    """Its futures are read at its close, as its user may still ask; nobody has until then."""
    program = programs.join("closes")
    program.keep = program.tells_read = True
    (call,) = submit(programs, program, 1)
    end = done(call, RESULT)
    end.tag = "a"
    _, told = programs.ended([end])
    programs.is_leaving(program)
    programs.released(program, [RESULT])
    assert [one.end.call for message in told[program.number] for one in message.done] == [1]  # perhaps still to be sent
    programs.left(program)
    assert programs.discard == []
    _, [ended] = programs.find(programs.join("finder"), "a", lambda call: ("", 0.0))
    assert [span.name for span in ended.done[0].end.spans] == [RESULT]


def test_what_a_program_would_leave_is_counted_by_tag(found: Found) -> None:
    """For who asks while it may be gone: what it has found counts too, what ends for nobody and what will be cancelled does not."""
    finder = found.book.join("finder")
    finder.keep = True
    found.find(finder, "a")
    own = submit(found.book, finder, 1, 2)
    found.tags.update(zip(own, ("a", "b"), strict=True))

    def count(tag: str) -> int:
        return found.book.would_leave(finder, tag, lambda call: (found.tags[call], 0.0))

    assert [count("a"), count("b"), count("c")] == [3, 1, 0]
    finder.keep = False
    assert count("a") == 0


def test_what_a_leaving_program_gives_back_is_found_and_it_is_told_no_more(programs: Programs) -> None:
    """Ends with a tag that it has not read, also of what it had found; such as come while it leaves are kept at once."""
    program = programs.join("leaves")
    ids = submit(programs, program, 1, 2, 3, 4)
    ends = [done(call, ObjectName(f"r-{number}")) for number, call in enumerate(ids, 1)]
    for one, tag in zip(ends, ("a", "", "a", "a"), strict=True):
        one.tag = tag
    _, theirs = programs.ended(ends[:2])
    program.keep = program.leaving = True
    assert programs.ended(ends[2:3]) == ([], {})
    programs.given_back(program, [one for message in theirs[program.number] for one in message.done])
    stranger = done(CallId(4), ObjectName("r-4"))  # which has not ended
    stranger.tag = "a"
    programs.given_back(program, [stranger])
    assert programs.left(program) == []
    assert programs.discard == []
    finder = programs.join("finder")
    calls, again = programs.find(finder, "a", lambda call: ("a", 7.0))
    assert [call for message in calls for call, _ in message.calls] == [FOUND + 1, FOUND + 2, FOUND + 3]
    assert [one.end.call for message in again for one in message.done] == [FOUND + 1, FOUND + 2]
    assert finder.results == {"r-1", "r-3"}
    finder.keep = finder.leaving = True
    assert programs.ended(ends[3:]) == ([], {})
    assert finder.found == {}
    programs.left(finder)
    late = programs.join("late")
    calls, _ = programs.find(late, "a", lambda call: ("", 0.0))
    assert len(calls[0].calls) == 1


def test_what_a_program_gave_back_goes_with_it_if_it_does_not_keep_its_calls(programs: Programs) -> None:
    """It changed its mind, and nobody is to find these: their objects go."""
    program = programs.join("leaves")
    (call,) = submit(programs, program, 1)
    end = done(call, RESULT)
    end.tag = "a"
    programs.ended([end])
    programs.given_back(program, [end])
    assert programs.discard == []
    programs.left(program)
    assert programs.discard == [RESULT]
    assert programs.known == {}


def test_what_a_killed_finder_never_heard_of_what_it_had_found_is_found_again(found: Found) -> None:
    """Calls that had ended before it found them, and such as ended later: with the results of its own that were on their way."""
    found.end(1, RESULT)
    finder = found.book.join("finder")
    finder.keep = True
    (own,) = submit(found.book, finder, 1)
    _, unheard = found.find(finder, "a")
    mine = done(own, ObjectName("r-own"))
    mine.tag = "a"
    for _, theirs in (found.end(2, ObjectName("r-2")), found.book.ended([mine])):
        unheard += [one for message in theirs[finder.number] for one in message.done]
    assert found.book.left(finder, unheard) == []
    assert found.book.discard == []
    late = found.book.join("late")
    calls, ended = found.find(late, "a")
    assert [call for call, _ in calls] == [one.end.call for one in ended] == [FOUND + 1, FOUND + 2, FOUND + 3]
    assert late.results == {RESULT, "r-2", "r-own"}
    assert finder.number not in found.book.known


def test_ends_travel_in_messages_that_fit_into_frames(programs: Programs) -> None:
    """A frame holds 1 MiB; ten thousand results of 1 kB are more."""
    program = programs.join("one")
    calls = submit(programs, program, *range(1, 2001))
    ends = [CallDone(CallEnd(CallId(call), 1, RETURNED, b"x" * 1000)) for call in calls]
    _, theirs = programs.ended(ends)
    messages = theirs[program.number]
    assert [each.end.call for message in messages for each in message.done] == list(range(1, 2001))
    assert max(sum(len(each.end.payload) for each in message.done) for message in messages) < 300_000


def test_ends_with_long_tags_fit_into_frames_too(programs: Programs) -> None:
    program = programs.join("one")
    calls = submit(programs, program, *range(1, 3001))
    _, theirs = programs.ended([CallDone(CallEnd(CallId(call), 1, CANCELLED), tag="\N{WIND BLOWING FACE}" * TAG_MOST) for call in calls])
    assert max(len(encode_one(message)) for message in theirs[program.number]) < MAX_FRAME_BYTES


class Lives:
    """A program with a journal, which is killed and started again."""

    def __init__(self, book: Programs) -> None:
        self.book = book
        #: What becomes of calls that are submitted again, by the manager's ids; others go on.
        self.fates: dict[CallId, Fate] = {}

    def begin(self, journal: str = "j") -> Program:
        program = self.book.join("life")
        program.keep = True
        self.book.has_journal(program, journal)
        return program

    def submit(self, program: Program, **keys: int) -> tuple[list[CallId], list[CallId]]:
        """Calls with these keys, under these ids: which are run, and which have returned."""
        calls = [CallSent(CallId(call), FUNCTION, b"x", key=key.encode()) for key, call in keys.items()]
        message = SubmitCalls(LIBRARY, CallOptions(), calls)
        specs, ended = self.book.taken_up(program, message, self.book.submitted(program, message), self._meet)
        return [spec.call for spec in specs], [one.end.call for message in ended for one in message.done]

    def _meet(self, call: CallId) -> Fate:
        return self.fates.get(call, "goes on")

    def end(self, call: CallId, outcome: int = RETURNED, *objects: ObjectName) -> dict[int, list[CallId]]:
        """Who is told of it, and under which ids."""
        _, theirs = self.book.ended([CallDone(CallEnd(call, 1, outcome, spans=tuple(ObjectRef(name, 1) for name in objects)))])
        return {number: [one.end.call for message in messages for one in message.done] for number, messages in theirs.items()}


@pytest.fixture
def lives(programs: Programs) -> Lives:
    return Lives(programs)


def test_what_an_earlier_life_left_goes_on_under_the_keys_by_which_it_is_submitted_again(lives: Lives) -> None:
    """What runs, and what has returned meanwhile; what is new, raised, or is about to be cancelled is run."""
    first = lives.begin()
    [a, b, c, d, _], _ = lives.submit(first, a=1, b=2, c=3, d=4, unasked=5)
    lives.book.left(first)
    assert lives.end(b, RETURNED, RESULT) == lives.end(c, RAISED) == {}
    lives.fates[d] = "ends"
    second = lives.begin()
    run, returned = lives.submit(second, new=1, d=2, c=3, b=4, a=5)
    assert run == [second.number << SHIFT | number for number in (1, 2, 3)]
    assert returned == [4]
    assert second.results == {RESULT}
    assert lives.book.cancelled(second, [CallId(5)]) == [a]
    assert lives.end(a) == {second.number: [5]}
    assert lives.book.discard == []


def test_what_is_run_as_it_is_said_now_is_nobodys_any_more_as_it_was(lives: Lives) -> None:
    """Neither what was taken out of the queues, of which no end comes, nor what still runs, whose end nobody finds by its tag."""
    first = lives.begin()
    first.pins[ARGUMENT] += 1
    [waits, runs], _ = lives.submit(first, a=1, b=2)
    lives.book.left(first)
    lives.fates |= {waits: "withdrawn", runs: "ends"}
    second = lives.begin()
    assert lives.submit(second, a=1, b=2) == ([second.number << SHIFT | number for number in (1, 2)], [])
    lives.book.check()
    assert lives.book.cancelled(second, [CallId(1)]) == [second.number << SHIFT | 1]
    lives.book.left(second)
    third = lives.begin()
    assert third.earlier.keys() == {b"a", b"b"}
    assert all(call >> SHIFT == second.number for call in third.earlier.values())
    assert lives.book.find(third, "t", lambda call: ("t" if call == runs else "", 0.0))[0][0].calls == []
    assert not lives.book.unpin, "a worker may still be about to read it"
    late = done(runs, RESULT)
    late.tag = "t"
    assert lives.book.ended([late]) == ([], {})
    assert lives.book.discard == [RESULT]
    assert lives.book.unpin == [ARGUMENT]
    assert first.number not in lives.book.known


def test_what_raised_while_nobody_was_there_is_not_taken_for_its_later_run(lives: Lives) -> None:
    """It is kept for its tag; the life that found so has it run again, and the next one goes on with that."""
    first = lives.begin()
    [a], _ = lives.submit(first, a=1)
    lives.book.left(first)
    raised = CallDone(CallEnd(a, 1, RAISED), tag="t")
    lives.book.ended([raised])
    second = lives.begin()
    [again], _ = lives.submit(second, a=1)
    lives.book.left(second)
    third = lives.begin()
    assert lives.submit(third, a=1) == ([], [])
    assert lives.book.cancelled(third, [CallId(1)]) == [again]


def test_however_many_lives_pass_each_goes_on_with_what_there_is(lives: Lives) -> None:
    """Also with what the last one had taken up, and with what had returned and it never heard."""
    first = lives.begin()
    [a, b, _], _ = lives.submit(first, a=1, b=2, c=3)
    lives.book.left(first)
    second = lives.begin()
    assert lives.submit(second, c=1, b=2, a=3) == ([], [])
    _, unheard = lives.book.ended([done(b, RESULT)])
    lives.book.left(second, [one for message in unheard[second.number] for one in message.done])
    third = lives.begin()
    assert lives.submit(third, a=1, b=2, c=3) == ([], [2])
    assert lives.end(a) == {third.number: [1]}
    assert third.results == {RESULT}
    assert second.number not in lives.book.known


def test_what_is_known_late_to_be_of_an_earlier_life_is_there_for_what_is_submitted_from_then_on(lives: Lives) -> None:
    """The life before had crashed, and was given up after the next one had come."""
    first = lives.begin()
    lives.submit(first, a=1, b=2)
    second = lives.begin()
    assert len(lives.submit(second, a=1)[0]) == 1
    lives.book.left(first)
    lives.book.has_journal(second, "j")
    assert lives.submit(second, b=2) == ([], [])
    lives.book.has_journal(second, "j")
    assert lives.submit(second, c=3) == ([second.number << SHIFT | 3], [])


def test_calls_are_taken_up_by_who_has_their_journal_only(lives: Lives) -> None:
    """Another program may draw the same samples, and wants its own."""
    first = lives.begin()
    lives.submit(first, a=1)
    lives.book.left(first)
    for journal in ("another", ""):
        other = lives.begin(journal)
        assert len(lives.submit(other, a=1)[0]) == 1
    second = lives.begin()
    assert lives.submit(second, a=1) == ([], [])
    with pytest.raises(ProtocolError, match="submitted two calls under one id"):
        lives.submit(second, b=1)


def test_what_nobody_asks_for_keeps_neither_arguments_nor_libraries(lives: Lives) -> None:
    """A life may have written a result, and not have said that it has heard of it, when it was killed: the next one does not ask for it."""
    first = lives.begin()
    first.pins[ARGUMENT] += 2
    first.libraries.add(LIBRARY)
    first.results.add(ObjectName("r-of-another"))
    [a], _ = lives.submit(first, a=1)
    _, told = lives.book.ended([done(a, RESULT)])
    lives.book.left(first, [one for message in told[first.number] for one in message.done])
    assert (lives.book.unpin, lives.book.remove, lives.book.discard) == ([ARGUMENT, ARGUMENT], [LIBRARY], ["r-of-another"])
    second = lives.begin()
    assert lives.submit(second, a=1) == ([], [1])
    assert first.number not in lives.book.known
    assert (lives.book.unpin, lives.book.remove) == ([ARGUMENT, ARGUMENT], [LIBRARY])


@pytest.mark.parametrize(("journal", "keys"), [("j", (b"a", b"b")), ("another", ()), ("", ())])
def test_what_is_found_by_its_tag_has_its_key_for_who_has_the_journal(lives: Lives, journal: str, keys: tuple[bytes, ...]) -> None:
    """So that what it returns gets in there."""
    first = lives.begin()
    [a, b], _ = lives.submit(first, a=1, b=2)
    lives.book.left(first)
    end = done(b)
    end.tag = "t"
    lives.book.ended([end])
    finder = lives.begin(journal)
    [found], [told] = lives.book.find(finder, "t", lambda call: ("t", 0.0) if call == a else ("", 0.0))
    assert found.keys == keys
    assert told.done[0].end.key == (b"b" if keys else b"")
    assert len(lives.submit(finder, a=1)[0]) == 1, "what was found is this program's already"
