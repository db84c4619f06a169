"""The process that talks to HTCondor: the only one that loads its Python bindings.

Calls of the bindings block and hold the GIL: a schedd that accepts a connection and never answers stops every thread of the process
that asked it.  So they are made here, in a process of their own, which `windlass.factory.condor_client` kills when the time for a
request is over.

Theory of operation
-------------------
Requests come on standard input, answers go to standard output, one JSON object a line, one at a time; the first line out says
``{"ready": ...}``, or why not.  What the bindings print goes to standard error.  The end of standard input, or of the parent, is the end
of this process.

An answer is ``{"value": ...}`` or ``{"error": ...}``, with ``"warnings"`` where the bindings had some.  Ads are given with every
expression evaluated, as plain values: what has none (undefined, error) is left out.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
#: What a partitionable slot has left, and what it has when nothing runs there.
WHOLE: Final = {"Cpus": "TotalSlotCpus", "Memory": "TotalSlotMemory", "Disk": "TotalSlotDisk", "GPUs": "TotalSlotGPUs"}
#: Submit commands by which users ask for credentials.
CREDENTIAL_WORDS: Final = ("use_oauth_services", "use_scitokens")
#: What is said before the address where users have to consent, once, to credentials of their jobs.
CONSENT: Final = "HTCondor takes jobs with these credentials when you have allowed it at "
#: Stands between what failed of an upload and why its jobs could not be removed: they may be there.
NOT_REMOVED: Final = "; and its jobs could not be removed: "
#: The text of a failed start for lack of the bindings begins so.
NO_BINDINGS: Final = "no bindings: "


class Condor:
    """The schedd, found when it is first needed, and again after each error: it may have come back at another address."""

    def __init__(self, collector: str, schedd: str) -> None:
        # By name: where the extra is not installed, type checkers know nothing of them.
        self._htcondor: Any = importlib.import_module("htcondor2")
        self._classad: Any = importlib.import_module("classad2")
        self._pool, self._name = collector, schedd
        self._schedd: Any = None

    def forget(self) -> None:
        """Look for the schedd again."""
        self._schedd = None

    def _collector(self) -> Any:
        return self._htcondor.Collector(self._pool or None)

    def _found(self) -> Any:
        if self._schedd is None:
            place = self._collector().locate(self._htcondor.DaemonType.Schedd, self._name or None)
            if place is None:
                where = f" in pool {self._pool}" if self._pool else ""
                raise LookupError(f"there is no schedd {self._name or 'at all'}{where}; condor_status -schedd lists those that are there")
            self._schedd = self._htcondor.Schedd(place)
        return self._schedd

    # ---------------------------------------------------------------- requests

    def query(self, constraint: str, projection: list[str]) -> list[dict[str, object]]:
        """All jobs of the queue that match."""
        return [self._plain(ad, projection) for ad in self._found().query(constraint=constraint, projection=projection)]

    def history(self, constraint: str, projection: list[str], match: int, since: str) -> list[dict[str, object]]:
        """Jobs that have left the queue, newest first, at most ``match``; the search ends where ``since`` is true."""
        ads = self._found().history(constraint=constraint, projection=projection, match=match, since=since or None)
        return [self._plain(ad, projection) for ad in ads]

    def submit(self, words: dict[str, str], count: int, spool: bool) -> dict[str, int]:
        """One cluster of so many jobs."""
        schedd = self._found()
        description = self._htcondor.Submit(words)
        self._issue_credentials(description)
        result = schedd.submit(description, count=count, spool=spool)
        if spool:
            try:
                schedd.spool(result)
            except Exception as error:
                # Without their files the jobs would stay held for ever.
                try:
                    self.remove([str(result.cluster())], "Windlass: the upload of its files failed", 1)
                except Exception as second:  # noqa: BLE001  it is told: whoever hears of no jobs looks for none
                    raise RuntimeError(f"{error}{NOT_REMOVED}{second}") from None
                raise
        return {"cluster": int(result.cluster()), "first": int(result.first_proc()), "count": int(result.num_procs())}

    def _issue_credentials(self, description: Any) -> None:
        """Give the access point what jobs are to have with them, as condor_submit does, and the bindings do only when they are told to."""
        try:
            asked = any(str(description.get(word) or "false").lower() not in ("false", "no", "0") for word in CREDENTIAL_WORDS)
            if not asked and not getattr(self._htcondor, "param", {}).get("SEC_CREDENTIAL_PRODUCER"):
                return
            url = description.issue_credentials()
        except Exception as error:  # noqa: BLE001  whatever it is, who has stored them by hand needs nothing
            warnings.warn(f"no credentials could be stored for jobs: {error}", stacklevel=1)
            return
        if url:
            raise RuntimeError(f"{CONSENT}{url}")

    def machines(self, requirements: str) -> list[str]:
        """Names of the pool's machines that meet the requirements of a job, when nothing else runs there."""
        job = self._classad.ClassAd({"Requirements": self._classad.ExprTree(requirements)})
        names = {name.rpartition(".")[2] for name in job.externalRefs(job.lookup("Requirements"))}
        ads = self._collector().query(
            self._htcondor.AdType.Startd,
            constraint='SlotType =!= "Dynamic"',
            projection=sorted({name for name in names if name} | {"Machine", *WHOLE.values()}),
        )
        found: set[str] = set()
        for ad in ads:
            for name, whole in WHOLE.items():
                if whole in ad:
                    ad[name] = ad.eval(whole)
            if ad.matches(job):
                found.add(str(ad.eval("Machine")))
        return sorted(found)

    def remove(self, which: list[str] | str, reason: str, code: int) -> dict[str, object]:
        """Remove jobs, by their ids or by a constraint; the schedd's counts."""
        # A plain string as reason is dropped without a word.
        answer = self._found().act(self._htcondor.JobAction.Remove, which, reason=(reason, code))
        return {} if answer is None else self._plain(answer, list(answer))

    def _plain(self, ad: Any, names: Sequence[str]) -> dict[str, object]:
        plain: dict[str, object] = {}
        for name in names:
            if name in ad:
                value = self._value(ad.eval(name))
                if value is not None:
                    plain[name] = value
        return plain

    def _value(self, value: Any) -> object:
        if isinstance(value, self._classad.Value):  # undefined, error: it is an enumeration of numbers
            return None
        if isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, list):
            return [self._value(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
        return None


def answer(condor: Condor, request: Mapping[str, Any]) -> dict[str, object]:
    """Carry out one request."""
    arguments = dict(request)
    operations: dict[str, Callable[..., object]] = {
        "query": condor.query,
        "history": condor.history,
        "submit": condor.submit,
        "remove": condor.remove,
        "machines": condor.machines,
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            reply: dict[str, object] = {"value": operations[arguments.pop("do")](**arguments)}
        except Exception as error:  # noqa: BLE001  the bindings raise what they like; all of it is an answer
            condor.forget()
            reply = {"error": str(error) or type(error).__name__}
    if said:
        reply["warnings"] = [str(one.message) for one in said]
    return reply


def main(argv: Sequence[str]) -> int:
    """``COLLECTOR SCHEDD``, each maybe empty."""
    # The parent may end while a call blocks, and then nothing here would notice. It means the thread that started this process.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: Mapping[str, object]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    collector, schedd = argv
    try:
        condor = Condor(collector, schedd)
    except ImportError as error:
        say({"error": f"{NO_BINDINGS}{error}"})
        return 1
    say({"ready": os.getpid()})
    for line in sys.stdin:
        say(answer(condor, json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
