"""A stand-in for a schedd with one machine, and for the part of HTCondor's Python bindings that Windlass uses.

Real HTCondor is in no package registry, so the tests that every machine runs use this; `test_standin.py` holds it against what a real
pool was recorded to answer.  It is run as a program:

``schedd SOCKET``
    The schedd: queue, history, and one machine that runs jobs as real processes.  One thread, one selector; nothing is polled.  It
    answers one JSON line with one; ``{"do": "vacate"}`` and the like are for tests.  Stopped with SIGSTOP it is a mute schedd: the
    kernel takes connections and nobody answers.

``steps FOLDER COLLECTOR SCHEDD``
    `steps.py` with the modules that ``helper`` has.

``helper COLLECTOR SCHEDD``
    `windlass.factory.condor_helper` with modules named ``htcondor2`` and ``classad2`` that are made here.  As in the real ones, a call
    holds the GIL while it waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import re
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

MACHINE = "standin"
MEMORY_MB = 64_000
CORES = 64
#: As the collector has it: what is left is nothing when all is taken, and the whole is told beside.
SLOT = {"Machine": MACHINE, "SlotType": "Partitionable", "Cpus": 0, "TotalSlotCpus": CORES, "Memory": 0, "TotalSlotMemory": MEMORY_MB}

WHOLE_SLOT = SLOT | {"Cpus": CORES, "Memory": MEMORY_MB}

# ---------------------------------------------------------------- ClassAd expressions


class Undefined:
    """Neither true nor equal to anything; only ``=?=`` can tell."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, other: object) -> bool:
        return False

    __lt__ = __le__ = __gt__ = __ge__ = _compare

    def _operate(self, other: object) -> Undefined:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = _operate


UNDEFINED = Undefined()


class Meta:
    """The operators ``=?=`` and ``=!=`` between two values: ``left |IS| right``."""

    def __init__(self, same: bool, left: object = None) -> None:
        self.same, self.left = same, left

    def __ror__(self, left: object) -> Meta:
        return Meta(self.same, left)

    def __or__(self, right: object) -> bool:
        is_same = type(self.left) is type(right) and (self.left is right or self.left == right)
        return is_same is self.same


TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|=\?=|=!=|==|!=|<=|>=|&&|\|\||[!<>()+\-*/,]|\d+\.\d+|\d+|[A-Za-z_][A-Za-z_0-9.]*)')


def evaluate(expression: str, ad: Mapping[str, Any], target: Mapping[str, Any] | None = None) -> Any:
    """An expression in the context of an ad, and of another that it may match; enough of the language for what Windlass says."""
    words: list[str] = []
    at = 0
    while at < len(expression.rstrip()):
        token = TOKEN.match(expression, at)
        if token is None:
            raise ValueError(f"cannot read {expression[at:]!r}")
        word, at = token[1], token.end()
        fixed = {"&&": " and ", "||": " or ", "!": " not ", "=?=": "|IS|", "=!=": "|ISNT|", "true": "True", "false": "False"}
        if word.lower() in fixed:
            words.append(fixed[word.lower()])
        elif word[0] == '"':  # in what HTCondor calls old ClassAds a backslash means something before a quote only
            words.append(repr(word[1:-1].replace('\\"', '"')))
        elif word[0].isalpha() and word not in ("time", "substr"):
            words.append(f"get({word!r})")
        else:
            words.append(word)
    mine = {name.lower(): value for name, value in ad.items()}
    theirs = {name.lower(): value for name, value in (target or {}).items()}

    def get(name: str) -> Any:
        scope, _, name = name.lower().rpartition(".")
        value = {"my": mine, "target": theirs}.get(scope, {**theirs, **mine}).get(name, UNDEFINED)
        return evaluate(str(cast("dict[str, str]", value)["expr"]), ad) if isinstance(value, dict) else value

    def substr(text: Any, start: int, length: int) -> Any:
        return text[start : start + length] if isinstance(text, str) else UNDEFINED

    functions = {"get": get, "time": lambda: int(time.time()), "substr": substr}
    return eval("".join(words), {**functions, "IS": Meta(True), "ISNT": Meta(False)})


