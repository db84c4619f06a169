"""TaskVine's manager on real pilots: waiting, cancelling, categories, hosts, parameters, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass
import windlass.taskvine as vine
from windlass import UnknownName, UsageError

Until = Callable[[str, Callable[[], object]], None]
Run = Callable[[vine.Task], vine.Task]


# ---------------------------------------------------------------- waiting and cancelling


def test_tasks_are_waited_for_by_tag_and_by_number(m: vine.Manager) -> None:
    numbers: dict[str, int] = {}
    for tag in ("a", "b", "c"):
        t = vine.Task(f"echo {tag}")
        t.set_tag(tag)
        numbers[tag] = m.submit(t)
    by_tag = m.wait_for_tag("c", 60)
    assert by_tag is not None
    assert by_tag.output == "c\n"
    by_number = m.wait_for_task_id(numbers["a"], 60)
    assert by_number is not None
    assert by_number.output == "a\n"
    assert m.wait_for_tag("c", 5) is None  # there is none any more
    assert m.wait_for_task_id(999_999) is None
    rest = m.wait_for_tag(None, -1)  # any, for ever
    assert rest is not None
    assert rest.tag == "b"
    assert m.wait(0) is None


def test_tasks_that_are_cancelled_come_back_with_that_result(m: vine.Manager, until: Until) -> None:
    """By number, tag and category, whether they run or not; all others go on."""

    def sleeper(tag: str, category: str = "default") -> int:
        t = vine.Task("sleep 600", tag=tag, category=category)
        return m.submit(t)

    runs = sleeper("runs")
    until("it runs", lambda: m.status("manager")[0]["tasks_running"])
    twins = [sleeper("twin"), sleeper("twin")]
    others = [sleeper("other", "kind") for _ in range(3)]
    assert m.cancel_by_task_id(runs) == 1
    assert m.cancel_by_task_id(runs) == 0
    assert m.cancel_by_task_tag("twin") == 1
    assert m.cancel_all_by_tag("twin") == 1
    assert m.cancel_by_category("kind") == 3
    assert m.cancel_by_task_id(12345678) == 0
    good = m.submit(vine.Task("echo good"))
    ended: dict[int, vine.Task] = {}
    while not m.empty():
        t = m.wait(60)
        assert t is not None
        ended[t.id] = t
    assert ended.pop(good).output == "good\n"
    assert {number: t.result for number, t in ended.items()} == dict.fromkeys([runs, *twins, *others], "cancelled")
    assert not any(t.completed() for t in ended.values())


class Later:
    """In the place of the threads that take ended tasks in: they come to it when it is closed."""

    def __init__(self) -> None:
        self.works: list[Callable[[], object]] = []

    def __call__(self, work: Callable[[], object]) -> None:
        self.works.append(work)

    def close(self) -> None:
        for work in self.works:
            work()


def test_one_after_the_other_is_cancelled_until_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manual's loop, though those that were cancelled have not been taken in."""
    monkeypatch.setattr("windlass.taskvine.manager.Takers", Later)
    with vine.Manager(0) as m:
        for _ in range(3):
            m.submit(vine.Task("sleep 600", tag="my-tag"))
        count = 0
        while m.cancel_by_tasktag("my-tag") > 0:
            count += 1
        assert count == 3
        assert (m.stats.tasks_with_results, m.empty()) == (0, False)


def test_waiting_lets_other_threads_run_and_takes_parts_of_seconds(alone: vine.Manager) -> None:
    """A manager without workers: nothing ends."""
    alone.submit(vine.Task("true"))
    ticks: list[int] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.001):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    assert alone.wait(0.5) is None
    over.set()
    thread.join()
    assert len(ticks) > 20
    assert not alone.empty()
    assert alone.cancel_all() == 1
    cancelled = alone.wait(5)
    assert cancelled is not None
    assert cancelled.result == "cancelled"
    assert alone.empty()


# ---------------------------------------------------------------- categories, workers, parameters


def test_categories_give_resources_to_tasks_that_set_none(m: vine.Manager, run: Run) -> None:
    m.set_resources_max({"cores": 1})
    m.set_category_resources_max("wide", {"cores": 2, "memory": 50, "disk": 10, "gpus": 0})
    m.set_category_resources_min("wide", {"memory": 20})
    wide, narrow, own = (vine.Task("echo $CORES $OMP_NUM_THREADS") for _ in range(3))
    wide.set_category("wide")
    own.set_category("wide")
    own.set_cores(1)
    assert (run(wide).output, run(narrow).output, run(own).output) == ("2 2\n", "1 1\n", "1 1\n")
    assert wide.resources_requested.memory == 50
    m.set_category_mode("growing", "min waste")
    m.set_category_first_allocation_guess("growing", {"memory": 10})
    grows = vine.Task("true", category="growing")
    assert run(grows).resources_allocated.memory == 10
    assert grows.future is not None
    m.set_resources_max({})


