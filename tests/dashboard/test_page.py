"""The page itself: served for a real manager with real pilots, in a real browser; and who gets none of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from http.client import HTTPMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

import windlass
from windlass.dashboard.child import Child
from windlass.dashboard.guard import HEADERS
from windlass.dashboard.serve import running_dashboard
from windlass.managers import choose_manager
from windlass.runs import find_run, known_runs, runs_folder

if TYPE_CHECKING:
    from browser import Browser

pytestmark = pytest.mark.usefixtures("nothing_left_running")


def double(number: int) -> int:
    return 2 * number


def fails(number: int) -> int:
    raise ValueError(f"number {number} does not <b>converge</b>")


def waits(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def until(what: str, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


@pytest.fixture
def busy(nothing_left_running: None) -> Iterator[windlass.Manager]:
    """A recorded manager with two pilots and two libraries, of whose calls some have failed."""
    with (
        windlass.Manager(name=f"busy{os.getpid()}", record=True) as manager,
        windlass.Factory(manager, "local", name="night", cores=2, max_pilots=2, min_pilots=2),
    ):
        manager.install_library("model", double, fails, imports=["json"])
        manager.install_library("other", waits)
        calls = [manager.submit(windlass.FunctionCall("model", "double", n)) for n in range(50)]
        calls += [manager.submit(windlass.FunctionCall("model", "fails", n)) for n in range(5)]
        calls += [manager.submit(windlass.FunctionCall("other", "waits", 0.05)) for _ in range(4)]
        until("all calls have ended", lambda: all(call.done() for call in calls))
        until("both pilots serve", lambda: len(manager.status()["workers"]) == 2)
        yield manager


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: HTTPMessage
    text: str


def get(link: str, path: str | None = None, headers: Mapping[str, str] | None = None, *, lines: int = 0) -> Answer:
    """What is answered to this path of a link's server (the link's own by default); of a stream so many lines."""
    parts = urlsplit(link)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=20)
    try:
        connection.request("GET", path if path is not None else f"{parts.path}?{parts.query}", headers=dict(headers or {}))
        with connection.getresponse() as answer:
            read = b"".join(answer.readline() for _ in range(lines)) if lines else answer.read()
            return Answer(answer.status, answer.headers, read.decode())
    finally:
        connection.close()


# ---------------------------------------------------------------- who gets in


def test_nothing_is_told_without_the_token_or_the_cookie(busy: windlass.Manager) -> None:
    """Not by a wrong one, not under another site's name; and the text says how to get in."""
    link = busy.dashboard()
    parts = urlsplit(link)
    page = parts.path
    for path in (page, f"{page}?token=x", f"{page}?token=", f"{page}events", f"{page}report.html", f"{page}trace.json", f"{page}page.js"):
        answer = get(link, path)
        assert answer.status == 403, path
        assert "windlass dashboard" in answer.text
        assert "set-cookie" not in answer.headers
        assert busy.name not in answer.text
    assert get(link, page, {"cookie": "windlass=x"}).status == 403
    for path in ("/", "/page.js", "/x/events", f"/{'0' * 16}/"):
        assert get(link, path).status == 404, path
    rebound = get(link, headers={"host": "evil.example"})
    assert rebound.status == 421
    assert "set-cookie" not in rebound.headers


def test_the_link_gives_a_cookie_and_that_gives_the_rest(busy: windlass.Manager) -> None:
    """Every answer has the policy; the address is the same when it is asked for again."""
    link = busy.dashboard()
    assert busy.dashboard() == link
    assert urlsplit(link).hostname == "127.0.0.1"
    page = urlsplit(link).path
    entered = get(link)
    assert entered.status == 200
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert f"Path={page}" in cookie
    with_cookie = {"cookie": cookie.partition(";")[0]}
    for path, kind in ((page, "text/html"), (f"{page}page.js", "text/javascript"), (f"{page}page.css", "text/css")):
        answer = get(link, path, with_cookie)
        assert (answer.status, answer.headers.get_content_type()) == (200, kind)
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    trace = get(link, f"{page}trace.json", with_cookie)
    assert "traceEvents" in json.loads(trace.text)
    assert "attachment" in trace.headers["content-disposition"]
    stream = get(link, f"{page}events", with_cookie, lines=4)
    assert stream.headers.get_content_type() == "text/event-stream"
    retry, _, event, data = stream.text.splitlines()
    assert (retry, event) == ("retry: 2000", "event: patch")
    assert json.loads(data.removeprefix("data: "))["calls"]["done"] == 54


