"""The same steps on a schedd, whichever it is, and what the backend would see of each: one JSON line a step.

``steps.py FOLDER COLLECTOR SCHEDD [only]`` with HTCondor's bindings asks a real pool; `standin.py steps ...` asks the stand-in, with
bindings of its own.  What differs from run to run (ids, times, the names of machines and people) is written as what it is, so that two
runs can be compared word by word.  ``steps.jsonl`` beside the recorded ads is what a real pool (25.14) said.

Folder and jobs are the caller's: everything that was submitted is removed in the end.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass.factory.condor_helper import Condor
from windlass.factory.htcondor_words import COMPLETED, PROJECTION, history_state, queue_state

TIMES = {"JobCurrentStartDate", "ShadowBday"}
HOSTS = {"RemoteHost", "LastRemoteHost"}
#: What is asked for, but for what reaches the queue some time after a start: how soon differs from run to run.
ASKED = [name for name in PROJECTION if name not in ("JobCurrentStartExecutingDate", "TransferringInput")]
NO_WORDS: Mapping[str, str] = {}
#: Seconds that the pool may take for one thing.
PATIENCE = 120.0
SCRIPTS = {
    "sleep": "exec sleep 300",
    "exit7": "echo words >&2; exit 7",
    "exit0": "exit 0",
    "kill9": "kill -9 $$",
    "deaf": "trap '' TERM; while :; do sleep 0.1; done",
    "ad": r"""sed -n 's/^\(NumShadowStarts\|NumJobReconnects\|ClusterId\|WindlassTicket\) = .*/\1/p' "$_CONDOR_JOB_AD" | sort >&2
for name in _CONDOR_SCRATCH_DIR _CONDOR_JOB_AD BATCH_SYSTEM WINDLASS_JOB; do
    eval "[ -n \"\${$name+x}\" ]" && echo $name >&2