# ---------------------------------------------------------------- the schedd


class SubmitError(Exception):
    """What the bindings raise as HTCondorException."""


@dataclass
class Job:
    """A job: its ad, and what the submit description said that is in no projection."""

    ad: dict[str, Any]
    words: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    scratch: Path = Path()
    kill_at: float | None = None
    #: Reconnections that the queue does not know of yet.
    reconnections: int = 0
    #: What its end leads to: "removed", "idle", "held"; "": the history, as it ended.
    then: str = ""

    @property
    def key(self) -> str:
        return f"{self.ad['ClusterId']}.{self.ad['ProcId']}"

    @property
    def transfers(self) -> bool:
        return self.words.get("should_transfer_files", "").upper() == "YES"


@dataclass
class StandIn:
    """The queue, the history, the machine."""

    folder: Path
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    clusters: int = 0
    slots: int = 0
    #: What tests have asked for: no starts; most jobs; actions denied; answers without a history.
    frozen: bool = False
    max_jobs: int = 0
    denied: bool = False
    lost_history: bool = False
    collector_is_down: bool = False
    #: Names of further machines that the collector tells of; nothing runs there.
    slots_elsewhere: list[str] = field(default_factory=list[str])
    queries: list[str] = field(default_factory=list[str])
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    # ------------------------------------------------------------ requests

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do = request.pop("do")
        self.queries.append(do)
        self.periodic()
        try:
            return {"value": getattr(self, f"do_{do}")(**request)}
        except SubmitError as error:
            return {"error": str(error)}

    def do_submit(self, words: dict[str, str], count: int) -> dict[str, int]:
        place = expand(words.get("initialdir", "/"), {"dollar": "$"})
        if not Path(place).is_dir():
            raise SubmitError(f"Failed to create job ad, errmsg=Submit:-1:No such directory: {place}\n")
        if words.get("universe") not in ("vanilla", "container"):
            raise SubmitError(f"Failed to create job ad, errmsg=Submit:-1:I don't know about the '{words['universe']}' universe.\n")
        if not words.get("executable"):
            raise SubmitError("Failed to create job ad, errmsg=Submit:-1:No 'executable' parameter was provided\n")
        if self.max_jobs and len(self.jobs) + count > self.max_jobs:
            if len(self.jobs) >= self.max_jobs:
                raise SubmitError(
                    f"Failed to create new cluster.SCHEDD:22:MAX_JOBS_SUBMITTED exceeded. Current={len(self.jobs)}, Limit={self.max_jobs}"
                )
            raise SubmitError(f"expected next ProcId to be {self.max_jobs - len(self.jobs)}, but Schedd says -3")
        self.clusters += 1
        for proc in range(count):
            now = int(time.time())
            macros = {"clusterid": str(self.clusters), "procid": str(proc), "dollar": "$"}
            own = {name: expand(value, macros) for name, value in words.items()}
            ad: dict[str, Any] = {
                "Owner": "alice",
                "QDate": now,
                "ProcId": proc,
                "ClusterId": self.clusters,
                "JobStatus": 1,
                "RequestCpus": number_or_text(own.get("request_cpus", "1")),
                "RequestDisk": number_or_text(own.get("request_disk", "1024")),
                "ExitBySignal": False,
                "NumJobStarts": 0,
                "RequestMemory": number_or_text(own.get("request_memory", "64")),
                "RemoteWallClockTime": 0.0,
                "EnteredCurrentStatus": now,
            }
            for name, value in own.items():
                if name.lower().startswith("my.") or name.startswith("+"):
                    ad[name.removeprefix("+").partition(".")[2] or name.removeprefix("+")] = evaluate(value, {})
            job = Job(ad, own)
            self.jobs[job.key] = job
            if own.get("spooled") == "true" or own.get("hold") == "true":
                ad["JobStatus"] = 5
            if own.get("spooled") == "true":
                self._hold(job, "Spooling input data files", 16, 0)
            elif own.get("hold") == "true":
                self._hold(job, "submitted on hold at user's request", 15, 0)
        return {"cluster": self.clusters, "first": 0, "count": count}

    def do_spool(self, cluster: int) -> None:
        """The files of the jobs are uploaded: they are released."""
        for job in [job for job in self.jobs.values() if job.ad["ClusterId"] == cluster]:
            named = [path.strip() for path in job.words.get("transfer_input_files", "").split(",")]
            missing = [path for path in named if path and not Path(path).exists()]
            if missing:
                why = f"|Error: 1 total failures: first failure: reading from file {missing[0]}: (errno 2) No such file or directory"
                sides = (
                    f"TOOL at 127.0.0.1 failed to send file(s) to <127.0.0.1:1>: {why}; SCHEDD failed to receive file(s) from <127.0.0.1:2>"
                )
                raise SubmitError(f"DCSchedd::spoolJobFiles:7002:File transfer failed for target job {job.key}: {sides}")
            self._to(job, 1)

    def do_query(self, constraint: str, projection: list[str]) -> list[dict[str, Any]]:
        matches(constraint, {})  # a bad one is refused also when there are no jobs
        return [shown(job.ad, projection) for job in self.jobs.values() if matches(constraint, job.ad)]

    def do_history(self, constraint: str, projection: list[str], match: int, since: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for ad in reversed([] if self.lost_history else self.history):
            if len(found) == match or (since and evaluate(since, ad)):
                break
            if evaluate(constraint, ad):
                found.append(shown(ad, projection))
        return found

    def do_act(self, action: str, which: list[str] | str, reason: list[Any]) -> dict[str, str]:
        keys = which if isinstance(which, list) else [key for key, job in self.jobs.items() if matches(which, job.ad)]
        names = ("TotalError", "TotalSuccess", "TotalNotFound", "TotalBadStatus", "TotalAlreadyDone", "TotalPermissionDenied")
        totals: dict[str, int] = dict.fromkeys(names, 0)
        text = f"{reason[0]} (by user alice)" if reason[0] else ""
        for key in keys:
            job = self.jobs.get(key)
            if job is None:
                totals["TotalNotFound"] += 1
            elif self.denied:
                totals["TotalPermissionDenied"] += 1
            elif job.ad["JobStatus"] == {"Remove": 3, "Hold": 5}.get(action, 0):
                totals["TotalAlreadyDone"] += 1
            elif action == "Release" and job.ad["JobStatus"] != 5:
                totals["TotalBadStatus"] += 1
            else:
                totals["TotalSuccess"] += 1
                if action == "Remove":
                    self._remove(job, text)
                elif action == "Vacate":
                    self.do_vacate(key)
                elif action == "Hold":
                    self._hold(job, text, 1, int(reason[1]))
                elif action == "Release":
                    self._to(job, 1)
        counts = {name: str(number) for name, number in totals.items()}
        return counts | {"TotalJobAds": str(len(self.jobs)), "TotalChangedAds": "1" if totals["TotalSuccess"] else "0"}

    def do_edit(self, which: str, name: str, value: str) -> None:
        for job in self.jobs.values():
            if matches(which, job.ad):
                job.ad[name] = evaluate(value, job.ad)

    def do_machines(self) -> list[dict[str, Any]]:
        if self.collector_is_down:
            raise SubmitError("Failed communication with collector.")
        return [SLOT, *(SLOT | {"Machine": name} for name in self.slots_elsewhere)]

    # for tests

    def do_vacate(self, job: str) -> None:
        """As condor_vacate: SIGTERM, and back to the queue."""
        found = self.jobs[job]
        found.ad |= {"VacateReason": "Job vacated by schedd", "VacateReasonCode": 1022}
        self._tell(found, "idle")

    def do_reconnect(self, job: str) -> None:
        """As after a restart of the schedd: another shadow, the same process. The queue counts the reconnection late."""
        found = self.jobs[job]
        found.ad["NumShadowStarts"] += 1
        found.ad["ShadowBday"] = int(time.time()) + 1
        found.reconnections += 1

    def do_set(self, **what: Any) -> None:
        """Change what tests may ask for."""
        for name, value in what.items():
            setattr(self, name, value)

    def do_asked(self) -> list[str]:
        return self.queries

    def periodic(self) -> None:
        """What the real one does every minute."""
        for job in list(self.jobs.values()):
            if job.ad["JobStatus"] != 3 and job.words.get("periodic_remove") and evaluate(job.words["periodic_remove"], job.ad):
                text = f"The job attribute PeriodicRemove expression '{job.words['periodic_remove']}' evaluated to TRUE"
                self._remove(job, text, "Claim deactivated")

    # ------------------------------------------------------------ the machine

    def _to(self, job: Job, status: int, **changes: Any) -> None:
        if job.ad["JobStatus"] != status:
            job.ad["LastJobStatus"] = job.ad["JobStatus"]
        if status != 5:  # the reason of a hold is the last one's from then on
            for name in ("HoldReason", "HoldReasonCode", "HoldReasonSubCode"):
                if name in job.ad:
                    job.ad[f"Last{name}"] = job.ad.pop(name)
        job.ad |= {"JobStatus": status, "EnteredCurrentStatus": int(time.time()), **changes}

    def start_some(self) -> None:
        """Start what can start."""
        for job in list(self.jobs.values()):
            if job.ad["JobStatus"] != 1 or self.frozen:
                continue
            memory = job.ad["RequestMemory"]
            requirements = job.words.get("requirements")
            if (isinstance(memory, int) and memory > MEMORY_MB) or (requirements and not evaluate(requirements, job.ad, WHOLE_SLOT)):
                job.ad["LastRejMatchReason"] = "no match found"
            elif isinstance(memory, int):
                self._start(job)

    def _start(self, job: Job) -> None:
        now = int(time.time())
        self.slots += 1
        starts = job.ad.get("NumShadowStarts", 0)
        host = f"slot1_{self.slots}@{MACHINE}"
        self._to(job, 2, RemoteHost=host, NumShadowStarts=starts + 1, JobCurrentStartDate=now, ShadowBday=now)
        job.ad.setdefault("JobStartDate", now)
        for name in ("VacateReason", "VacateReasonCode"):
            job.ad.pop(name, None)
        job.scratch = Path(tempfile.mkdtemp(dir=self.folder))
        executable, inputs = job.words["executable"], job.words.get("transfer_input_files", "")
        for path in (part.strip() for part in inputs.split(",") if inputs):
            try:
                shutil.copy(path, job.scratch)
            except FileNotFoundError:
                place = f"execution point {job.ad['RemoteHost']}. Details: 1 total failures"
                text = f"reading from file {path}: (errno 2) No such file or directory"
                failure = f"Transfer input files failure at access point {MACHINE} while sending files to {place}: first failure: {text}"
                return self._hold(job, failure, 13, 2, ran=False)
        try:
            self._run(job, executable)
        except FileNotFoundError:
            arguments = f" with arguments {job.words['arguments']}" if "arguments" in job.words else ""
            why = f"Failed to execute '{executable}'{arguments}: (errno=2: 'No such file or directory')"
            return self._hold(job, f"Error from {job.ad['RemoteHost']}: {why}", 6, 2, ran=True)

    def _run(self, job: Job, executable: str) -> None:
        if job.transfers:
            executable = str(shutil.copy(executable, str(job.scratch)))
        (job.scratch / ".job.ad").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in job.ad.items()))
        (job.scratch / ".machine.ad").write_text(f"Memory = {job.ad['RequestMemory']}\n")
        env = dict(pair.split("=", 1) for pair in job.words.get("environment", "").strip('"').split() if "=" in pair)
        env |= {"_CONDOR_SCRATCH_DIR": str(job.scratch), "BATCH_SYSTEM": "HTCondor"}
        env |= {f"_CONDOR_{kind.upper()}_AD": str(job.scratch / f".{kind}.ad") for kind in ("job", "machine")}
        env |= {name: value for name, value in os.environ.items() if name == "WINDLASS_TEST_MARK"}
        log = job.scratch / "_condor_stdout" if job.transfers else Path(job.words.get("output", "/dev/null"))
        with log.open("wb") as out:
            job.process = subprocess.Popen(
                [executable, *job.words.get("arguments", "").split()],
                cwd=job.scratch if job.transfers else job.words.get("initialdir"),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        job.ad["JobCurrentStartExecutingDate"] = int(time.time())
        job.pidfd = os.pidfd_open(job.process.pid)
        self.selector.register(job.pidfd, selectors.EVENT_READ, job)

    def _tell(self, job: Job, then: str) -> None:
        job.then = then
        if job.process is not None:
            signal.pidfd_send_signal(job.pidfd, signal.SIGTERM)
            job.kill_at = time.monotonic() + float(job.words.get("job_max_vacate_time", "10"))

    def _remove(self, job: Job, text: str, vacate: str = "") -> None:
        if text:
            job.ad["RemoveReason"] = text
        if job.process is None:
            self._to(job, 3)
            self._leave(job)
        else:
            job.ad |= {"VacateReason": vacate or text, "VacateReasonCode": 1023}
            self._to(job, 3)
            self._tell(job, "removed")

    def _hold(self, job: Job, text: str, code: int, subcode: int, *, ran: bool = True) -> None:
        job.ad |= {"HoldReason": text, "HoldReasonCode": code, "NumHolds": job.ad.get("NumHolds", 0) + 1}
        if code not in (15, 16):
            job.ad["HoldReasonSubCode"] = subcode
        if job.ad["JobStatus"] == 2:
            job.ad |= {"VacateReason": text, "VacateReasonCode": code}
        if job.process is not None:
            self._tell(job, "held")
        else:
            self._off(job, ran)
            self._to(job, 5)

    def _off(self, job: Job, ran: bool) -> None:
        """The machine is done with a job."""
        job.ad.pop("ShadowBday", None)
        host = job.ad.pop("RemoteHost", None)
        if host is not None:
            job.ad["LastRemoteHost"] = host
            job.ad["NumJobStarts"] += ran
        if job.scratch != Path():
            out = job.scratch / "_condor_stdout"
            # Of a spooled job the schedd keeps it, until somebody asks or the job has left the queue.
            if job.transfers and not job.then and out.exists() and job.words.get("spooled") != "true":
                shutil.copy(out, job.words["output"])
            shutil.rmtree(job.scratch, ignore_errors=True)
        job.scratch = Path()

    def ended(self, job: Job) -> None:
        """The process of a job has ended."""
        assert job.process is not None
        status = job.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)  # all that the job started ends with it
        self.selector.unregister(job.pidfd)
        os.close(job.pidfd)
        job.process, job.kill_at = None, None
        self._off(job, True)
        job.ad |= {"MemoryUsage": {"expr": "((ResidentSetSize + 1023) / 1024)"}, "ResidentSetSize": 7500}
        if job.reconnections:
            job.ad["NumJobReconnects"] = job.ad.get("NumJobReconnects", 0) + job.reconnections
            job.reconnections = 0
        then, job.then = job.then, ""
        if then:
            job.ad |= {"ExitBySignal": True, "ExitSignal": 15}
        elif status < 0:
            job.ad |= {"ExitBySignal": True, "ExitSignal": -status}
        else:
            job.ad |= {"ExitBySignal": False, "ExitCode": status}
        if then == "idle":
            self._to(job, 1)
        elif then == "held":
            self._to(job, 5)
        elif then == "removed":
            self._leave(job)
        else:
            self._to(job, 4, CompletionDate=int(time.time()))
            self._leave(job)

    def _leave(self, job: Job) -> None:
        del self.jobs[job.key]
        self.history.append(job.ad)

    def kill_overdue(self) -> float | None:
        """SIGKILL to those whose grace is over; seconds until the next one."""
        now, nearest = time.monotonic(), None
        for job in self.jobs.values():
            if job.kill_at is not None and job.process is not None:
                if job.kill_at <= now:
                    signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
                    job.kill_at = now + 60
                nearest = min(job.kill_at - now, nearest if nearest is not None else 60.0)
        return nearest

    def serve(self, listener: socket.socket) -> None:
        """Until SIGTERM."""
        self.selector.register(listener, selectors.EVENT_READ, "listener")
        buffers: dict[int, bytes] = {}
        while True:
            self.start_some()
            for key, _ in self.selector.select(self.kill_overdue()):
                if key.data == "listener":
                    connection, _ = listener.accept()
                    self.selector.register(connection, selectors.EVENT_READ, connection)
                    buffers[connection.fileno()] = b""
                elif isinstance(key.data, Job):
                    self.ended(key.data)
                else:
                    try:
                        data = key.data.recv(1 << 20)
                    except ConnectionResetError:  # killed before it took its answer
                        data = b""
                    buffers[key.fd] += data
                    if not data:
                        self.selector.unregister(key.data)
                        key.data.close()
                    elif buffers[key.fd].endswith(b"\n"):
                        request, buffers[key.fd] = buffers[key.fd], b""
                        try:
                            key.data.sendall(json.dumps(self.answer(json.loads(request))).encode() + b"\n")
                        except BrokenPipeError:
                            pass  # killed while it waited


