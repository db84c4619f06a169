"""How a pilot is started: the worker's command line made from its pool, and the script around it.

Theory of operation
-------------------
Every option of a worker stands once, in the `PoolConfig`; `worker_command` says it in the worker's words.  A pilot that needs no
shell is started by that command alone; one with ``setup`` lines, and every pilot of a batch system, by a script rendered from a
template (`windlass.batch_templates`).  The id of a pilot is known to the batch system only when the pilot runs, so the command lacks
``--pilot``, which `with_pilot` or the script adds.

With ``environment=`` the command begins with ``python3``: the script has the environment on its node, first on PATH, before it comes to
the command.  With ``container=`` it is the ``python3`` of the image (`windlass.factory.container`)."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, cast

from windlass.errors import UsageError
from windlass.factory.backend import PilotRequest
from windlass.factory.container import container_of
from windlass.factory.environment import read_environment, with_boot
from windlass.factory.pool import PoolConfig
from windlass.messages import PilotId

#: The name by which jinja2 knows a template of the user's.
OWN: Final = "the user's own"


def python_of(pool: PoolConfig) -> str:
    """The Python that the pool's jobs begin with: that of its environment or image, where it has one. Raises `UsageError`."""
    python = pool.python or ("python3" if pool.environment or pool.container else sys.executable)
    if not python:
        raise UsageError(
            "sys.executable is empty, as in programs that embed Python, so it is not known what pilots are to run: give python=, "
            "environment= or container="
        )
    if python == sys.executable and getattr(sys, "frozen", False):
        raise UsageError(
            f"{sys.executable} is a frozen program, of which pilots cannot run the Python: give python=, environment= or container="
        )
    return python


def worker_command(pool: PoolConfig, connection: Path) -> tuple[str, ...]:
    """The worker's argument vector, without ``--pilot``. ``connection`` is the manager's ``pilot.json``."""
    resources = pool.resources
    # -P: no folder of the user's comes before the standard library, so a random.py beside the program breaks no pilot.
    command = [python_of(pool), "-P", "-m", "windlass.worker", "--connection", str(connection), "--pool", pool.name]
    options: list[tuple[str, object]] = [
        ("--cores", f"{resources.cores:g}" if resources.cores else ""),
        ("--memory", resources.memory or ""),
        ("--gpus", resources.gpus or ""),
        ("--walltime", f"{pool.walltime:g}" if pool.walltime else ""),
        # The factory lets idle pilots go; this is for pilots that no factory looks after any more. The minimum stays.
        ("--idle-timeout", f"{pool.idle_timeout + 60:g}" if pool.idle_timeout and not pool.min_pilots else ""),
        ("--grace", f"{pool.grace:g}"),
        ("--stagger", f"{pool.stagger:g}" if pool.stagger >= 0 else ""),
        ("--scratch", pool.scratch),
        ("--log-level", pool.log_level),
    ]
    for name, value in options:
        if value != "":
            command += [name, str(value)]
    return tuple(command)


def with_pilot(command: Iterable[str], pilot: PilotId) -> tuple[str, ...]:
    """The whole command of a pilot whose word is known."""
    return (*command, "--pilot", pilot)


def needs_script(request: PilotRequest) -> bool:
    """A pilot of this request cannot be started by its command alone."""
    return bool(request.setup) or request.environment is not None or request.container is not None


def own_template(value: object) -> str:
    """The whole path of a template of the user's; "": none. Raises `UsageError` when it is not there."""
    if not value:
        return ""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"template={value!r}: give the path of a file")
    found = os.path.abspath(os.fspath(cast("str", value)))
    if not os.path.isfile(found):
        raise UsageError(f"template={found!r}: there is no such file")
    return found


def pilot_script(request: PilotRequest, *, template: str = "pilot.sh.j2", **values: object) -> str:
    """The script that starts a pilot; ``values`` are for the template (``pilot``: its word, where that is known).

    ``template``: one of `windlass.batch_templates`, or a file of the user's, which may extend one of those. Raises `UsageError` for a file
    that is no template, or that uses a name that there is not.
    """
    import jinja2  # 60 ms; only pools with setup lines and batch systems need it

    loader: jinja2.BaseLoader = jinja2.PackageLoader("windlass.batch_templates", "")
    own = template if os.sep in template else ""
    if own:
        loader = jinja2.ChoiceLoader([jinja2.FunctionLoader(lambda name: Path(own).read_text() if name == OWN else None), loader])
        template = OWN
    jinja = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    jinja.filters["sh"] = lambda text: shlex.quote(str(text))
    jinja.filters["words"] = shlex.join
    # For Apptainer, which has a shell look at it once more, between double quotes; those in it it takes care of itself.
    jinja.filters["in_quotes"] = lambda text: re.sub(r"([\\$`])", r"\\\1", str(text))
    given: Mapping[str, object] = {
        "shell": request.shell,
        "pool": request.pool,
        "ticket": request.ticket,
        "env": request.env,
        "setup": [line for line in request.setup if line.strip()],
        "command": request.command,
        "environment": request.environment,
        "container": request.container,
        # True: the batch system runs the script itself in the image.
        "in_image": False,
        "resources": request.resources,
        "nodes": request.nodes,
        "walltime": request.walltime,
        "avoid": request.avoid,
    }
    try:
        script = jinja.get_template(template).render({**given, **values})
    except Exception as error:  # a template of the user's may raise anything
        if not own:
            raise
        raise UsageError(f"template {own}{_what_is_wrong(error)}") from error
    if own and request.container is not None and "WINDLASS_CONTAINER=" not in script:
        # The worker would run on the node itself, and nobody would notice.
        raise UsageError(
            f"template {own} starts no container, and the pool has container={request.container.image!r}: extend one of Windlass's"
            " templates, and leave its block launch as it is"
        )
    return script


def write_script(path: Path, script: str) -> None:
    """Write a script for this user alone, as it has the values of ``env=``. Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o700)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o700)  # one that was there keeps its mode
        file.write(script)


def _what_is_wrong(error: Exception) -> str:
    import jinja2

    if isinstance(error, jinja2.TemplateNotFound):
        return f": there is no template {error.name!r}; those of Windlass are slurm.sh.j2, htcondor.sh.j2 and pilot.sh.j2"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f", line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.TemplateError | OSError):
        return f": {error}"
    return f": {type(error).__name__}: {error}"


def request_of(pool: PoolConfig, pilot_file: Path) -> PilotRequest:
    """What every submission of a pool has in common. Raises `UsageError` for an environment that cannot be."""
    return PilotRequest(
        ticket="",
        pool=pool.name,
        command=worker_command(pool, pilot_file),
        resources=pool.resources,
        nodes=pool.nodes,
        walltime=pool.walltime,
        grace=pool.grace,
        setup=pool.setup,
        shell=pool.shell,
        environment=with_boot(read_environment(pool.environment, pool.scratch), pilot_file.parent) if pool.environment else None,
        container=container_of(pool, pilot_file),
        env=pool.env,
    )
