"""The BLAST example: TaskVine's program with its import changed, and ours; with a small program and database in place of NCBI's."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
#: For each query the entry of $BLASTDB/NAME.fasta that has most of its words of three letters.
BLASTP = r"""#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in -db) db="$2" ;; -query) query="$2" ;; esac
    shift 2
done
[ -r "$BLASTDB/$db.fasta" ] || { echo "BLAST Database error: no $db in '$BLASTDB'" >&2; exit 2; }
awk '
/^>/ { id = substr($1, 2); if (FNR == NR) known[++n] = id; else asked[++q] = id; next }
FNR == NR { text[id] = text[id] $0; next }
{ wanted[id] = wanted[id] $0 }
END {
    for (j = 1; j <= q; j++) {
        most = 0
        for (e = 1; e <= n; e++) {
            score = 0
            for (i = 1; i + 2 <= length(wanted[asked[j]]); i++) score += index(text[known[e]], substr(wanted[asked[j]], i, 3)) > 0
            if (score > most) { most = score; hit = known[e] }
        }
        if (most) printf "%s\t%s\t%d\n", asked[j], hit, most
    }
}' "$BLASTDB/$db.fasta" "$query"
"""
KNOWN = {
    "sp|P00001|WINDLASS": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV",
    "sp|P00002|CAPSTAN": "GSSGSSGWWHHCCYYPPNNDDEEKKRRTTSSVVIILLMMFFAAQQGWPCHYNDEKRTSVILMFAQGWPCHY",
}


class Site(ThreadingHTTPServer):
    """Serves a folder; remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                asked.append(self.path)

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked = asked
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


def pack(path: Path, files: dict[str, str]) -> None:
    """An archive of executable files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """What stands for NCBI's; and a node's disk of the test's own, as copies are kept for ever."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "site").mkdir()
    pack(tmp_path / "site/blast.tar.gz", {"ncbi-blast-0.1+/bin/blastp": BLASTP})
    pack(tmp_path / "site/landmark.tar.gz", {"landmark.fasta": "".join(f">{name}\n{text}\n" for name, text in KNOWN.items())})
    with Site(tmp_path / "site") as site:
        thread = threading.Thread(target=partial(site.serve_forever, poll_interval=0.05))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


def run(folder: Path, *words: str) -> str:
    """The output of a program that must succeed."""
    ran = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout


#: As a user of TaskVine has it: nothing but its import is ours.
TASKVINE = """
import sys
import windlass.taskvine as vine

site = sys.argv[1]
m = vine.Manager(port=[20000, 30000])
m.set_name("blast-of-a-test")
m.enable_peer_transfers()
program = m.declare_untar(m.declare_url(f"{site}/blast.tar.gz", cache="forever"), cache="forever")
database = m.declare_untar(m.declare_url(f"{site}/landmark.tar.gz", cache="forever"), cache="forever")
sequences = ["AYIAKQRQISFVKSHF", "WWHHCCYYPPNN", "KSHFSRQLEERLGL"]
for number, sequence in enumerate(sequences * 2):
    query = m.declare_buffer(f">query-{number}\\n{sequence}\\n")
    t = vine.Task(
        command="blastdir/ncbi-blast-0.1+/bin/blastp -db landmark -query query.file",
        inputs={
            query: {"remote_name": "query.file"},
            program: {"remote_name": "blastdir"},
            database: {"remote_name": "landmark"},
        },
        env={"BLASTDB": "landmark"},
        cores=1,
    )
    m.submit(t)
bad = vine.Task("blastdir/ncbi-blast-0.1+/bin/blastp -db nowhere -query query.file", env={"BLASTDB": "landmark"})
for file, name in ((query, "query.file"), (program, "blastdir"), (database, "landmark")):
    bad.add_input(file, name)
m.submit(bad)

with vine.Factory("local", manager=m, cores=2, min_workers=2, max_workers=2):
    while not m.empty():
        t = m.wait(5)
        if t:
            if t.successful():
                print(t.std_output, end="")
            elif t.completed():
                print(f"task {t.id} ended with exit code {t.exit_code}: {t.std_output}", end="")
            else:
                print(f"task {t.id} failed: {t.result}")
"""


def test_the_program_of_a_taskvine_user_runs_and_nothing_is_fetched_twice(site: Site, tmp_path: Path) -> None:
    """Two workers, many queries: each archive is asked for once, and unpacked once on the node."""
    (tmp_path / "blast.py").write_text(TASKVINE)
    lines = run(tmp_path, "blast.py", site.address).splitlines()
    hits = ["sp|P00001|WINDLASS\t14", "sp|P00002|CAPSTAN\t10", "sp|P00001|WINDLASS\t12"] * 2
    expected = {f"query-{number}\t{hit}" for number, hit in enumerate(hits)}
    assert set(lines) == expected | {"task 7 ended with exit code 2: BLAST Database error: no nowhere in 'landmark'"}
    assert sorted(site.asked) == ["/blast.tar.gz", "/landmark.tar.gz"]
    assert len(list(tmp_path.glob("node/**/bin/blastp"))) == 1


def test_our_example_finds_the_best_hits_and_keeps_what_it_fetched(site: Site, tmp_path: Path) -> None:
    """A query that is like nothing has no hit; the next run asks for nothing."""
    (tmp_path / "mine.fasta").write_text(">one of mine\nAYIAKQRQISFVKSHF\n>another\nWWHHCCYY\nPPNN\n>nothing\nXXXXXX\n")
    words = [str(ROOT / "examples/blast.py"), "--program", f"{site.address}/blast.tar.gz", "--database", f"{site.address}/landmark.tar.gz"]
    shown = run(tmp_path, *words, "--queries", "mine.fasta", "--size", "2")
    assert re.findall(r"^(\S+) +(sp\S+) +(\d+)$", shown, re.MULTILINE) == [
        ("one", "sp|P00001|WINDLASS", "14"),
        ("another", "sp|P00002|CAPSTAN", "10"),
    ]
    assert shown.endswith("2 of 3 queries are like something known\n")
    asked = list(site.asked)
    assert sorted(asked) == ["/blast.tar.gz", "/landmark.tar.gz"]
    assert run(tmp_path, *words).endswith("of 160 queries are like something known\n")
    assert site.asked == asked
