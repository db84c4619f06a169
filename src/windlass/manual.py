"""The manual: pages of the documentation that travel in the package, cut into topics, and found by whatever a user has before them.

Theory of operation
-------------------
``pages/`` has a link for each page that a user may need beside an error; a built package has the pages themselves in it.  So they are
written once, and are there where Windlass is, without a repository and without a network.

A *topic* is what somebody can ask for: an error by its class, a symptom by the heading in the page of troubleshooting, a page, or a section
of one (``cookbook#login-nodes``).  `named` knows these names in any case and as texts of Windlass write them.  `found` reads whatever else
there is, a traceback or a line of a log: names of errors in it go first, the last of them before others, as a traceback ends with what was
raised.  Then come *signs*: what tables of symptoms quote of others' words (``version 'GLIBC_...' not found``), where it stands so.
Without one, words decide: each topic has *phrases* (rows of its tables, its paragraphs, and for errors the texts of the page of
wrong uses), and the topic is taken whose phrase has most of the words asked for, rare ones counting more.  Below `ENOUGH` of them nothing
is found, as a wrong answer helps less than none.  Of a text of wrong uses some words have to be asked for
(`_LEAST_OF_WRONG`): there are so many that one of them has whatever word.
"""

from __future__ import annotations

import difflib
import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from windlass.errors import UsageError

PAGES: Final = Path(__file__).with_name("pages")
#: The page whose sections are symptoms and errors, and the one with the texts of wrong uses.
TROUBLES: Final = "troubleshooting"
WRONG_USES: Final = "errors"
#: Of the words asked for, by weight, a phrase has to have so many.
ENOUGH: Final = 0.5
#: Topics that are nearly as good as the best one are named beside it.
NEARLY: Final = 0.85
#: A paste may be a whole log; what decides is near its end.
_MOST_LINES: Final = 400
#: And so many of a line.
_MOST_CHARACTERS: Final = 4000
#: Shorter lines of it say nothing by themselves.
_LEAST_WORDS: Final = 3
#: Of several words that are asked for a phrase has to have so many: each word of a language is in one or another.
_LEAST_SAME: Final = 2
#: So many words of a text of wrong uses have to be asked for, or half of a shorter one's.
_LEAST_OF_WRONG: Final = 4
#: Words that no phrase has are names, paths and values for the most part: they count as much as rather frequent ones.
_UNKNOWN: Final = 1.5

#: Words that say nothing.
_SMALL: Final = frozenset(("and", "are", "ever", "for", "has", "have", "not", "that", "the", "this", "was", "what", "when", "with"))

Kind = Literal["error", "symptom", "page", "section"]

_HEADING: Final = re.compile(r"^(#{1,4}) (.+)$")
_LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_WORD: Final = re.compile(r"[a-z]+(?:_[a-z]+)*")
_CLASS: Final = re.compile(r"\b[A-Z][A-Za-z]+\b")
#: What texts of Windlass put before the name of a topic.
_BEFORE: Final = re.compile(
    r"^(?:(?:see|what to do): *)?(?:windlass explain +|(?:docs/)?troubleshooting\.md#|docs/|windlass\.errors\.|windlass\.)?"
)


@dataclass(frozen=True, slots=True)
class Topic:
    """Something that can be asked for, and what the manual says of it."""

    #: ``WorkersLost``, ``pilots-die-at-their-start``, ``pools``, ``cookbook#login-nodes``.
    name: str
    kind: Kind
    title: str
    #: Markdown, without the heading, with links as plain words.
    text: str
    #: The page that it is from, without ``.md``.
    page: str
    #: Names of topics that its links lead to.
    see: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What it is about, in a line: an error's first sentence, else the title."""
        return first_sentence(self.text) if self.kind == "error" else self.title


# ---------------------------------------------------------------- reading


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def first_sentence(text: str) -> str:
    """The first sentence of a paragraph, on one line."""
    whole = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z`(])", whole, maxsplit=1)[0].rstrip(":.")


def sections(text: str) -> Iterator[tuple[int, str, str]]:
    """(level, title, what stands below it until the next heading) of a page; headings in fences are none."""
    level, title, lines, fenced = 0, "", list[str](), False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        heading = None if fenced else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        yield level, title, "\n".join(lines).strip()
        level, title, lines = len(heading[1]), heading[2].replace("`", ""), []
    yield level, title, "\n".join(lines).strip()


