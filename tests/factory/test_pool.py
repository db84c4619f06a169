"""A pool's options: read, checked, told back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from windlass.errors import UnknownName, UsageError
from windlass.factory.backend import PoolDefaults
from windlass.factory.pool import PoolConfig, make_pool
from windlass.messages import HOST, PoolName, PoolOffer, Resources

MACHINE = PoolDefaults(cores=8.0, shared=True, walltime=0.0)
BATCH = PoolDefaults(max_pilots=4, cores=2.0)


def made(default: PoolDefaults = BATCH, /, **options: object) -> PoolConfig:
    return make_pool("slurm", default, frozenset({"partition"}), options, name="f")


def test_options_are_read_as_people_write_them() -> None:
    pool = made(
        cores="4",
        memory="8GiB",
        gpus=1,
        walltime="2h",
        idle_timeout="5min",
        max_pilots="20",
        setup="module load python\n\n. env/bin/activate",
    )
    assert pool.resources == Resources(4.0, 8 << 30, 1)
    assert (pool.walltime, pool.idle_timeout, pool.max_pilots) == (7200.0, 300.0, 20)
    assert pool.setup == ("module load python", ". env/bin/activate")
    assert made(env={"A": "1"}).env == (("A", "1"),)


def test_an_environment_is_a_path_and_has_its_own_python() -> None:
    assert made(environment=Path("/e.tar.gz")).environment == "/e.tar.gz"
    assert "python:     of /e.tar.gz, unpacked once per node" in made(environment="/e.tar.gz").text()
    with pytest.raises(UsageError, match=r"environment='/e' and python='/p' both say which Python pilots run; give one of them"):
        made(environment="/e", python="/p")


def test_what_is_not_given_is_the_backends_default() -> None:
    pool = made(cores=None, walltime=None)
    assert (pool.name, pool.resources, pool.walltime, pool.max_pilots, pool.min_pilots) == ("f", Resources(2.0), 3600.0, 4, 0)


def test_pilots_of_one_machine_share_its_cores() -> None:
    assert made(MACHINE).resources.cores == 8
    assert made(MACHINE, max_pilots=3).resources.cores == 2
    assert made(MACHINE, max_pilots=20).resources.cores == 1
    assert made(MACHINE, max_pilots=20, cores=3).resources.cores == 3


def test_options_of_the_backend_are_kept_for_it() -> None:
    assert made(partition="short").options == {"partition": "short"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"core": 4}, "there is no option of a slurm pool 'core'; did you mean 'cores'"),
        ({"partitoin": "x"}, "did you mean 'partition'"),
        ({"max_pilots": 0}, "max_pilots=0 is not a whole number of at least 1; write for example max_pilots=4"),
        ({"max_pilots": 2.5}, r"max_pilots=2\.5 is not a whole number"),
        ({"max_pilots": True}, "max_pilots=True is not a whole number"),
        ({"max_pilots": "+-5"}, r"max_pilots='\+-5' is not a whole number"),
        ({"max_pilots": "²"}, "max_pilots='²' is not a whole number"),
        ({"min_pilots": 5}, "min_pilots=5 is more than max_pilots=4"),
        ({"cores": -1}, "cores=-1 is not a whole number of cores; write for example cores=8"),
        ({"cores": "many"}, "cores='many' is not a whole number of cores"),
        ({"cores": 2.5}, r"cores=2\.5 is not a whole number of cores"),
        ({"log_level": "loud"}, "log_level='loud'; write one of"),
        ({"walltime": "banana"}, "walltime='banana': "),
        ({"walltime": float("inf")}, "walltime=inf"),
        ({"memory": "4 apples"}, "memory='4 apples': "),
        ({"walltime": 60, "grace": 60}, "grace=1min leaves nothing of walltime=1min"),
        ({"setup": 5}, "setup=5 is not a list of shell lines"),
        ({"env": "A"}, "env='A' is not a mapping"),
        ({"pool": "a b"}, "'a b' is no name for a pool"),
    ],
)
def test_what_cannot_be_is_refused_with_the_right_line(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        made(BATCH, **options)


def test_unknown_options_are_unknown_names() -> None:
    with pytest.raises(UnknownName) as caught:
        made(bananas=1)
    assert caught.value.name == "bananas"


def test_the_plan_is_told_in_the_users_units() -> None:
    text = made(max_pilots=20, cores=8, memory="16GB", gpus=2, nodes=2, walltime="2h", setup=("module load x",)).text()
    assert text.splitlines() == [
        "pool:       f (backend slurm)",
        "pilots:     0 to 20 at a time, at most 20 of them in the queue",
        "each has:   8 cores, 16GB of memory, 2 GPUs, on each of 2 nodes",
        "in all:     at most 320 cores: 320 calls of one core at a time",
        "each lives: at most 2h",
        "leaves:     after 2min without calls; what runs is given 30s at its end",
        "pauses:     after 3 pilots in a row that ended before serving",
        "setup:      module load x",
    ]


def test_the_offer_says_what_one_pilot_gives() -> None:
    assert made(cores=4, walltime="1h").offer("why") == PoolOffer(PoolName("f"), Resources(4.0), 3600.0, "why", "slurm", HOST, most=4)


def test_the_offer_says_where_pilots_can_reach_the_manager() -> None:
    """What the user says, else the host's own address; pilots of this machine need nothing but loopback."""
    assert made(interface="ib0").offer().listen == "ib0"
    assert made(network="10.1.2.3/16").offer().listen == "10.1.0.0/16"
    local = make_pool("local", replace(PoolDefaults(), remote=False), frozenset(), {}, name="f")
    assert local.offer().listen == ""
    with pytest.raises(UsageError, match="both say where the manager listens; give one of them"):
        made(interface="ib0", network="10.1.0.0/16")
    with pytest.raises(UsageError, match=r"network='home' is not a network; write for example network='10\.1\.0\.0/16'"):
        made(network="home")


def test_the_limit_is_said_in_pilots_cores_or_calls_and_the_smallest_holds() -> None:
    """Eight cores on each of two nodes: a pilot runs sixteen calls of one core."""
    assert made(cores=8, nodes=2, max_cores=100).max_pilots == 6
    assert made(cores=8, nodes=2, max_calls=33).max_pilots == 2
    assert made(cores=8, nodes=2, max_cores=100, max_pilots=3, max_calls="64").max_pilots == 3
    with pytest.raises(UsageError, match="max_cores=4 is less than one pilot has, 8 cores; give it more, or smaller pilots"):
        made(cores=8, max_cores=4)
    with pytest.raises(UsageError, match="max_calls=0 is not a whole number of at least 1"):
        made(max_calls=0)


def test_core_hours_are_part_of_the_plan() -> None:
    assert "uses:       at most 100 core hours in a run of the factory" in made(cores=8, max_core_hours=100).text().splitlines()
    with pytest.raises(UsageError, match="max_core_hours='much' is not"):
        made(max_core_hours="much")