done
[ -r moved ] && [ "$PWD" = "$_CONDOR_SCRATCH_DIR" ] && echo "in its sandbox, with its input" >&2""",
}


class Steps:
    """One run."""

    def __init__(self, folder: Path, collector: str, schedd: str, only: str = "") -> None:
        self.only = only
        self.condor = Condor(collector, schedd)
        self.htcondor: Any = self.condor._htcondor  # pyright: ignore[reportPrivateUsage]
        self.pool = collector
        self.folder = folder
        self.name = f"steps-{os.getpid()}"
        self.clusters: list[int] = []
        for name, text in SCRIPTS.items():
            path = folder / f"{name}.sh"
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        (folder / "moved").write_text("x")

    # ------------------------------------------------------------ asking

    @property
    def schedd(self) -> Any:
        return self.condor._found()  # pyright: ignore[reportPrivateUsage]

    def submit(self, script: str = "sleep", count: int = 1, *, spool: bool = False, own: Mapping[str, str] = NO_WORDS, **words: str) -> str:
        """The cluster of a submission as the backend makes it; the constraint that finds it."""
        given = (
            {
                "universe": "vanilla",
                "executable": f"{self.folder}/{script}.sh",
                "environment": '"WINDLASS_JOB=$(ClusterId).$(ProcId)"',
                "initialdir": str(self.folder),
                "output": f"{self.folder}/$(ClusterId).$(ProcId).log",
                "error": f"{self.folder}/$(ClusterId).$(ProcId).log",
                "request_cpus": "1",
                "request_memory": "64",
                "should_transfer_files": "IF_NEEDED",
                "when_to_transfer_output": "ON_EXIT",
                "transfer_output_files": '""',
                "requirements": "MY.Go",
                "kill_sig": "SIGTERM",
                "job_max_vacate_time": "20",
                "want_graceful_removal": "true",
                "leave_in_queue": "false",
                "My.Go": "true",
                "My.WindlassFactory": f'"{self.name}"',
                "My.WindlassTicket": '"t-1"',
            }
            | dict(own)
            | words
        )
        made = self.condor.submit({name: value for name, value in given.items() if value}, count, spool)
        self.clusters.append(made["cluster"])
        assert (made["first"], made["count"]) == (0, count)
        return f"ClusterId == {made['cluster']}"

    def until(self, which: str, status: int, number: int = 1, via: str = "query", also: str = "") -> list[dict[str, object]]:
        """The ads when all of them are in a state."""
        limit = time.monotonic() + PATIENCE
        while True:
            ads = self.query(which) if via == "query" else self.history(which)
            if [ad.get("JobStatus") for ad in ads] == [status] * number and all(also in ad for ad in ads if also):
                return sorted(ads, key=lambda ad: int(str(ad["ProcId"])))
            assert time.monotonic() < limit, f"never {status}: {ads}"
            time.sleep(0.05)

    def query(self, which: str) -> list[dict[str, object]]:
        return self.condor.query(which, ASKED)

    def history(self, which: str) -> list[dict[str, object]]:
        return self.condor.history(which, ASKED, 10, "")

    def act(self, action: str, which: Any, reason: Any = ("testing", 3)) -> dict[str, int]:
        counts = self.schedd.act(getattr(self.htcondor.JobAction, action), which, reason=reason)
        return {
            name: int(counts[name])
            for name in sorted(counts)
            if name.startswith("Total") and name not in ("TotalJobAds", "TotalChangedAds")
        }

    def ids(self, which: str, *procs: int) -> list[str]:
        return [f"{which.rpartition(' ')[2]}.{proc}" for proc in procs]

    # ------------------------------------------------------------ what is seen

    def shown(self, ads: Sequence[Mapping[str, object]], via: str = "query", *, refused: bool = False) -> list[dict[str, object]]:
        """Each ad as the helper gives it, and as the backend takes it. ``refused``: the negotiator has said so; else it may have."""
        read = queue_state if via == "query" else history_state
        rows: list[dict[str, object]] = []
        for whole in ads:
            dropped: set[str] = set() if refused else {"LastRejMatchReason"}
            if whole.get("JobStatus") != COMPLETED:  # it depends on who was first to know
                dropped |= {"ExitBySignal", "ExitSignal"}
            ad = {name: value for name, value in whole.items() if name not in dropped}
            state = read(ad)
            assert state is not None
            plain = {name: self.plain(name, ad[name]) for name in sorted(ad) if name != "ClusterId"}
            listed = {"listed": state.listed.value, "restart": state.restart, "cause": state.cause.value, "exit_status": state.exit_status}
            rows.append({"ad": plain, "state": {**listed, "ticket": state.ticket, "reason": self.text(state.reason)}})
        return rows

    def plain(self, name: str, value: object) -> object:
        if name in TIMES:
            return "TIME" if isinstance(value, int | float) and value > 1e9 else value
        if name in HOSTS:
            return re.sub(r"^slot\d+(_\d+)?@\S+$", "SLOT@MACHINE", str(value))
        return self.text(value) if isinstance(value, str) else value

    def text(self, words: str) -> str:
        words = words.replace(str(self.folder), "FOLDER").replace(self.name, "NAME")
        words = re.sub(r"slot\d+(_\d+)?@[A-Za-z0-9.-]*[A-Za-z0-9]", "SLOT@MACHINE", words)
        # The text of a failed transfer ends in what each side says of it; sides and addresses differ from place to place.
        words = re.sub(r"(at access point )\S+", r"\1MACHINE", words)
        words = re.sub(r"\b127\.[0-9.]*\d|(?<= at )\d+\.\d+\.\d+\.\d+", "ADDRESS", words)
        words = re.sub(r"<(ADDRESS|[0-9.:\[\]])[^>]*>", "ADDRESS", words)
        words = re.sub(r"\b[1-9]\d*\.(\d+)\b", r"CLUSTER.\1", words)
        words = words.replace(f"by user {getpass.getuser()}", "by user USER").replace("by user alice", "by user USER")
        return words.replace(socket.gethostname(), "MACHINE") if len(socket.gethostname()) > 3 else words

    def refused(self, call: Callable[[], object]) -> str:
        try:
            return f"not refused: {call()!r}"
        except Exception as error:  # noqa: BLE001  whatever the bindings raise
            self.condor.forget()
            return self.text(f"{type(error).__name__}: {error}")

    # ------------------------------------------------------------ the steps

    def run(self) -> Iterator[tuple[str, object]]:
        for name in sorted(vars(type(self))):
            if name.startswith("step_") and self.only in name:
                for label, said in getattr(self, name)():
                    yield f"{name.removeprefix('step_')}: {label}", said

    def step_a_submission_hold_release_vacate_and_removal(self) -> Iterator[tuple[str, object]]:
        which = self.submit(count=2, own={"My.Go": "false"})
        yield "waiting", self.shown(sorted(self.query(which), key=lambda ad: int(str(ad["ProcId"]))))
        self.schedd.edit(which, "Go", "true")
        yield "running", self.shown(self.until(which, 2, 2))
        one, other = self.ids(which, 0), self.ids(which, 1)
        yield "hold", self.act("Hold", one)
        first = f"{which} && ProcId == 0"
        self.schedd.edit(which, "Go", "false")
        yield "held", self.shown(self.until(first, 5, also="LastRemoteHost"))
        yield "hold again", self.act("Hold", one)
        yield "release what runs", self.act("Release", other)
        yield "release", self.act("Release", one)
        yield "released", self.shown(self.until(first, 1))
        self.schedd.edit(which, "Go", "true")
        yield "running again", self.shown(self.until(first, 2, also="RemoteHost"))
        self.schedd.edit(which, "Go", "false")
        yield "vacate", self.act("Vacate", one)
        yield "vacated", self.shown(self.until(first, 1, also="LastRemoteHost"))
        self.schedd.edit(which, "Go", "true")
        yield "running for the third time", self.shown(self.until(first, 2, also="RemoteHost"))
        yield "remove", self.act("Remove", [*one, "999999.0"], ("not needed", 1))
        yield "removed", self.shown(self.until(first, 3, via="history"), "history")
        yield "remove again", self.act("Remove", [*one, *other])
        yield "the other removed", self.shown(self.until(f"{which} && ProcId == 1", 3, via="history"), "history")
        yield "nothing left", self.query(which)

    def step_b_reasons(self) -> Iterator[tuple[str, object]]:
        reasons = (("a tuple", ("words", 4)), ("a plain string", "words"), ("none", None))
        for label, reason in reasons:
            which = self.submit(own={"My.Go": "false"})
            self.act("Remove", which, reason)
            yield label, self.shown(self.until(which, 3, via="history"), "history")

    def step_c_ends(self) -> Iterator[tuple[str, object]]:
        for script, transfer in (("exit7", "IF_NEEDED"), ("exit7", "YES"), ("exit0", "IF_NEEDED"), ("kill9", "YES")):
            which = self.submit(script, should_transfer_files=transfer)
            yield f"{script}, {transfer}", self.shown(self.until(which, 4, via="history"), "history")
            yield "its log", (self.folder / f"{self.ids(which, 0)[0]}.log").read_text()

    def step_d_what_a_job_finds(self) -> Iterator[tuple[str, object]]:
        which = self.submit("ad", should_transfer_files="YES", transfer_input_files=f"{self.folder}/moved")
        self.until(which, 4, via="history")
        yield "with transfer", (self.folder / f"{self.ids(which, 0)[0]}.log").read_text().split("\n")

    def step_e_what_does_not_listen(self) -> Iterator[tuple[str, object]]:
        which = self.submit("deaf", job_max_vacate_time="2")
        self.until(which, 2, also="RemoteHost")
        time.sleep(1)  # its trap is set by then; nothing tells
        self.act("Remove", which, ("not needed", 1))
        yield "its shadow is out", self.shown(self.until(which, 3))
        yield "removed", self.shown(self.until(which, 3, via="history"), "history")

    def step_f_held_at_the_start(self) -> Iterator[tuple[str, object]]:
        which = self.submit(executable="/nonexistent/pilot", transfer_executable="false")
        yield "no executable", self.shown(self.until(which, 5, also="LastRemoteHost"))
        self.act("Remove", which)
        yield "removed", self.shown(self.until(which, 3, via="history"), "history")
        which = self.submit(should_transfer_files="YES", transfer_input_files=f"{self.folder}/absent")
        yield "no input", self.shown(self.until(which, 5, also="LastRemoteHost"))

    def step_g_never_matched(self) -> Iterator[tuple[str, object]]:
        which = self.submit(request_memory=str(900 << 10))
        yield "impossible memory", self.shown(self.until(which, 1, also="LastRejMatchReason"), refused=True)
        which = self.submit(requirements='(TARGET.Machine =?= "nosuch" || time() - QDate > 3600)')
        yield "no such machine", self.shown(self.until(which, 1, also="LastRejMatchReason"), refused=True)

    def step_h_machines(self) -> Iterator[tuple[str, object]]:
        some = self.condor.machines("TARGET.Cpus >= 1 && TARGET.Memory >= 64")
        yield "there are some", bool(some)
        yield "without those", self.condor.machines("TARGET.Cpus >= 1 && " + " && ".join(f'TARGET.Machine =!= "{one}"' for one in some))
        yield "unscoped", self.condor.machines("Cpus >= 1 && Memory >= 64") == some
        yield "impossible", self.condor.machines("TARGET.Memory >= 900000000")
        yield "undefined", self.condor.machines("HasNoSuchThing")

    def step_i_submitted_on_hold(self) -> Iterator[tuple[str, object]]:
        which = self.submit(hold="true")
        yield "held", self.shown(self.query(which))
        self.act("Remove", which)
        yield "removed", self.shown(self.until(which, 3, via="history"), "history")

    def step_j_uploads(self) -> Iterator[tuple[str, object]]:
        which = self.submit("exit7", spool=True, should_transfer_files="YES")
        yield "it ends", self.shown(self.until(which, 4, via="history"), "history")
        yield (
            "no such file",
            self.refused(lambda: self.submit(spool=True, should_transfer_files="YES", transfer_input_files=f"{self.folder}/absent")),
        )

    def step_k_refused(self) -> Iterator[tuple[str, object]]:
        yield "universe", self.refused(lambda: self.submit(universe="nosuch"))
        yield "executable", self.refused(lambda: self.submit(executable=""))
        yield "folder", self.refused(lambda: self.submit(initialdir=f"{self.folder}/absent"))
        yield "two dollars", self.refused(lambda: self.submit(initialdir=f"{self.folder}/$(DOLLAR)$(DOLLAR)(Name)"))
        yield "constraint", self.refused(lambda: self.query("ClusterId == (("))
        yield "constraint of an action", self.refused(lambda: self.act("Remove", "ClusterId == (("))
        yield "no such schedd", self.refused(self.find_another).replace(f" in pool {self.pool}", "")
        yield "memory that is none", self.shown(self.query(self.submit(request_memory="banana", own={"My.Go": "false"})))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.submit(acounting_group="physics", own={"My.Go": "false"})
        yield "a misspelt command is not noticed", [str(one.message) for one in said]

    def find_another(self) -> object:
        return Condor(self.pool, "nosuch").query("true", [])

    def step_l_words(self) -> Iterator[tuple[str, object]]:
        which = self.submit(own={"My.Go": "false", "My.WindlassTicket": r'"a $(DOLLAR)(x) \"b\" \ c"'})
        yield "a dollar, a quote, a backslash", self.shown(self.query(which))
        yield "found by it", len(self.query(rf'{which} && WindlassTicket == "a $(x) \"b\" \ c"'))
        yield "nothing", self.query(f"{which} && NoSuchAttribute == 3")

    def step_m_periodic_remove(self) -> Iterator[tuple[str, object]]:
        which = self.submit(periodic_remove="(JobStatus == 2 && time() - JobCurrentStartDate > 1)")
        self.until(which, 2)
        yield "overdue", self.shown(self.until(which, 3, via="history"), "history")
        which = self.submit(hold="true", periodic_remove="(JobStatus == 5 && HoldReasonCode =!= 16 && time() - EnteredCurrentStatus > 1)")
        yield "held too long", self.shown(self.until(which, 3, via="history"), "history")


def main(argv: Sequence[str]) -> int:
    folder, collector, schedd = argv[:3]
    steps = Steps(Path(folder), collector, schedd, *argv[3:])
    try:
        for name, said in steps.run():
            print(json.dumps({"step": name, "said": said}), flush=True)
    finally:
        for cluster in steps.clusters:
            steps.act("Remove", f"ClusterId == {cluster}", ("the steps end", 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
