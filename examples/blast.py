"""Which known proteins are like mine? BLAST over a file of many sequences, on pilots that nobody has installed BLAST on.

    python examples/blast.py                                    # made-up queries; fetches BLAST and a database from NCBI, 1 GB
    python examples/blast.py --queries mine.fasta --pool slurm  # yours, on Slurm (or htcondor, or a pool of your windlass.toml)

Program and database are named by their addresses.  The first worker of the run fetches them, the others have them from it, each
unpacks them once, and all keep them (``"forever"``) for the next run, which fetches nothing.  Each call is one search for a few queries, a
program of the shell in a directory of its own: it finds its inputs there by name, and BLAST its database by an environment variable.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path

import windlass
from windlass import Command, CommandFailed, File, Manager

NCBI = "https://ftp.ncbi.nlm.nih.gov/blast"
PROGRAM = f"{NCBI}/executables/blast+/2.16.0/ncbi-blast-2.16.0+-x64-linux.tar.gz"
DATABASE = f"{NCBI}/db/landmark.tar.gz"


def read_fasta(path: Path) -> list[str]:
    """Its sequences, each with the line that names it."""
    return [f">{one.strip()}\n" for one in path.read_text().split(">") if one.strip()]


def make_up(count: int) -> list[str]:
    """As many sequences of 128 amino acids each, the same ones each time."""
    chance = random.Random(0)
    return [f">made-up-{number}\n{''.join(chance.choices('ACDEFGHIKLMNPQRSTVWY', k=128))}\n" for number in range(count)]


def search(program: File, database: File, name: str, queries: File) -> Command:
    """One search: the best hit of each query, as ``query, hit, score`` in a line."""
    return Command(
        f"program/*/bin/blastp -db {name} -query queries.fasta -max_target_seqs 1 -outfmt '6 qseqid sseqid bitscore'",
        inputs={"program": program, "database": database, "queries.fasta": queries},
        env={"BLASTDB": "database"},
        timeout="30min",
    )


def hits(manager: Manager, program: str, database: str, queries: list[str], size: int) -> Iterator[tuple[str, str, float]]:
    """Query, hit and score, as the searches end, of ``size`` queries each."""
    tools, proteins = (manager.declare_archive(manager.declare_url(address, level="forever"), "forever") for address in (program, database))
    name = database.rpartition("/")[2].partition(".")[0]
    searches = [
        manager.submit(search(tools, proteins, name, manager.declare_buffer("".join(queries[first : first + size]))))
        for first in range(0, len(queries), size)
    ]
    for ended in as_completed(searches):
        try:
            lines = ended.result().stdout.splitlines()
        except CommandFailed as error:  # one bad query is no reason to lose the others
            print(f"a search ended with exit code {error.exit_code}: {error.stderr}")
            continue
        for query, hit, score in (line.split("\t") for line in lines):
            yield query, hit, float(score)


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a database of proteins for many sequences, with BLAST.")
    parser.add_argument("--queries", type=Path, help="a FASTA file; without one, queries are made up")
    parser.add_argument("--size", type=int, default=16, help="queries of one search")
    parser.add_argument("--program", default=PROGRAM, help="address of BLAST's archive")
    parser.add_argument("--database", default=DATABASE, help="address of the archive of a database NAME.tar.gz")
    parser.add_argument("--pool", default="local", help="where: local, slurm, htcondor, or a pool of your windlass.toml")
    chosen = parser.parse_args()
    queries = read_fasta(chosen.queries) if chosen.queries else make_up(160)
    with windlass.Manager() as manager, windlass.Factory(manager, chosen.pool):
        found = sorted(hits(manager, chosen.program, chosen.database, queries, chosen.size), key=lambda one: -one[2])
    print(f"{'query':<20}{'most like':<30}{'score':>8}")
    for query, hit, score in found:
        print(f"{query:<20}{hit:<30}{score:>8g}")
    print(f"{len(found)} of {len(queries)} queries are like something known")


if __name__ == "__main__":
    main()
