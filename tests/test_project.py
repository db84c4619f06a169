"""The files around the code that others read by program: forms for issues as GitHub takes them, the citation, the changelog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import windlass

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
#: What GitHub knows of a form, of each kind of element, and of its attributes; the first set of each pair must be there.
FORM = ({"name", "description", "body"}, {"title", "labels", "assignees", "projects", "type"})
ELEMENTS: Mapping[str, tuple[set[str], set[str]]] = {
    "markdown": ({"value"}, set()),
    "input": ({"label"}, {"description", "placeholder", "value"}),
    "textarea": ({"label"}, {"description", "placeholder", "value", "render"}),
    "dropdown": ({"label", "options"}, {"description", "multiple", "default"}),
    "checkboxes": ({"label", "options"}, {"description"}),
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def check_words(found: Mapping[str, object], allowed: tuple[set[str], set[str]]) -> None:
    """The words that must be there are, and no word that is not known."""
    assert allowed[0] <= found.keys() <= allowed[0] | allowed[1]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_is_one_that_github_shows(path: Path) -> None:
    """One that is not as GitHub wants it is left out of the choice without a word to anybody."""
    form = read(path)
    check_words(form, FORM)
    assert all(isinstance(label, str) for label in form.get("labels", []))
    assert any(element["type"] != "markdown" for element in form["body"])
    for element in form["body"]:
        kind = element["type"]
        check_words(element, ({"type", "attributes"}, set() if kind == "markdown" else {"id", "validations"}))
        check_words(element["attributes"], ELEMENTS[kind])
        texts = [value for name, value in element["attributes"].items() if name not in ("options", "multiple", "default")]
        assert all(isinstance(text, str) for text in texts)
        assert element.get("validations", {}).keys() <= {"required"}
        for option in element["attributes"].get("options", []):
            if kind == "checkboxes":
                check_words(option, ({"label"}, {"required"}))
            else:
                assert isinstance(option, str)
                assert option.lower() != "none"  # GitHub's own word for no choice


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_what_a_form_asks_for_has_one_name_each(path: Path) -> None:
    """Ids and labels are unique, and ids are of letters, digits, - and _."""
    asked = [element for element in read(path)["body"] if element["type"] != "markdown"]
    ids = [element["id"] for element in asked]
    labels = [element["attributes"]["label"] for element in asked]
    assert len(set(ids)) == len(ids)
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[\w-]+", one) for one in ids)


def test_forms_have_names_of_their_own() -> None:
    """A defect, a question, a wish, and a recipe for a site."""
    assert {path.stem for path in FORMS} == {"bug", "question", "feature", "site_recipe"}
    assert len({read(path)["name"] for path in FORMS}) == len(FORMS)
    assert read(ROOT / ".github/ISSUE_TEMPLATE/config.yml").keys() <= {"blank_issues_enabled", "contact_links"}


def test_the_citation_is_of_this_version() -> None:
    """Whether it is valid says `make release-check`, by the format's own program."""
    cited = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (windlass.__version__, "Apache-2.0")


def test_the_changelog_has_its_form() -> None:
    """Versions newest first, each with its date or "unreleased", and what changed under the headings that readers look for."""
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions
    for line in versions:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|unreleased)", line), line
    numbers = [tuple(map(int, line.split()[1].strip("[]").split("."))) for line in versions]
    assert numbers == sorted(numbers, reverse=True)
    headings = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_what_the_papers_of_the_project_link_to_is_there() -> None:
    """Files named by CONTRIBUTING, SECURITY, the code of conduct and the forms exist."""
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{name}: {link}"