def test_the_address_stands_in_a_file_of_its_owner_alone(busy: windlass.Manager) -> None:
    """Where ``windlass dashboard NAME`` finds it; it is gone with the page."""
    link = busy.dashboard()
    note = busy.connection_file.with_name("dashboard.json")
    assert json.loads(note.read_text())["url"] == link
    way_in = note.with_name("dashboard.html")
    assert f'url={link}"' in way_in.read_text()
    assert note.stat().st_mode & 0o777 == way_in.stat().st_mode & 0o777 == 0o600
    ran = windlass_command("dashboard", busy.name, "--json")
    assert json.loads(ran.stdout) == {"url": link}
    busy.close()
    assert not note.exists()
    assert not way_in.exists()


def test_no_process_has_the_token_among_its_words(busy: windlass.Manager) -> None:
    """Everybody on a machine can list those."""
    link = busy.dashboard()
    token = urlsplit(link).query.partition("=")[2].encode()
    words: list[bytes] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended, or is not ours to read
            words.append(path.read_bytes())
    assert any(b"dashboard" in one for one in words)
    assert not any(token in one for one in words)


@pytest.mark.parametrize("other", [{"host": "another-login-node"}, {"pid": 2**22 + 1}, {"pid": "1"}])
def test_the_token_is_sent_to_nobody_who_only_has_the_port(tmp_path: Path, other: dict[str, Any]) -> None:
    """State folders are shared by machines, and outlive processes: that port here may be somebody else's."""
    with socket.create_server(("127.0.0.1", 0)) as stranger, windlass.Manager(name=f"port{os.getpid()}") as manager:
        link = f"http://127.0.0.1:{stranger.getsockname()[1]}/0123/?token=secret"
        note = {"url": link, "pid": os.getpid(), "host": socket.gethostname(), **other}
        manager.connection_file.with_name("dashboard.json").write_text(json.dumps(note))
        assert not running_dashboard(choose_manager(str(manager.connection_file)))
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_a_program_with_thousands_of_descriptors_has_a_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As managers of thousands of workers have; and modules in its folder are nothing to the dashboard."""
    (tmp_path / "secrets.py").write_text("raise SystemExit('the wrong secrets')")
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    with ExitStack() as opened:
        for _ in range(1100):
            opened.enter_context(open(os.devnull))
        with windlass.Manager(name=f"many{os.getpid()}") as manager:
            assert get(manager.dashboard()).status == 200


# ---------------------------------------------------------------- what is on it


def test_the_page_shows_a_run_and_follows_it(busy: windlass.Manager, open_browser: Callable[..., Browser], tmp_path: Path) -> None:
    """Numbers, failures with their tracebacks, slots, pilots, libraries, workers; new ones without a reload; nothing from elsewhere."""
    browser = open_browser(1280, 1000)
    link = busy.dashboard()
    browser.open(link)
    browser.until("window.windlass.updates > 0")
    shown = browser.value("document.querySelector('main').innerText")
    for words in (
        "54\ndone",
        "5\nfailed",
        "ValueError",
        "in model.fails at test_page.py",
        "night",
        "2 serving",
        "other.waits",
        "json",
        "saved",
    ):
        assert words in shown, (words, shown)
    assert browser.value("document.getElementById('name').textContent") == busy.name
    assert "<b>converge</b>" in browser.value("document.querySelector('#causes pre').textContent")
    assert browser.value("document.querySelector('#causes pre b')") is None
    assert browser.value("document.querySelectorAll('#workers .space .row:not([hidden])').length") == 2
    assert browser.value("timeline.lanes.size") >= 1
    # It has drawn something: the canvas is not of one colour.
    colours = "new Set(document.getElementById('timeline-canvas').getContext('2d').getImageData(0, 0, 1200, 20).data).size"
    assert browser.value(colours) > 3
    more = [busy.submit(windlass.FunctionCall("model", "double", n)) for n in range(7)]
    assert [call.result(60) for call in more] == [2 * n for n in range(7)]
    browser.until("document.querySelector('main').innerText.includes('61\\ndone')")
    assert browser.value("location.search") == ""
    assert browser.value("document.cookie") == ""
    origin = f"http://{urlsplit(link).netloc}/"
    assert all(request.startswith((origin, "data:")) for request in browser.requests)
    assert browser.complaints == []
    browser.open(browser.value("location.href"))  # the cookie is enough now
    browser.until("window.windlass.updates > 0")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_is_readable_on_a_laptop_and_a_phone_in_light_and_dark(
    busy: windlass.Manager, open_browser: Callable[..., Browser], width: int, dark: bool
) -> None:
    """Nothing is wider than the screen, and every text has contrast with what is behind it (WCAG AA, 4.5 to 1; large ones 3 to 1)."""
    browser = open_browser(width, 844, dark=dark, phone=width < 500)
    browser.open(busy.dashboard())
    browser.until("window.windlass.updates > 0")
    assert browser.value("document.documentElement.scrollWidth") <= width
    dim = browser.value(CONTRAST)
    assert dim == []
    assert browser.value("getComputedStyle(document.body).backgroundColor") == ("rgb(14, 18, 23)" if dark else "rgb(244, 245, 247)")


#: Texts in sight with too little contrast, by walking up to the first background that is not transparent.
CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = (element) => {
    const colour = element ? parse(getComputedStyle(element).backgroundColor) : [255, 255, 255];
    return colour.length === 3 || colour[3] > 0 ? colour : behind(element.parentElement);
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.offsetParent) continue;
    const style = getComputedStyle(element), a = light(parse(style.color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.push([element.textContent.slice(0, 40), element.className, ratio]);
  }
  return found;
})()"""