def test_a_category_has_no_more_tasks_under_way_than_it_may(m: vine.Manager) -> None:
    m.set_category_max_concurrent("few", 1)
    for _ in range(3):
        m.submit(vine.Task("sleep 600", category="few"))
    assert m.stats_category("few").tasks_running == 1
    assert m.stats_category("few").tasks_waiting == 2
    assert m.cancel_by_category("few") == 3
    while not m.empty():
        assert m.wait(60) is not None
    for _ in range(3):
        m.submit(vine.Task("echo x", category="few"))
    done = [m.wait(60) for _ in range(3)]
    assert all(t is not None and t.successful() for t in done)


def test_what_a_held_task_is_to_make_may_be_given_to_others(m: vine.Manager) -> None:
    """A file that stays on workers, or a result: who needs it is held as well, whatever its category."""
    m.set_category_max_concurrent("few", 1)
    words: list[str] = []
    for number in range(3):
        temp = m.declare_temp()
        makes = vine.Task(f"echo {number} > x", category="few")
        makes.add_output(temp, "x")
        reads = vine.Task("cat x", tag="reads")
        reads.add_input(temp, "x")
        power = vine.PythonTask(pow, number, 3)
        power.set_category("few")
        root = vine.PythonTask(abs, power)
        root.set_tag("root")
        for t in (makes, reads, power, root):
            m.submit(t)
    while not m.empty():
        done = m.wait(60)
        assert done is not None
        assert done.successful(), done.std_output
        words += [f"{done.tag} {done.output}".strip()] if done.tag else []
    assert sorted(words) == ["reads 0", "reads 1", "reads 2", "root 0", "root 1", "root 8"]


def test_who_needs_what_a_held_task_is_to_make_ends_with_it(alone: vine.Manager) -> None:
    """And says so; those that are cancelled together are all cancelled."""
    alone.set_category_max_concurrent("few", 1)

    def submit_three() -> list[vine.Task]:
        tasks: list[vine.Task] = [vine.Task("true", category="few"), vine.Task("true", category="few", tag="makes"), vine.Task("cat x")]
        temp = alone.declare_temp()
        tasks[1].add_output(temp, "x")
        tasks[2].add_input(temp, "x")
        for t in tasks:
            alone.submit(t)
        assert tasks[2].future is None
        return tasks

    _, makes, reads = submit_three()
    assert alone.stats_category("default").tasks_waiting == 1
    assert alone.cancel_by_task_tag("makes") == 1
    assert alone.wait(60) is makes
    assert alone.wait(60) is reads
    assert (makes.result, reads.result) == ("cancelled", "input missing")
    assert "makes, which was not run" in reads.std_output
    tasks = submit_three()
    assert alone.cancel_all() == 4
    while alone.wait(60):
        pass
    assert [t.result for t in tasks] == ["cancelled"] * 3


def test_a_manager_may_be_named_until_something_is_done_with_it() -> None:
    """At the same port; the name is what the command line finds it by, and nobody else can have it."""
    with vine.Manager(0) as m, vine.Manager(0, "taken"):
        port = m.port
        m.set_name("named")
        assert (m.name, m.port, m.manager.connection_file.parent.name) == ("named", port, "named")
        m.set_name("named")
        m.submit(vine.Task("true"))
        with pytest.raises(UsageError, match="in use already"):
            m.set_name("other")
        late = vine.Manager(0)
        with pytest.raises(UsageError, match="'taken' is running already"):
            late.set_name("taken")
        assert late.wait() is None


def test_nothing_runs_on_a_blocked_host_until_it_is_unblocked(until: Until) -> None:
    """Its workers leave."""
    host = os.uname().nodename
    with vine.Manager(0) as m, vine.Factory("local", manager=m, cores=1, max_workers=1):
        before = vine.Task("true")
        m.submit(before)
        assert m.wait(60) is before
        assert before.successful()
        m.block_host(host)
        until("its worker has left", lambda: not m.status("workers"))
        m.submit(vine.Task("echo after"))
        assert m.wait(0.5) is None
        m.unblock_host(host)
        after = m.wait(60)
        assert after is not None
        assert after.output == "after\n"