def expand(text: str, macros: Mapping[str, str]) -> str:
    """Macros, one after the other: what the first becomes can make ``$$(...)`` of the next, which is none."""
    macro, at = re.compile(r"(?<!\$)\$\((\w+)\)"), 0
    while found := macro.search(text, at):
        value = macros.get(found[1].lower(), "")
        text = text[: found.start()] + value + text[found.end() :]
        at = found.start() + len(value)
    return text


def number_or_text(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def matches(constraint: str, ad: dict[str, Any]) -> bool:
    try:
        return bool(evaluate(constraint, ad))
    except (ValueError, SyntaxError):
        raise SubmitError("Failed to fetch ads from schedd, errmsg=") from None


def shown(ad: dict[str, Any], projection: list[str]) -> dict[str, Any]:
    return {name: ad[name] for name in projection if name in ad} if projection else dict(ad)


def schedd_main(place: str) -> int:
    def leave(number: int, frame: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="standin-") as folder, socket.socket(socket.AF_UNIX) as listener:
        standin = StandIn(Path(folder))
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        try:
            standin.serve(listener)
        finally:
            for job in standin.jobs.values():
                if job.process is not None:
                    os.killpg(job.process.pid, signal.SIGKILL)
                    job.process.wait()
    return 0


# ---------------------------------------------------------------- the bindings

_libc = ctypes.PyDLL(None)  # keeps the GIL during calls


def ask_schedd(place: str, request: dict[str, Any]) -> Any:
    """One request to the stand-in; as in the real bindings, no other thread runs until there is an answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(place)
        except OSError as error:
            raise HTCondorException(f"Failed to connect to schedd, errmsg={error.strerror}") from None
        connection.sendall(json.dumps(request).encode() + b"\n")
        data, buffer = b"", ctypes.create_string_buffer(1 << 16)
        while not data.endswith(b"\n"):
            number = _libc.recv(connection.fileno(), buffer, len(buffer), 0)
            if number <= 0:
                raise HTCondorException("Failed to connect to schedd, errmsg=the connection broke")
            data += buffer.raw[:number]
    answer = json.loads(data)
    if "error" in answer:
        raise HTCondorException(answer["error"])
    return answer["value"]


class HTCondorException(Exception):
    """As `htcondor2.HTCondorException`."""


class Value(enum.IntEnum):
    """As `classad2.Value`."""

    Error = 1
    Undefined = 2


class ExprTree:
    """As `classad2.ExprTree`: evaluated only when that is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def eval(self, scope: Mapping[str, Any]) -> Any:
        value = evaluate(self.text, scope)
        return Value.Undefined if isinstance(value, Undefined) else value


class ClassAd(dict[str, Any]):
    """As `classad2.ClassAd`: expressions stay expressions."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(
            {
                name: ExprTree(str(cast("dict[str, str]", value)["expr"])) if isinstance(value, dict) else value
                for name, value in values.items()
            }
        )

    def eval(self, name: str) -> Any:
        value = self[name]
        return value.eval(self) if isinstance(value, ExprTree) else value

    def lookup(self, name: str) -> Any:
        return self[name]

    def externalRefs(self, expression: ExprTree) -> list[str]:
        """The names in an expression that this ad does not have."""
        words = re.findall(r"[A-Za-z_][A-Za-z_0-9.]*", re.sub(r'"(?:[^"\\]|\\.)*"', "", expression.text))
        return sorted({word for word in words if word not in self and word not in ("time", "true", "false", "undefined")})

    def matches(self, ad: ClassAd) -> bool:
        """Whether this ad meets the requirements of the other."""
        return evaluate(ad.lookup("Requirements").text, ad, self) is True


class AdType(enum.IntEnum):
    """As `htcondor2.AdType`."""

    Startd = 0


class JobAction(enum.IntEnum):
    """As `htcondor2.JobAction`."""

    Hold = 1
    Release = 2
    Remove = 3
    Vacate = 5


class DaemonType(enum.IntEnum):
    """As `htcondor2.DaemonType`."""

    Schedd = 3


class Submit(dict[str, str]):
    """As `htcondor2.Submit`."""

    def issue_credentials(self) -> str | None:
        """Where the user has to consent; or it fails, as a test says."""
        said = os.environ.get("STANDIN_CREDENTIALS", "")
        if said.startswith("error: "):
            raise RuntimeError(said.removeprefix("error: "))
        return said or None


class Collector:
    """As `htcondor2.Collector`; its address is the stand-in's socket."""

    def __init__(self, pool: str | None = None) -> None:
        self.pool = pool

    def locate(self, daemon_type: DaemonType, name: str | None = None) -> ClassAd | None:
        if self.pool is None:
            raise HTCondorException("Unable to locate local daemon.")
        return ClassAd({"MyAddress": self.pool, "CondorVersion": "standin"}) if name in (None, MACHINE) else None

    def query(self, ad_type: AdType, constraint: str = "true", projection: list[str] | None = None) -> list[ClassAd]:
        if self.pool is None:
            raise HTCondorException("Unable to locate local daemon.")
        ads = [ad for ad in ask_schedd(self.pool, {"do": "machines"}) if evaluate(constraint, ad)]
        return [ClassAd(shown(ad, projection or [])) for ad in ads]


class Result:
    """As `htcondor2.SubmitResult`."""

    def __init__(self, made: dict[str, int]) -> None:
        self.made = made

    def cluster(self) -> int:
        return self.made["cluster"]

    def first_proc(self) -> int:
        return self.made["first"]

    def num_procs(self) -> int:
        return self.made["count"]


class Schedd:
    """As `htcondor2.Schedd`."""

    def __init__(self, location: ClassAd) -> None:
        self.place: str = location["MyAddress"]
        self.away = False

    def query(self, constraint: str = "True", projection: list[str] | None = None) -> list[ClassAd]:
        return [ClassAd(ad) for ad in ask_schedd(self.place, {"do": "query", "constraint": constraint, "projection": projection or []})]

    def history(self, constraint: str, projection: list[str], match: int = -1, since: str | None = None) -> list[ClassAd]:
        request = {"do": "history", "constraint": constraint, "projection": projection, "match": match, "since": since}
        return [ClassAd(ad) for ad in ask_schedd(self.place, request)]

    def submit(self, description: Submit, count: int = 0, spool: bool = False) -> Result:
        words = {**description, "spooled": "true"} if spool else dict(description)
        return Result(ask_schedd(self.place, {"do": "submit", "words": words, "count": count or 1}))

    def spool(self, result: Result) -> None:
        upload = os.environ.get("STANDIN_UPLOAD", "")  # for tests
        if upload == "hangs":
            signal.pause()
        elif upload == "is noted late":
            return
        elif upload.startswith("fails: "):
            self.away = "and the schedd is away" in upload
            raise HTCondorException(upload.removeprefix("fails: "))
        ask_schedd(self.place, {"do": "spool", "cluster": result.cluster()})

    def act(self, action: JobAction, which: list[str] | str, reason: tuple[str, int] | str | None = None) -> ClassAd:
        if self.away:
            raise HTCondorException("Failed to connect to schedd.")
        # A plain string is dropped, as in 25.14.1.
        if isinstance(which, list) and not all(re.fullmatch(r"\d+\.\d+", one) for one in which):
            which = " || ".join(f"ClusterId == {one}" for one in which)
        if isinstance(which, str):
            try:
                evaluate(which, {})
            except (ValueError, SyntaxError):
                raise ValueError("The job_spec string must be a clusterID[.procID] or the string form of an ExprTree.") from None
        text, code = reason if isinstance(reason, tuple) else ("Python-initiated action" if reason is None else "", 0)
        counts = ask_schedd(self.place, {"do": "act", "action": action.name, "which": which, "reason": [text, code]})
        return ClassAd({name: int(number) for name, number in counts.items()})

    def edit(self, which: str, name: str, value: str) -> None:
        ask_schedd(self.place, {"do": "edit", "which": which, "name": name, "value": value})


def be_the_bindings() -> None:
    """From now on this process has the stand-in's modules as ``htcondor2`` and ``classad2``."""
    bindings, classads = types.ModuleType("htcondor2"), types.ModuleType("classad2")
    for name in ("HTCondorException", "AdType", "JobAction", "DaemonType", "Submit", "Collector", "Schedd"):
        setattr(bindings, name, globals()[name])
    for name in ("ClassAd", "ExprTree", "Value"):
        setattr(classads, name, globals()[name])
    sys.modules |= {"htcondor2": bindings, "classad2": classads}


def helper_main(argv: list[str]) -> int:
    be_the_bindings()
    from windlass.factory.condor_helper import main

    return main(argv)


# ---------------------------------------------------------------- for tests


class Running:
    """A stand-in schedd in a process of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder / "schedd")
        self.process = subprocess.Popen([sys.executable, __file__, "schedd", self.place], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        #: The helper's command for `HTCondorBackend`.
        self.helper = (sys.executable, __file__, "helper")

    def tell(self, do: str, **arguments: Any) -> Any:
        """A request of a test."""
        return ask_schedd(self.place, {"do": do, **arguments})

    @contextlib.contextmanager
    def mute(self) -> Generator[None]:
        """It takes connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


if __name__ == "__main__":
    if sys.argv[1] == "schedd":
        sys.exit(schedd_main(sys.argv[2]))
    if sys.argv[1] == "steps":
        be_the_bindings()
        sys.exit(runpy.run_path(str(Path(__file__).with_name("steps.py")))["main"](sys.argv[2:]))
    sys.exit(helper_main(sys.argv[2:]))