def read_page(name: str, text: str) -> Iterator[Topic]:
    """The topics of a page: itself and its sections; of troubles sections alone, as symptoms and errors."""
    troubles = name == TROUBLES
    title = next((title for level, title, _ in sections(text) if level == 1), name)
    yield _topic(name, "page", title, text.partition("\n")[2].strip() if text.startswith("# ") else text, name)
    parts, above = list(sections(text)), ""
    for place, (level, title, below) in enumerate(parts):
        if level == 2:
            above = title
        if level < 2 or (troubles and level != 3):
            continue
        for deeper, inner, more in parts[place + 1 :]:  # a section has those below it
            if deeper <= level:
                break
            below += f"\n\n{'#' * deeper} {inner}\n\n{more}"
        if not troubles:
            yield _topic(f"{name}#{anchor(title)}", "section", title, below, name)
        elif above == "By error":
            yield _topic(title, "error", title, below, name)
        else:
            yield _topic(anchor(title), "symptom", title, below, name)


def _topic(name: str, kind: Kind, title: str, text: str, page: str) -> Topic:
    see: dict[str, None] = {}
    parts = _CODE.split(_without_html(text))
    # A link around code stands in three parts; where there is one in code itself it is code.
    held = {f"\0{place}\0": part for place, part in enumerate(parts) if place % 2}
    plain = "".join(f"\0{place}\0" if place % 2 else part for place, part in enumerate(parts))

    def words_of(link: re.Match[str]) -> str:
        target, hash_, place = link[2].partition("#")
        if "://" in link[2]:
            return f"{link[1]} ({link[2]})"
        target = target.removesuffix(".md") or page
        see[place if target == TROUBLES else f"{target}{hash_}{place}"] = None
        return link[1]

    plain = _LINK.sub(words_of, plain)
    for mark, code in held.items():
        plain = plain.replace(mark, code)
    return Topic(name, kind, title, plain.strip(), page, tuple(see))


def _without_html(text: str) -> str:
    """Code that stands in tables as HTML, as Markdown's."""
    if "<code>" not in text:
        return text
    return html.unescape(re.sub(r"</?code>", "`", text.replace("&#124;", "\\|")).replace("<br>", " "))


@dataclass(frozen=True, slots=True)
class Manual:
    """All topics, in the order of their pages: errors and symptoms first."""

    topics: tuple[Topic, ...]
    #: (name of a topic, words, how many of them have to be asked for): what words are looked for in.
    phrases: tuple[tuple[str, frozenset[str], int], ...]
    by_name: Mapping[str, Topic]
    #: How many phrases have a word.
    counts: Mapping[str, int]
    #: (name of a topic, what is quoted in it).
    signs: tuple[tuple[str, re.Pattern[str]], ...]

    def named(self, asked: str) -> Topic | None:
        """The topic of this name, as people and texts of Windlass write it."""
        word = _BEFORE.sub("", asked.strip().strip("`'\"")).strip().strip("`'\"")
        word = re.sub(r"\.md(?=#|$)", "", word).rstrip(":.").lower()
        # "slot died" is SlotDied.
        return self.by_name.get(word) or self.by_name.get(anchor(word)) or self.by_name.get("".join(word.split()))

    def found(self, text: str) -> tuple[Topic, ...]:
        """What a text is about, the best first; () where that cannot be told."""
        lines = [line[:_MOST_CHARACTERS] for line in text.splitlines()[-_MOST_LINES:]]
        errors = {topic.name: topic for topic in self.topics if topic.kind == "error"}
        told = [name for line in reversed(lines) for name in reversed(_CLASS.findall(line)) if name in errors]
        if told:
            return tuple(errors[name] for name in dict.fromkeys(told))
        signs = [name for line in reversed(lines) for name, sign in self.signs if sign.search(line)]
        if signs:
            return tuple(self.by_name[name.lower()] for name in dict.fromkeys(signs))
        scores: dict[str, float] = {}
        for asked in map(words_of, lines):
            if len(asked) >= _LEAST_WORDS or len(lines) == 1:
                for name, score in self._scores(asked):
                    scores[name] = max(scores.get(name, 0.0), score)
        least = max(ENOUGH, NEARLY * max(scores.values(), default=0.0))
        return tuple(self.by_name[name.lower()] for name in sorted(scores, key=lambda name: -scores[name]) if scores[name] >= least)

    def _scores(self, asked: frozenset[str]) -> Iterator[tuple[str, float]]:
        most = len(self.phrases)
        weights = {word: math.log(most / self.counts[word]) if word in self.counts else _UNKNOWN for word in asked}
        whole = sum(weights.values())
        if not whole:
            return
        fewest = min(len(asked), _LEAST_SAME)
        for name, words, least in self.phrases:
            same = asked & words
            if len(same) >= max(least, fewest):
                # Of two that have the same, the shorter says less of anything else.
                yield name, sum(weights[word] for word in same) / whole - 0.0005 * len(words)

    def see_also(self, topic: Topic) -> tuple[str, ...]:
        """Names of topics that its links lead to, as they are asked for."""
        known = [self.by_name[name.lower()].name for name in topic.see if name.lower() in self.by_name]
        return tuple(name for name in dict.fromkeys(known) if name != topic.name)

    def require(self, asked: str) -> Topic:
        """As `named`. Raises `UsageError` with near names."""
        topic = self.named(asked)
        if topic is None:
            known = {topic.name.lower(): topic.name for topic in self.topics if topic.kind != "section"}
            near = difflib.get_close_matches(asked.lower(), known, n=3)
            if near:
                names = " or ".join(f"'{known[name]}'" for name in near)
                raise UsageError(f"there is no error, symptom or page {asked!r}; did you mean {names}?")
            raise UsageError(f"nothing is known of {asked!r}; windlass explain lists all that is")
        return topic