def test_a_page_whose_manager_has_ended_says_so_and_keeps_what_it_shows(
    busy: windlass.Manager, open_browser: Callable[..., Browser]
) -> None:
    browser = open_browser()
    browser.open(busy.dashboard())
    browser.until("window.windlass.updates > 0")
    busy.close()
    browser.until("page.ended !== ''")
    assert "As it was when the manager ended" in browser.value("document.getElementById('banner').innerText")
    assert "54\ndone" in browser.value("document.querySelector('main').innerText")


def test_a_report_is_the_page_without_a_server(busy: windlass.Manager, open_browser: Callable[..., Browser], tmp_path: Path) -> None:
    """From the run's file, which the manager has left; opened from the disk it shows the same, and asks for nothing."""
    name = busy.name
    busy.close()
    ran = windlass_command("report", name, "--json", "-o", str(tmp_path / "run.html"), "--state", str(tmp_path / "run.json"))
    told = json.loads(ran.stdout)
    assert (told["report"], told["trace"]) == (str(tmp_path / "run.html"), str(tmp_path / "run.trace.json"))
    assert told["run"].startswith(name)
    browser = open_browser(1280, 900)
    browser.open(f"file://{tmp_path}/run.html")
    browser.until("window.windlass && window.windlass.updates > 0")
    shown = browser.value("document.body.innerText")
    for words in ("54\ndone", "ValueError", "other.waits", "As it was when the manager ended"):
        assert words in shown, (words, shown)
    assert [request for request in browser.requests if not request.startswith(("file:", "data:", "about:"))] == []
    assert browser.complaints == []
    state = json.loads((tmp_path / "run.json").read_text())
    assert state["record"]["ended"]
    again = windlass_command("report", str(tmp_path / "run.json"), "-o", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "run.html").read_bytes(), again.stderr


# ---------------------------------------------------------------- its life


