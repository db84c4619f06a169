"""The doctor: runs one real pilot of a pool, and says of each leg of its way whether it holds.

Theory of operation
-------------------
A manager and a factory of its own, with one pilot.  On its node the pilot first examines what it finds (`windlass.examine`), written into
its output; then its worker starts as any other, and once it serves a call examines again, from a slot.  So a pilot that never reaches
its manager tells as much as its output can be read from here, and one whose output does not come back (no shared filesystem) tells it in
its call.

What is found becomes *legs*, in the order in which a pilot goes; the first that fails is where to look.  Judging what was found is pure
(`legs_of`), and tested by itself; `check_up` is the shell around it.
"""

from __future__ import annotations

import json
import shlex
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as NotYet
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from windlass.errors import WindlassError
from windlass.examine import MARK, examine
from windlass.factory.backend import asked_by_hand, backend_class, backend_options
from windlass.factory.factory import Factory, make_backend
from windlass.factory.pool import PoolConfig
from windlass.units import show_count, show_memory, show_seconds

#: Seconds that a pilot may wait in the queue, and from then on until it serves, unless told otherwise.
QUEUE_PATIENCE: Final = 600.0
START_PATIENCE: Final = 120.0
#: Seconds that a batch system has for its first answer: without any, what it would say of a pilot need not be waited for.
ANSWER_PATIENCE: Final = 45.0
#: Seconds between two queries of the batch system: a person waits for the answer, and it is one pilot.
QUERY_INTERVAL: Final = 15.0
#: Seconds between looks at how things stand.
LOOK: Final = 0.1
#: Clocks may differ by so many seconds: munge of Slurm refuses credentials from further away.
SKEW_MOST: Final = 300.0

#: What to do where a pilot waits, or is held before it has started. HTCondor does not say that no machine will ever take one.
SOONER: Final = "a shorter walltime, fewer cores, or another partition may start sooner"
MATCHED: Final = (
    "fewer cores=, less memory=, or other requirements= may fit more machines, and some take only jobs with an attribute of the site's"
    " (attributes=): while a pilot waits,  condor_q -better-analyze JOB  says what keeps it from each"
)
WHAT_SITES_GIVE: Final = "ask for what the site gives: walltime=, cores=, memory=, partition=, account="

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Leg:
    """One leg of a pilot's way: whether it holds, what was found, and what to do where it does not."""

    name: str
    state: str
    text: str
    advice: str = ""


@dataclass(slots=True)
class Findings:
    """What was seen. Seconds since the submission; negative: not yet."""

    refused: str = ""
    #: The batch system has not answered at all; and what to type to see whether it does.
    silence: str = ""
    by_hand: str = ""
    backend: str = ""
    job: str = ""
    node: str = ""
    #: The batch system's own word on a pilot that waits.
    waits_for: str = ""
    ran_after: float = -1.0
    served_after: float = -1.0
    call_took: float = -1.0
    #: Why the pilot ended before it served, with its last words.
    died: str = ""
    #: What the pilot's output and the call say, or nothing.
    examined: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Clock of the node less ours, and how far that may be off.
    skew: tuple[float, float] | None = None
    call_error: str = ""
    asked_cores: float = 0.0
    asked_memory: int = 0
    #: The image that the pool has; "": none.
    container: str = ""


