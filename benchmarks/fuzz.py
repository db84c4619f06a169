"""Coverage-guided fuzzing of all that reads a peer's bytes: `fuzz_targets` under Atheris, by default 10 million runs.

Theory of operation
-------------------
Atheris is no dependency of Windlass: make a virtual environment for it (``pip install atheris`` and Windlass), and run this file with its
Python.  Each target runs in a process of its own, as libFuzzer ends the process when it is done; seeds are messages as they are really
written.  The first input that breaks a rule ends the target and is printed, to become a test in tests/security/test_fuzz.py.

    python benchmarks/fuzz.py                                    all targets, 10,000,000 runs
    python benchmarks/fuzz.py --target core --runs 50000 --json  one of them, shorter
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: The share of the runs that each target gets: the cheap ones more.
SHARES = {"decode": 0.45, "framing": 0.25, "sessions": 0.2, "connections": 0.06, "core": 0.04}
#: Bytes of an input: of state machines these are some dozen steps to some thirty.
LONGEST = {"decode": 400, "framing": 128, "sessions": 100, "connections": 200, "core": 160}
#: Seconds in which one run must end; it takes microseconds.
RUN_SECONDS = 20


def write_seeds(target: str, folder: Path) -> None:
    """Inputs to begin with: for decoders real messages, for the others bytes of all lengths."""
    import msgspec

    from fuzz_targets import Choices, decoders
    from windlass import messages

    chance = random.Random(1)
    spoken: list[Any] = [messages.FromWorker, messages.ToWorker, messages.FromClient, messages.ToClient, messages.FromFactory]
    first: list[Any] = [messages.Hello, messages.Welcome, messages.GetObject, messages.GetFile, messages.FileHead]
    for number in range(200):
        seed = chance.randbytes(1 + number * LONGEST[target] // 200)
        if target == "decode":
            choices = Choices(seed)
            one = choices.value(chance.choice(first)) if number % 3 == 0 else [choices.value(chance.choice(spoken))]
            seed = bytes([chance.randrange(len(decoders()))]) + msgspec.msgpack.encode(one)
        (folder / f"{number:03}").write_bytes(seed)


def fuzz(target: str, runs: int, seeds: str) -> None:
    """Run one target in this process, which ends with it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["windlass", "fuzz_targets"]):
        import fuzz_targets
    options = [f"-runs={runs}", f"-max_len={LONGEST[target]}", f"-timeout={RUN_SECONDS}", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={seeds}/", seeds], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def run(target: str, runs: int) -> dict[str, Any]:
    """Run one target in a process of its own: what came of it."""
    with tempfile.TemporaryDirectory(prefix="windlass-fuzz-") as seeds:
        write_seeds(target, Path(seeds))
        began = time.monotonic()
        command = [sys.executable, __file__, "--inside", seeds, "--target", target, "--runs", str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        seconds = time.monotonic() - began
    counted = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    found = "" if done.returncode == 0 else (done.stdout + done.stderr)[-4000:]
    ran = int(counted[-1]) if counted else 0
    return {"target": target, "runs": ran, "seconds": round(seconds, 1), "covered": int(covered[-1]) if covered else 0, "found": found}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a target broke a rule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=[*SHARES, "all"], default="all")
    parser.add_argument("--runs", type=int, default=10_000_000, help="of all targets together")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", metavar="SEEDS", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.inside:
        fuzz(chosen.target, chosen.runs, chosen.inside)
    shares = SHARES if chosen.target == "all" else {chosen.target: 1.0}
    results: list[dict[str, Any]] = []
    for target, share in shares.items():
        results.append(run(target, int(chosen.runs * share)))
        if not chosen.json:
            print("{target:12} {runs:>12,} runs {seconds:>9,.1f} s {covered:>6} covered {found}".format(**results[-1]), flush=True)
    if chosen.json:
        print(json.dumps(results, indent=1))
    return 1 if any(one["found"] for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