def test_tuning_does_what_has_a_meaning_says_what_has_none_and_refuses_slips(alone: vine.Manager) -> None:
    assert alone.tune("hungry-minimum", 50) == 0
    assert alone.hungry() == 50
    alone.submit(vine.Task("true"))
    assert alone.hungry() == 49
    with pytest.warns(vine.NoEffect, match=r"tune\('transient-error-interval', 1\) has no effect here: a task that fails costs"):
        alone.tune("transient-error-interval", 1)
    with pytest.raises(UnknownName, match="there is no parameter to tune 'hungry-minumum'; did you mean 'hungry-minimum'"):
        alone.tune("hungry-minumum", 20)
    with pytest.raises(UsageError, match="hungry-minimum"):
        alone.tune("hungry-minimum", "many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_tasks_wait_for_as_many_workers_as_were_asked_for(alone: vine.Manager) -> None:
    alone.tune("wait-for-workers", 1)
    held = vine.Task("echo x")
    alone.submit(held)
    assert held.future is None
    with vine.Factory("local", manager=alone, min_workers=1, max_workers=1):
        done = alone.wait(60)
        assert done is held
        assert held.successful()


def test_a_task_that_could_not_be_submitted_is_not_held(alone: vine.Manager) -> None:
    """Nor submitted when others go on."""
    alone.tune("wait-for-workers", 1)
    alone.manager.close()
    with pytest.raises(windlass.Closed):
        alone.submit(vine.Task("true"))
    assert alone.stats_category("default").tasks_waiting == 0
    assert alone.empty()


LEAVES_ITS_WORKERS = """
import os, time
import windlass.taskvine as vine

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)

class Slow:
    def __reduce__(self):
        return wait_for, ("left",)

m = vine.Manager(0)
with vine.Factory("local", manager=m, cores=1, max_workers=1):
    slow = [vine.PythonTask(Slow) for _ in range(4)]  # unpacking what they give keeps all threads busy
    last = vine.Task("echo x > out")
    last.add_output(m.declare_file("out"), "out")
    for tasks in (slow, [last]):
        for t in tasks:
            m.submit(t)
        while not all(t.future.done() for t in tasks):
            time.sleep(0.01)
# The worker has gone, with what the last task made
open("left", "w").close()
while sum(each.completed() for each in list(m._ready.values())) < 4:
    time.sleep(0.01)
"""


def test_a_program_that_does_not_close_its_manager_ends_though_outputs_cannot_come_any_more(tmp_path: Path) -> None:
    """The manual's own form has no ``with`` for the manager."""
    (tmp_path / "script.py").write_text(LEAVES_ITS_WORKERS)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not (tmp_path / "out").exists()


def alarm_threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("windlass-alarms")


def test_as_many_tasks_as_there_are_may_be_held_and_cancelled(alone: vine.Manager) -> None:
    alone.set_category_max_concurrent("few", 1)
    before = alarm_threads()
    for _ in range(20_000):
        alone.submit(vine.Task("true", category="few", time_end=(time.time() + 3600) * 1e6))
    assert alarm_threads() == before + 1
    assert alone.cancel_all() == 20_000
    while not alone.empty():
        done = alone.wait(60)
        assert done is not None
        assert done.result == "cancelled"


def test_a_manager_that_is_closed_has_no_tasks(tmp_path: Path) -> None:
    """Programs that loop until it is empty come to an end. Its journal is that of `windlass.Manager`."""
    m = vine.Manager(0, journal=tmp_path / "journal")
    number = m.submit(vine.Task("true"))
    m.close()
    while not m.empty():
        t = m.wait(5)
        assert t is None or (t.id, t.result) == (number, "cancelled")
    assert m.wait() is None
    assert (tmp_path / "journal").is_dir()


REFUSED: list[tuple[Callable[[vine.Manager], object], str]] = [
    (lambda m: vine.Task("x", input_files={}), "there is no option of a task 'input_files'; did you mean 'inputs'"),
    (lambda m: vine.Task({"command": "x"}), r"write Task\(\*\*{...}\)"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task(""), "write the command as a text"),
    (lambda m: m.submit("x"), "write submit"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task("x").add_input("file", "x"), "the first argument is a file"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task("x").add_input(m.declare_temp(), "/abs"), "not in the task's own directory"),
    (lambda m: m.submit(_reads(m.declare_temp())), "is written by no task that was submitted"),
    (lambda m: m.submit(_reads(m.declare_file("/no/such/file"))), "No such file"),
    (lambda m: m.submit(_writes(m.declare_url("file:///etc/passwd"))), "cannot be an output"),
    (lambda m: m.submit(_within(m, "run/conf.txt", "run")), r"has 'run/conf.txt' already.*mkdir all && cp -rL"),
    (lambda m: m.declare_minitask(_within(m, "ctx/image.img"), "ctx"), r"has 'ctx/image.img' already.*mkdir all && cp -rL"),
    (lambda m: m.submit(_within(m, "state", "state")), r"what it is to change it copies to another path first"),
    (lambda m: m.declare_file("x.$ARCH"), "workers run Linux"),
    (lambda m: m.declare_file("x", cache="always-ish"), "cache='always-ish': write False or 'task'"),
    (lambda m: vine.Task("x").add_feature("a100"), "a pool of their own"),
    (lambda m: vine.PythonTask(abs, 1).add_environment(m.declare_temp()), "a function's environment is its worker's"),
    (lambda m: vine.Task("x").add_poncho_package("packed.tar.gz"), "the first argument is a file"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Factory("pbs", manager=m).start(), "there is no pool or batch backend 'pbs'"),
    (lambda m: vine.Factory("local", manager=m, max_worker=3), "did you mean 'max_workers'"),
    (lambda m: vine.Factory("slurm", manager=m, batch_options="--account=x"), "batch_options is not here: .*factory.account"),
    (lambda m: vine.Factory("slurm", manager=m, wrapper="x"), "write factory.setup"),
    (lambda m: vine.Factory("slurm", manager=m, k8s_image="x"), "no backend for Kubernetes"),
    (lambda m: vine.Factory("local", "no-such-manager").start(), "no-such-manager"),
    (lambda m: vine.Factory("local", "this", manager_name="that"), "give one of them"),
    (lambda m: vine.Manager(0, nmae="x"), "did you mean 'name'|there is no option of Manager 'nmae'"),
    (lambda m: m.set_category_resources_max("a", {"core": 1}), "did you mean 'cores'"),
    (lambda m: m.set_category_mode("a", "maximum"), "there is no mode of a category 'maximum'"),
    (lambda m: m.enable_tasks_cache(), "journal="),
]


def _reads(file: vine.File) -> vine.Task:
    t = vine.Task("cat in")
    t.add_input(file, "in")
    return t


def _within(m: vine.Manager, source: str, target: str = "") -> vine.Task:
    t = vine.Task("true")
    t.add_input(m.declare_buffer("x"), source)
    if target:
        t.add_output(m.declare_buffer(), target)
    return t


def _writes(file: vine.File) -> vine.Task:
    t = vine.Task("echo > out")
    t.add_output(file, "out")
    return t


def test_what_cannot_be_is_refused_where_it_is_written(alone: vine.Manager) -> None:
    """And leaves nothing behind."""
    for write, text in REFUSED:
        with pytest.raises(UsageError, match=text):
            write(alone)
    assert alone.empty()


def test_what_is_done_anyway_or_has_no_meaning_is_passed_over_with_the_reason(alone: vine.Manager) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vine.Manager(0, ssl=True, shutdown=True).close()
        alone.enable_peer_transfers()
        alone.enable_monitoring()
        alone.log_debug_app("a line")
    for use in (
        lambda: alone.set_password("secret"),
        lambda: alone.set_scheduler("files"),
        lambda: alone.enable_disconnect_slow_workers(2),
        lambda: vine.Task("x").add_output(alone.declare_buffer(), "x", watch=True),
        lambda: alone.declare_file("x", peer_transfer=False),
        lambda: vine.Factory("local", manager=alone, workers_per_cycle=5),
        lambda: vine.Factory("local", manager=alone, run_factory_as_manager=True),
        lambda: vine.Manager(0, ssl=("key.pem", "cert.pem")).close(),
    ):
        with pytest.warns(vine.NoEffect, match="has no effect here: ") as warned:
            use()
        assert [each.filename for each in warned] == [__file__], "the warning is at the program's line"
    with pytest.raises(AttributeError, match=r"no 'Executor': write FuturesExecutor"):
        vine.Executor  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match=r"no attribute 'Task': write  import windlass.taskvine as vine"):
        getattr(windlass, "Task")  # noqa: B009
    with pytest.raises(AttributeError, match="did you mean 'PythonTask'"):
        vine.PythonTsk  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_port_for_prometheus_is_that_of_the_managers_metrics() -> None:
    """As Prometheus would find it."""
    with vine.Manager(0, prometheus_port=0) as m, urllib.request.urlopen(m.manager.metrics_url, timeout=30) as page:
        assert b"windlass_up 1" in page.read()
