"""The manual that travels in the package: topics of pages, and how they are found and shown."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from windlass import cli, errors
from windlass.cli_explain import names
from windlass.manual import Manual, make_manual, manual

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("src/windlass", "manager", "worker", "factory") for path in sorted((ROOT / folder).rglob("*.py"))]

PAGE = """\
# Troubleshooting

First words.

## By symptom

### Nothing happens: calls wait

| you see | do |
|---|---|
| a pool is `paused` | mend it, then `windlass factory resume` |
| `version 'GLIBC_...' not found` | pack on an older system: [environments](environments.md#glibc) |

## By error

### Closed

The manager is closed. Make [another](#unknownname), see `[not](a.md)`.

#### A part of it

```
# no heading
```

### UnknownName

No such `name`: see [`pools`](pools.md) and [elsewhere](https://example.org/).
"""
WRONG = """\
# What goes wrong

| wrong | what you see |
|---|---|
| <code>a</code> | <code>UnknownName: there is no barrel 'x'</code> |
| <code>$ b</code> | <code>2: windlass: there is no winch 'x'&#124;</code> |
"""


@pytest.fixture(scope="module")
def small() -> Manual:
    """A manual of three pages."""
    return make_manual([("troubleshooting", PAGE), ("errors", WRONG), ("pools", "# Pools\n\nText.\n\n## One of them\n\nMore.\n")])


def test_sections_of_troubles_are_symptoms_and_errors_and_other_pages_have_sections(small: Manual) -> None:
    """Symptoms by their headings' anchors, errors by class; a section has those below it."""
    assert [(one.name, one.kind) for one in small.topics] == [
        ("nothing-happens-calls-wait", "symptom"),
        ("Closed", "error"),
        ("UnknownName", "error"),
        ("troubleshooting", "page"),
        ("errors", "page"),
        ("pools", "page"),
        ("pools#one-of-them", "section"),
    ]
    closed = small.require("closed")
    assert closed.text.startswith("The manager is closed. Make another, see `[not](a.md)`.\n\n#### A part of it")
    assert closed.text.endswith("```\n# no heading\n```")
    assert closed.line == "The manager is closed"


def test_links_become_words_and_names_to_ask_for(small: Manual) -> None:
    """Those that the manual has; an address elsewhere stays where it is."""
    assert small.see_also(small.require("Closed")) == ("UnknownName",)
    unknown = small.require("UnknownName")
    assert unknown.text == "No such `name`: see `pools` and elsewhere (https://example.org/)."
    assert small.see_also(unknown) == ("pools",)
    assert small.see_also(small.require("nothing-happens-calls-wait")) == ()


@pytest.mark.parametrize(
    "asked",
    [
        *("UnknownName", "unknownname", "windlass.UnknownName", "windlass.errors.UnknownName", "UnknownName:"),
        *("unknown name", "Unknown  Name"),
        *("docs/troubleshooting.md#unknownname", "windlass explain UnknownName", "what to do: windlass explain UnknownName"),
    ],
)
def test_a_topic_is_named_as_texts_of_windlass_name_it(small: Manual, asked: str) -> None:
    found = small.named(asked)
    assert found is not None
    assert found.name == "UnknownName"


def test_pages_and_symptoms_are_named_by_path_and_by_title(small: Manual) -> None:
    for asked, name in (
        ("docs/pools.md", "pools"),
        ("pools.md#one-of-them", "pools#one-of-them"),
        ("Nothing happens: calls wait", "nothing-happens-calls-wait"),
    ):
        assert small.require(asked).name == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Traceback ...\nwindlass.errors.Closed: over\n\nThe above ...\nwindlass.errors.UnknownName: x\n", ["UnknownName", "Closed"]),
        ("python: /lib/libc.so.6: version `GLIBC_2.34' not found (required by python)", ["nothing-happens-calls-wait"]),
        ("paused", ["nothing-happens-calls-wait"]),
        ("there is no barrel 'tun'", ["UnknownName"]),
        ("there is no winch", ["UnknownName"]),
        ("day one\nthe pool is paused, mend it\nday two\n", ["nothing-happens-calls-wait"]),
        ("pool\nother things that no page speaks of\n", []),
        ("what nobody ever wrote", []),
        ("", []),
    ],
)
def test_texts_are_understood_by_names_of_errors_and_else_by_words(small: Manual, text: str, found: list[str]) -> None:
    """The error that was raised last comes first; a word alone in a line of a log says nothing."""
    assert [topic.name for topic in small.found(text)] == found


def test_what_is_not_there_has_near_names(small: Manual) -> None:
    with pytest.raises(errors.UsageError) as near:
        small.require("UnknowName")
    assert str(near.value) == "there is no error, symptom or page 'UnknowName'; did you mean 'UnknownName'?"
    with pytest.raises(errors.UsageError) as far:
        small.require("xyz")
    assert str(far.value) == "nothing is known of 'xyz'; windlass explain lists all that is"


# ---------------------------------------------------------------- the manual of Windlass


def texts_of(path: Path) -> Iterator[str]:
    """Texts of a module that are no docstrings."""
    code = path.read_text()
    if "docs/" not in code and "windlass explain" not in code:
        return
    tree = ast.parse(code)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_texts_name_topics_that_there_are_and_no_files_of_the_repository() -> None:
    """Who has installed a wheel has no ``docs/``; whoever writes ``windlass explain X`` into a text has X in the manual."""
    known = manual().by_name
    seen: set[str] = set()
    for path in SOURCES:
        for text in texts_of(path):
            assert path.name in ("manual.py", "errors.py") or not re.search(r"docs/[\w-]+\.md", text), (path, text)
            if path.name != "cli_explain.py":
                seen |= set(re.findall(r"windlass explain ([\w#-]*\w)", text))
    assert {"pools", "command-line", "containers"} <= seen
    assert {name for name in seen if name.lower() not in known} == {"lists"}


def test_each_error_and_each_link_leads_to_a_topic() -> None:
    """What an error names is there; what errors and symptoms lead to is shown without a network, but for pages about Windlass itself."""
    book = manual()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.WindlassError):
            assert book.require(kind.topic).kind == "error"
    missing = {
        name for topic in book.topics if topic.kind in ("error", "symptom") for name in topic.see if name.lower() not in book.by_name
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("ModuleNotFoundError: No module named 'windlass'", "pilots-die-at-their-start"),
        ("/env/bin/python: /lib/libc.so.6: version `GLIBC_2.34' not found", "pilots-die-at-their-start"),
        ("sh: 12: /env/bin/python3: No such file or directory", "pilots-die-at-their-start"),
        ("3 calls wait, and there are neither pilots nor a factory", "nothing-happens-calls-wait"),
        ("there is no library 'foo'; did you mean 'bar'?", "UnknownName"),
        ("scratch /home/me is on a network filesystem", "it-works-and-is-slow"),
        ("its walltime is over, and no pool has a longer one", "CallTooLong"),
        ("ModuleNotFoundError: No module named 'numpy'", "calls-find-other-things-than-the-program"),
        ("cannot pickle lock object", "NotPicklable"),
        ("no manager of yours is running", "a-manager-is-not-found"),
        ("query_interval='30' has no unit: is it seconds, or minutes as Slurm has it? write '30s'", "UsageError"),
    ],
)
def test_what_users_see_leads_to_what_helps(text: str, first: str) -> None:
    """Lines as they stand in logs and in terminals."""
    assert manual().found(text)[0].name == first