def legs_of(found: Findings) -> list[Leg]:
    """What the findings mean, in the order of a pilot's way."""
    if found.silence:
        see = f"does  {found.by_hand}  answer in this shell? If not, load what the site gives for it, or go to a machine that submits jobs"
        return [Leg("submit", FAILED, f"the batch system does not answer: {found.silence}", see if found.by_hand else "")]
    if found.refused:
        return [Leg("submit", FAILED, found.refused, "windlass factory dry-run shows what was submitted")]
    legs = [Leg("submit", OK, f"accepted as job {found.job}" if found.job else "accepted")]
    if found.ran_after < 0 and found.served_after < 0 and not found.died:
        why = f", and the batch system says: {found.waits_for}" if found.waits_for else ""
        return [
            *legs,
            Leg("queue", FAILED, f"it still waits{why}", MATCHED if found.backend == "htcondor" else SOONER),
        ]
    waited = found.ran_after if found.ran_after >= 0 else found.served_after
    if waited >= 0:
        legs.append(Leg("queue", OK, f"it started after {show_seconds(waited)}" + (f" on {found.node}" if found.node else "")))
    examined = found.examined
    if examined:
        legs += [
            _python(examined),
            *_imports(examined),
            _state_folder(examined),
            *_addresses(examined),
            _scratch(examined),
            _size(examined, found),
        ]
    if found.skew is not None:
        legs.append(_clock(*found.skew))
    if found.died and found.ran_after < 0 and "held: " in found.died:  # it never started, so nothing is wrong with its Python
        return [*legs, Leg("queue", FAILED, found.died, WHAT_SITES_GIVE)]
    if found.died:
        advice = "setup= and python= say how Python is found on nodes"
        if found.container:
            advice = "what an image needs, and what nodes need to start it: windlass explain containers"
        advice = "" if examined else advice
        return [*legs, Leg("worker", FAILED, found.died, advice)]
    if found.served_after < 0:
        return [
            *legs,
            Leg(
                "worker",
                FAILED,
                "it runs and has not connected to the manager",
                "see the addresses above, and: windlass explain pilots-run-and-do-not-connect",
            ),
        ]
    legs.append(Leg("worker", OK, f"it serves, {show_seconds(found.served_after)} after the submission"))
    if found.call_error:
        return [*legs, Leg("call", FAILED, found.call_error)]
    return [*legs, Leg("call", OK, f"a first call took {show_seconds(found.call_took)}, start of its library included")]


def _python(examined: Mapping[str, Any]) -> Leg:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    there = str(examined["python_version"])
    image = f", in the image {examined['container']}" if examined.get("container") else ""
    text = f"{examined['python']}, Python {there}, Windlass {examined['windlass']}{image}"
    if not there.startswith(f"{here}."):
        return Leg("python", FAILED, text, f"functions cannot be sent to it, as the program has Python {here}: give python= or setup=")
    return Leg("python", OK, text)


def _imports(examined: Mapping[str, Any]) -> list[Leg]:
    text = str(examined.get("imports", ""))
    return [Leg("imports", WARNING, text, "environment= gives pilots such an archive: see: windlass explain environments")] if text else []


def _state_folder(examined: Mapping[str, Any]) -> Leg:
    connection = examined["connection"]
    if connection["error"]:
        advice = "the node does not see the manager's folder: WINDLASS_STATE_DIR can name one that it sees, or files='transfer' ships it"
        return Leg("state folder", FAILED, connection["error"], advice)
    return Leg("state folder", OK, f"the node reads {connection['path']}")


def _addresses(examined: Mapping[str, Any]) -> list[Leg]:
    """One that answers is enough; the others are told."""
    tried = examined["addresses"]
    reached = [one for one in tried if not one["error"]]
    legs: list[Leg] = []
    for one in tried:
        where = f"{one['host']} port {one['port']}"
        if not one["error"]:
            legs.append(Leg("address", OK, f"{where}: the manager answers, in {show_seconds(one['seconds'])}"))
        elif reached:
            legs.append(Leg("address", OK, f"{where}: {one['error']} (another one answers)"))
        else:
            advice = (
                "interface= or network= says where nodes can reach this machine; where a firewall lets only some ports through,"
                " try one: windlass doctor --port 50000-50100"
            )
            legs.append(Leg("address", FAILED, f"{where}: {one['error']}", advice))
    return legs


def _scratch(examined: Mapping[str, Any]) -> Leg:
    scratch = examined["scratch"]
    if scratch["error"]:
        return Leg("scratch", FAILED, scratch["error"], "scratch= names a folder on the node's own disk")
    text = f"{scratch['path']} ({scratch['kind'] or 'of an unknown kind'}), {show_memory(scratch['free'])} free"
    return (
        Leg("scratch", WARNING, f"{text}: a network filesystem", "scratch= names a local disk")
        if scratch["warning"]
        else Leg("scratch", OK, text)
    )


