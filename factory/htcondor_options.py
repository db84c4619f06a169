"""What the user of an HTCondor pool may say beside Windlass's own options: submit commands and attributes of jobs. Pure.

Theory of operation: HTCondor takes any word of a submit description for a variable of the user's own, and says nothing of misspelt
ones.  So what is written by Windlass itself is refused here with the option that is meant, and what is not known gets a warning with a
near name; it is taken all the same, as HTCondor learns new commands and administrators invent some.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final, cast

from windlass.errors import UsageError
from windlass.factory.htcondor_words import literal

#: Submit commands that the backend writes itself, each with the option that is meant.
OWN_COMMANDS: Final[Mapping[str, str]] = {
    "universe": "container_image=",
    "container_image": "container_image=",
    "docker_image": "container_image=",
    "executable": "setup= and python=",
    "transfer_executable": "files=",
    "arguments": "setup= and python=",
    "environment": "env=",
    "getenv": "env=",
    "initialdir": "folder=",
    "output": "folder=",
    "error": "folder=",
    "batch_name": "name=",
    "request_cpus": "cores=",
    "request_memory": "memory=",
    "request_gpus": "gpus=",
    "request_disk": "disk=",
    "requirements": "requirements=",
    "should_transfer_files": "files=",
    "when_to_transfer_output": "files=",
    "transfer_output_files": "files=",
    "periodic_remove": "walltime=",
    "leave_in_queue": "walltime=",
    "job_max_vacate_time": "grace=",
    "queue": "max_pilots=",
    # Jobs made later than they are submitted would be pilots whose ids nobody knows.
    "max_idle": "max_queued=",
    "max_materialize": "max_queued=",
}
#: Attributes of our own begin so.
OWN_PREFIX: Final = "windlass"
_COMMANDS: Final = """
    accounting_group accounting_group_user allowed_execute_duration allowed_job_duration batch_project coresize cuda_version
    concurrency_limits concurrency_limits_expr container_target_dir docker_network_type docker_pull_policy
    encrypt_execute_directory encrypt_input_files gpus_maximum_capability gpus_minimum_capability gpus_minimum_memory
    gpus_minimum_runtime hold job_ad_information_attrs job_lease_duration job_machine_attrs job_machine_attrs_history_length
    keep_claim_idle kill_sig kill_sig_timeout log log_xml max_transfer_input_mb max_transfer_output_mb mount_under_scratch
    nice_user notification notify_user on_exit_hold on_exit_hold_reason on_exit_hold_subcode on_exit_remove periodic_hold
    periodic_hold_reason periodic_hold_subcode periodic_release periodic_vacate preserve_relative_paths primary_unix_group
    priority prio rank remove_kill_sig require_gpus retry_until scitokens_file stack_size stream_error stream_output
    submit_event_notes transfer_input_files transfer_plugins ulog_execute_attrs use_oauth_services use_scitokens
    use_x509userproxy want_graceful_removal want_io_proxy x509userproxy
"""
#: Other submit commands that make sense for pilots; more are taken, with a warning.
KNOWN_COMMANDS: Final = frozenset(_COMMANDS.split())
_COMMAND: Final = re.compile(r"\+?[A-Za-z_][A-Za-z0-9_.]*\Z")
_DIRECTIVE: Final = "{'accounting_group': 'physics'}"
_ATTRIBUTE: Final = "{'ProjectName': 'sim'}"
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def checked_directives(given: object) -> tuple[tuple[str, str], ...]:
    """``extra_directives=`` as pairs: a mapping, lines ``name = value``, or pairs.

    Raises `UsageError`, also for commands that options write."""
    pairs: list[tuple[str, str]] = []
    if isinstance(given, str):
        given = [line for line in given.splitlines() if line.strip()]
    entries = _entries(given, "extra_directives", _DIRECTIVE)
    for entry in entries:
        name, equals, value = entry.partition("=") if isinstance(entry, str) else _pair(entry, "extra_directives", _DIRECTIVE)
        if not equals or not _COMMAND.match(name.strip()):
            raise UsageError(
                f"extra_directives={entry!r} is no submit command; write for example extra_directives={{'accounting_group': 'physics'}}"
            )
        word = name.strip()
        option = OWN_COMMANDS.get(word.lower())
        if option is not None:
            raise UsageError(f"extra_directives= has {word!r}, which Windlass writes itself; use the option {option}")
        _refuse_own(word, "extra_directives")
        if "\n" in value:
            raise UsageError(f"extra_directives= has a value of several lines for {word!r}; a submit command has one")
        pairs.append((word if word.startswith("+") else word.lower() if "." not in word else word, value.strip()))
    return tuple(pairs)


def checked_attributes(given: object) -> tuple[tuple[str, object], ...]:
    """``attributes=`` as pairs. Raises `UsageError`."""
    entries = _entries(given, "attributes", _ATTRIBUTE)
    if isinstance(given, str):
        entries = [given]
    pairs: list[tuple[str, object]] = []
    for entry in entries:
        value: object
        if isinstance(entry, str):
            name, equals, value = entry.partition("=")
            value = value.strip()
        else:
            name, equals, value = _pair(entry, "attributes", _ATTRIBUTE)
        word = name.strip().removeprefix("+")
        if not equals or not NAME.match(word):
            raise UsageError(f"attributes={entry!r} is no attribute of a job; write for example attributes={{'ProjectName': 'sim'}}")
        _refuse_own(word, "attributes")
        literal(value)
        pairs.append((word, value))
    return tuple(pairs)


def _refuse_own(word: str, option: str) -> None:
    name = word.lower().removeprefix("+").removeprefix("my.")
    if name.startswith(OWN_PREFIX):
        raise UsageError(
            f"{option}= has {word!r}; attributes that begin with Windlass are those by which pilots are found, so use another name"
        )


def doubtful_directives(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """What is to be said of directives that are not known here: HTCondor ignores misspelt ones without a word."""
    said: list[str] = []
    for word, _ in pairs:
        if word in KNOWN_COMMANDS or word.startswith(("+", "request_")) or "." in word:
            continue
        near = difflib.get_close_matches(word, KNOWN_COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        said.append(f"extra_directives= has {word!r}, which Windlass does not know, and HTCondor ignores what it does not know{hint}")
    return said


def _entries(given: object, option: str, example: str) -> Iterable[object]:
    if isinstance(given, Mapping):
        return cast("Mapping[object, object]", given).items()
    if not isinstance(given, Iterable):
        raise UsageError(f"{option}={given!r} is not a mapping; write for example {option}={example}")
    return cast("Iterable[object]", given)


def _pair(entry: object, option: str, example: str) -> tuple[str, str, str]:
    try:
        name, value = cast("tuple[object, object]", entry)
    except (TypeError, ValueError):
        raise UsageError(f"{option}={entry!r} is not a mapping; write for example {option}={example}") from None
    return str(name), "=", cast("str", value) if option == "attributes" else str(value)