@pytest.mark.parametrize(
    "text", ["nonsense", "connection refused", "ZeroDivisionError: float division", "my function returns None", "timeout"]
)
def test_a_word_that_some_text_of_a_wrong_use_has_does_not_lead_to_it(text: str) -> None:
    """There are hundreds of such texts, and whoever has seen one has more of it than a word."""
    assert "UsageError" not in [topic.name for topic in manual().found(text)]


@pytest.mark.parametrize("text", ["bad parameter", "ValueError: bad parameter", "division by zero", "shapes (3,) and (4,) not aligned"])
def test_texts_of_the_users_own_functions_lead_nowhere(text: str) -> None:
    """One word of them stands in some phrase."""
    assert manual().found(text) == ()


def test_a_file_that_a_call_does_not_find_is_not_the_python_of_a_pilot() -> None:
    """Both have the same words at their ends."""
    names = [topic.name for topic in manual().found("FileNotFoundError: [Errno 2] No such file or directory: 'results'")]
    assert not {"pilots-die-at-their-start", "UsageError"} & set(names)


# ---------------------------------------------------------------- the command


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["explain", *words]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_in_a_pipe_a_topic_is_markdown_with_what_else_to_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(["LibraryFailed"], capsys)
    assert shown.startswith("LibraryFailed\n\nThe library cannot start: ")
    assert shown.endswith("\n\nsee also: windlass explain environments\nsee also: windlass explain libraries#contexts\n\n") or (
        "see also: windlass explain environments\n" in shown
    )
    assert "\x1b" not in shown


def test_a_traceback_is_read_from_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error in it; those beyond the second by name. What it says of nothing known is refused."""
    text = "".join(f"windlass.errors.{name}: x\n" for name in ("Closed", "StoreFull", "CallTimeout"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode() + b"\xff"), isatty=lambda: False))
    shown = run(["-"], capsys)
    assert shown.startswith("CallTimeout\n")
    assert "\nStoreFull\n" in shown
    assert shown.endswith("\nalso: windlass explain Closed\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"1\n2\n"), isatty=lambda: False))
    assert cli.main(["explain", "-"]) == 2
    assert "nothing that was read is known here" in capsys.readouterr().err


def test_a_copy_without_pages_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to nodes leaves them out."""
    monkeypatch.setattr("windlass.cli_explain.manual", lambda: make_manual([]))
    assert cli.main(["explain"]) == 2
    assert "has no pages" in capsys.readouterr().err


def test_alone_it_lists_all_and_as_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, and what TAB offers is what is listed."""
    lines = run([], capsys).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [line for line in lines if not line.startswith("  ")] == ["symptoms:", "errors:", "pages:"]
    assert listed == names()
    assert [one["name"] for one in json.loads(run(["--json"], capsys))["topics"]] == listed
    (topic,) = json.loads(run(["Closed", "--json"], capsys))["topics"]
    assert set(topic) == {"name", "kind", "title", "page", "text", "see_also"}
    assert (topic["name"], topic["kind"], topic["page"]) == ("Closed", "error", "docs/troubleshooting.md")