def _size(examined: Mapping[str, Any], found: Findings) -> Leg:
    cores, memory = examined["cores"], examined["memory"]
    text = f"{show_count(cores, 'core')}, {show_memory(memory)} of memory"
    if cores < found.asked_cores or 0 < memory < found.asked_memory:
        asked = show_count(found.asked_cores, "core") + (f", {show_memory(found.asked_memory)}" if found.asked_memory else "")
        return Leg("size", WARNING, f"{text}; asked for {asked}", "calls share what is there: ask for what the site gives")
    return Leg("size", OK, text)


def _clock(skew: float, error: float) -> Leg:
    text = (
        f"the node's clock is {show_seconds(abs(skew))} {'ahead of' if skew > 0 else 'behind'} this one, give or take {show_seconds(error)}"
    )
    if abs(skew) - error > SKEW_MOST:
        return Leg("clock", WARNING, text, "batch systems refuse credentials from so far away; tell the administrators")
    return Leg("clock", OK, f"within {show_seconds(max(abs(skew), error))} of this one" if abs(skew) < 1 else text)


def healthy(legs: Sequence[Leg]) -> bool:
    """No leg failed."""
    return all(leg.state != FAILED for leg in legs)


# ---------------------------------------------------------------- the shell


def check_up(
    word: str,
    options: Mapping[str, object],
    say: Callable[[str], None],
    *,
    queue_patience: float = QUEUE_PATIENCE,
    start_patience: float = START_PATIENCE,
    port: int | tuple[int, int] = 0,
) -> list[Leg]:
    """Run one pilot of a pool or backend, end it, and give the legs. ``say`` is told what is waited for. ``port`` as of `Manager`.

    Raises `UnknownName` and `UsageError` for a pool that cannot be, as `Factory` does.
    """
    from windlass.manager.manager import Manager

    backend, pool = make_backend(word, options)
    backend.close()
    own: dict[str, Any] = {"max_pilots": 1, "min_pilots": 1, "max_start_failures": 1}
    given: dict[str, Any] = {name: value for name, value in options.items() if name not in own}
    with Manager(port) as manager:
        python = pool.python or sys.executable
        command = shlex.join([python, "-P", "-m", "windlass.examine", str(manager.pilot_file)])
        given["setup"] = [*pool.setup, *([f"{command} || true"] if has_windlass_at_first(pool) else [])]
        if "query_interval" in backend_options(backend_class(pool.backend)):
            given.setdefault("query_interval", QUERY_INTERVAL)
        found = Findings(asked_cores=pool.resources.cores, asked_memory=pool.resources.memory, container=pool.container)
        found.backend, found.by_hand = pool.backend, asked_by_hand(pool.backend, pool.options)
        folder = _folder_leg(manager.pilot_file.parent)
        lives = f", for at most {show_seconds(pool.walltime)}" if pool.walltime else ""
        cores = show_count(pool.resources.cores, "core")
        say(f"one pilot of {word}{f' ({pool.backend})' if pool.backend != word else ''}: {cores}{lives}")
        with Factory(manager, word, **own, **given) as factory:
            _watch(manager, factory, found, say, queue_patience, start_patience)
            if found.served_after >= 0:
                _call(manager, found)
            factory.close(min(2.0, pool.grace))
        return [folder, *legs_of(found)]


def has_windlass_at_first(pool: PoolConfig) -> bool:
    """Nodes have it when the lines of ``setup`` run: before an environment or the modules of the job are there, and outside of an image.
    Where they have not, the call tells what the node has."""
    return not (pool.environment or pool.container or pool.options.get("files") == "transfer")


def _folder_leg(folder: Path) -> Leg:
    mode = stat.S_IMODE(folder.stat().st_mode)
    return Leg("here", OK, f"state folder {folder}, mode {mode:o}")