def words_of(text: str) -> frozenset[str]:
    """The words that texts are compared by."""
    return frozenset(word for word in _WORD.findall(html.unescape(text).lower()) if len(word) > 2) - _SMALL


def _phrases(topic: Topic) -> Iterator[frozenset[str]]:
    title = words_of(topic.title)
    for paragraph in re.split(r"\n\n+", topic.text):
        rows = [row for row in paragraph.splitlines() if row.startswith("| ")]
        if rows:
            yield from (words_of(row) for row in rows[1:])
        else:
            yield words_of(paragraph) | title
    yield title


def _signs(topic: Topic) -> Iterator[re.Pattern[str]]:
    """What the first column of its tables quotes, of two words or more; dots stand for anything."""
    for row in topic.text.splitlines():
        if row.startswith("| "):
            for quoted in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                parts = [re.findall(r"\w+", part) for part in quoted.split("...")]
                if sum(map(len, parts)) > 1 and parts[0][:1] != ["windlass"]:  # a command of ours is where it is seen
                    yield re.compile(".*".join(r"\W+".join(map(re.escape, part)) for part in parts if part), re.IGNORECASE)


def _wrong_uses(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    """(class, words of the text) of each wrong use that is shown on the page of them."""
    for row in text.splitlines():
        cells = row.split(" | ")
        if row.startswith("| <code>") and len(cells) == 2:
            seen = re.sub(r"<[^>]+>", "", cells[1].replace("<br>", " ").removesuffix(" |"))
            name, colon, told = seen.partition(": ")
            if colon and name.isalpha():
                yield name, words_of(told)
            elif colon and name == "2":  # a command's, which does not say its class
                text = told.removeprefix("windlass: ")
                yield "UnknownName" if text.startswith("there is no ") else "UsageError", words_of(text)


def make_manual(pages: Iterable[tuple[str, str]]) -> Manual:
    """From (name, text) of pages."""
    texts = dict(pages)
    rank: dict[Kind, int] = {"symptom": 0, "error": 1, "page": 2, "section": 3}
    topics = sorted((topic for name, text in texts.items() for topic in read_page(name, text)), key=lambda topic: rank[topic.kind])
    phrases = [(topic.name, words, 1) for topic in topics if topic.kind in ("error", "symptom") for words in _phrases(topic)]
    signs = tuple((topic.name, sign) for topic in topics if topic.kind == "symptom" for sign in _signs(topic))
    errors = {topic.name for topic in topics if topic.kind == "error"}
    phrases += [
        (name, words, min(_LEAST_OF_WRONG, -(-len(words) // 2))) for name, words in _wrong_uses(texts.get(WRONG_USES, "")) if name in errors
    ]
    phrases = list(dict.fromkeys(phrases))
    return Manual(tuple(topics), tuple(phrases), _by_name(topics), Counter(word for _, words, _ in phrases for word in words), signs)


def _by_name(topics: Sequence[Topic]) -> Mapping[str, Topic]:
    names: dict[str, Topic] = {}
    for topic in topics:
        names.setdefault(topic.name.lower(), topic)
    return names


@cache
def manual() -> Manual:
    """The manual of this Windlass."""
    return make_manual((path.stem, path.read_text(encoding="utf-8")) for path in sorted(PAGES.glob("*.md")))