def windlass_command(*words: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([sys.executable, "-m", "windlass", *words], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_a_manager_made_with_a_dashboard_says_how_its_link_is_had(capfd: pytest.CaptureFixture[str]) -> None:
    """On a terminal the link itself; a job's log, which others may read, has no token. And its run is kept."""
    with windlass.Manager(dashboard=True) as manager:
        link = manager.dashboard()
        name = manager.name
        assert get(link).status == 200
    said = capfd.readouterr().err
    assert f"dashboard of manager {name}: its link is printed by: windlass dashboard {name}" in said
    assert link.partition("token=")[2] not in said
    state = json.loads(find_run(runs_folder(), name).read_bytes())
    assert state["record"]["ended"] == "the manager was closed"


def test_a_manager_that_nobody_looks_at_records_nothing() -> None:
    """Off until asked for."""
    before = known_runs(runs_folder())
    with windlass.Manager() as manager:
        assert manager._core.recorder is None  # pyright: ignore[reportPrivateUsage]
    assert known_runs(runs_folder()) == before


def test_a_program_that_asks_for_no_dashboard_loads_nothing_of_it() -> None:
    program = "import sys, windlass; windlass.Manager().close(); print([name for name in sys.modules if 'dashboard' in name])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


def test_a_dashboard_in_a_terminal_serves_a_running_manager(tmp_path: Path) -> None:
    """Until Ctrl-C; status 130, as of every command."""
    with windlass.Manager(name=f"plain{os.getpid()}") as manager:
        words = [sys.executable, "-m", "windlass", "dashboard", manager.name, "--json", "--listen", "0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            link = json.loads(process.stdout.readline())["url"]
            assert get(link).status == 200
            assert manager.dashboard() != link  # a child of its own, if the program asks for one
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


@pytest.mark.parametrize("ignored", [False, True])
def test_a_dashboard_ends_with_its_terminal_unless_nohup_started_it(ignored: bool, tmp_path: Path) -> None:
    """Whoever starts a program with SIGHUP ignored wants it to outlive the login."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with windlass.Manager(name=f"nohup{os.getpid()}") as manager:
            words = [sys.executable, "-m", "windlass", "dashboard", manager.name, "--json"]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["url"]
            [mask] = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            assert bool(int(mask, 16) & 1) == ignored  # of SIGHUP, which is signal 1
            process.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)
            _, said = process.communicate(timeout=30)
            assert f"has ended: signal {'SIGTERM' if ignored else 'SIGHUP'};" in said
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("listen", "at"), [([], "127.0.0.1"), (["--listen", "localhost:0"], "localhost")])
def test_a_dashboard_ends_with_its_manager(listen: list[str], at: str) -> None:
    """It says where the run's end is to be seen; and of loopback, however it is called, not that others could read there."""
    with windlass.Manager(name=f"short{os.getpid()}") as manager:
        words = [sys.executable, "-m", "windlass", "dashboard", manager.name, "--no-browser", *listen]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == f"dashboard of manager {manager.name} (Ctrl-C ends it):\n"
        assert process.stdout.readline().startswith(f"  http://{at}:")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == f"windlass: the dashboard has ended: the manager was closed; windlass report {manager.name} shows the run's end\n"


KILLED = """
import os, signal, sys, time, windlass
manager = windlass.Manager(name="killed")
link = manager.dashboard()
print(link, flush=True)
time.sleep(60)
"""


def test_a_manager_that_is_killed_leaves_what_was_seen_last(open_browser: Callable[..., Browser], tmp_path: Path, monkeypatch: Any) -> None:
    """Its dashboard keeps it, and ends."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        assert get(link).status == 200
        process.kill()
    until("the run is kept", lambda: known_runs(tmp_path / "runs"))
    state = json.loads(find_run(tmp_path / "runs", "killed").read_bytes())
    assert state["record"]["ended"].startswith("the manager was killed")
    assert windlass_command("report", "killed", "--json", "-o", str(tmp_path / "run.html"))


def test_a_detached_manager_and_a_program_that_is_attached_have_one_too() -> None:
    """The attached program's page ends with the program; the manager goes on."""
    name = f"detached{os.getpid()}"
    windlass_command("manager", "start", name)
    try:
        with windlass.attach(name) as manager:
            link = manager.dashboard()
            assert get(link).status == 200
        until("its page is gone", lambda: not _answers(link))
        assert json.loads(windlass_command("report", name, "--json", "-o", os.devnull, "--trace", os.devnull).stdout)["run"].startswith(
            name
        )
    finally:
        windlass_command("manager", "stop", name)


def _answers(link: str) -> bool:
    try:
        return get(link).status == 200
    except OSError:
        return False


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is taken; libraries that are not installed; a manager and a run that there is not."""
    with windlass.Manager(name=f"wrong{os.getpid()}") as manager:
        taken = subprocess.run(
            [sys.executable, "-m", "windlass", "dashboard", manager.name, "--listen", str(manager.port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert taken.returncode == 2
        assert taken.stderr.startswith(f"windlass: the dashboard cannot listen at 127.0.0.1 port {manager.port}: Address already in use")

        def nothing(name: str) -> None:
            return None

        monkeypatch.setattr("importlib.util.find_spec", nothing)
        with pytest.raises(windlass.UsageError, match="needs starlette and uvicorn: pip install starlette uvicorn"):
            Child(manager.connection_file)
        with pytest.raises(windlass.UsageError, match="needs starlette and uvicorn"):
            windlass.Manager(dashboard=True)
    for words in (("dashboard", "nobody"), ("report", "nobody")):
        ran = subprocess.run([sys.executable, "-m", "windlass", *words], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 2
        assert "nobody" in ran.stderr


def test_a_manager_that_does_not_answer_is_told_of(busy: windlass.Manager, open_browser: Callable[..., Browser]) -> None:
    """The page is there and its dashboard too, so only the manager's silence says it: here the time of the last patch is set back."""
    browser = open_browser()
    browser.open(busy.dashboard())
    browser.until("window.windlass.updates > 0")
    shown = browser.value("page.heardAt -= 60000, renderHead(), document.getElementById('about').textContent")
    assert shown.startswith("the manager has not answered for ")
    browser.until("document.getElementById('about').textContent.startsWith('live')")