def _watch(
    manager: Any, factory: Factory, found: Findings, say: Callable[[str], None], queue_patience: float, start_patience: float
) -> None:
    """Until the pilot serves, has ended, or one of the times is over."""
    began = time.monotonic()
    said = ""
    while True:
        now = time.monotonic() - began
        status = factory.status()
        pilots = factory.pilots()
        for pilot in pilots:
            found.job, found.node = str(pilot["job"]), str(pilot["node"]) or found.node
            found.waits_for = str(pilot["reason"])
            if pilot["phase"] in ("running", "serving") and found.ran_after < 0:
                found.ran_after = now
            if not found.examined:
                found.examined = read_output(factory.backend.tail(cast("Any", pilot["job"])))
        workers = manager.status()["workers"]
        if workers:
            found.served_after = now
            found.node = found.node or workers[0]["host"]
            return
        if status["paused"] or status["shut"]:
            text = str(status["paused"] or status["shut"])
            if found.job or status["start_failures"]:
                found.died, found.examined = text, found.examined or read_output(text)
            else:
                found.refused = text
            return
        if not status["answers"] and now > min(ANSWER_PATIENCE, queue_patience):
            found.silence = str(status["failure"] or f"no command has ended within {show_seconds(round(now))}")
            return
        if found.ran_after < 0 and now > queue_patience:
            if not found.job:  # a limit on jobs, or no answer
                found.refused = str(status["failure"] or status["waits"])
            return
        if found.ran_after >= 0 and now - found.ran_after > start_patience:
            return
        text = f"waiting: {pilots[0]['phase']} {pilots[0]['reason']}".rstrip() if pilots else "waiting: not submitted yet"
        text += f" ({status['failure']})" if status["failure"] else ""
        if text != said:
            say(f"[{show_seconds(round(now, 1))}] {text}")
            said = text
        time.sleep(LOOK)


def read_output(text: str) -> dict[str, Any]:
    """What a pilot wrote of its node into its output; {} where it wrote nothing, or only a part can be read."""
    for line in text.splitlines():
        _, mark, rest = line.partition(MARK)
        if mark:
            try:
                read: object = json.loads(rest)
            except ValueError:
                continue
            if isinstance(read, dict) and "connection" in read:
                return cast("dict[str, Any]", read)
    return {}


def _call(manager: Any, found: Findings) -> None:
    """Run a call in the pilot: what it finds, and the node's clock between two looks at ours."""
    from windlass.manager.call import FunctionCall

    manager.install_library("doctor", examine)
    known = str(found.examined.get("connection", {}).get("path", manager.pilot_file))
    try:
        began = time.monotonic()
        future = manager.submit(FunctionCall("doctor", "examine", known).with_options(timeout=60))
        answer = future.result(timeout=90)
        found.call_took = time.monotonic() - began
        # The library has started by now, so this one is quick, and the clocks are compared closely.
        before = time.time()
        there = manager.submit(FunctionCall("doctor", "examine", "")).result(timeout=30)["time"]
        after = time.time()
    except (WindlassError, NotYet) as error:
        found.call_error = str(error) or "no answer within 90 s"
        return
    # A slot has loaded more than what looked at the node first.
    found.examined = {**found.examined, "imports": answer["imports"]} if found.examined else found.examined
    found.skew = (there - (before + after) / 2, (after - before) / 2)
    if not found.examined:
        # A node that shares no files: its connection file came with the pilot, or it would not serve.
        shipped = {"path": "the connection file that was shipped with the pilot", "manager": "", "error": ""}
        found.examined = answer if not answer["connection"]["error"] else {**answer, "connection": shipped, "addresses": []}


# ---------------------------------------------------------------- for the command line

MARKS: Final = {OK: "ok", WARNING: "!!", FAILED: "FAILED"}


def as_text(legs: Sequence[Leg]) -> str:
    """A line for each leg, and what to do."""
    lines: list[str] = []
    for leg in legs:
        first, *rest = leg.text.splitlines() or [""]
        lines.append(f"{MARKS[leg.state]:<7} {leg.name:<13} {first}")
        lines += [f"{'':<22}{line}" for line in rest]
        if leg.advice and leg.state != OK:
            lines.append(f"{'':<22}→ {leg.advice}")
    lines.append("every leg holds" if healthy(legs) else "look at the first leg that FAILED")
    return "\n".join(lines)


def as_json(legs: Sequence[Leg]) -> str:
    """One object: ``healthy``, and ``legs`` with name, state, text, advice."""
    return json.dumps({"healthy": healthy(legs), "legs": [asdict(leg) for leg in legs]})
