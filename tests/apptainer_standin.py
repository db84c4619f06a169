"""A stand-in for ``apptainer exec``, for machines that have none: run as a program, by root.

Theory of operation
-------------------
It does what a pilot meets of Apptainer 1.4.5, as that was seen to do it: the image's root is another one (mount namespace, chroot),
read-only, with the home, ``/tmp``, ``/var/tmp``, devices, what ``--bind``, ``--mount`` and ``APPTAINER_BIND`` name and the working
directory bound by the same paths. The environment goes in but for PATH, HOME and LD_LIBRARY_PATH and what begins with ``APPTAINER``; the
image's own ``.singularity.d/env/*.sh`` is read over it. The process that was started stays as the parent of what runs inside, by the name
``starter``: it passes on every signal, is followed by SIGKILL when it is killed, and ends with the same status, or by the same signal. As
for an image file without the setuid part, a process beside what runs inside serves the image (here it only is there): in a group of its
own, ended when all is over, and left behind when the starter is killed.

Its errors have the words of the real one's. It knows sandbox folders only, and no user namespace: what a setuid installation does is done
by being root.
"""

from __future__ import annotations

import csv
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FLAGS = {"--nv", "--rocm", "--cleanenv", "--writable-tmpfs"}
#: Variables of this name, with another one behind it, go inside by that one, evaluated, with --cleanenv too.
GIVEN = "APPTAINERENV_"
#: Stays inside with --cleanenv.
KEPT_ALWAYS = {"HOME", "TERM", "LANG", "PATH"}
#: After an unknown option comes this, on the standard output, and then ten kilobytes of options, of which a part stands here.
USAGE = "Options for exec command:\n\n" + "      --option string     what it is for\n" * 250 + "\nRun 'apptainer --help' for more\n"
FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

#: As root in the namespace: $1 image, $2 working directory, then folders up to ``--``, then the command.
INSIDE = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/up,workdir=/mnt/work" /mnt/root
where=$2
shift 2
while [ "$1" != -- ]; do
    mkdir -p "/mnt/root$1"
    mount --rbind "$1" "/mnt/root$1"
    shift
done
shift
mkdir -p /mnt/root/etc
cp /etc/passwd /etc/group /etc/hosts /mnt/root/etc
mount -o remount,ro,bind /mnt/root
exec chroot /mnt/root /bin/sh -c '
    cd "$1" 2>/dev/null || cd "$HOME" || cd /
    shift
    PATH=PATHS
    export PATH
    for one in /.singularity.d/env/*.sh; do [ ! -e "$one" ] || . "$one"; done
    exec "$@"' sh "$where" "$@"
""".replace("PATHS", PATH)


def fatal(text: str) -> None:
    sys.stderr.write(f"FATAL:   {text}\n")
    sys.exit(255)


def binds_of(spec: str) -> str:
    """A folder that is bound by its own path; a backslash keeps a comma or colon."""
    plain = spec.replace("\\,", "\0").replace("\\:", "\1")
    if "," in plain or ":" in plain:
        fatal(f"the stand-in binds one folder by its own path, and not {spec!r}")
    return plain.replace("\0", ",").replace("\1", ":")


def mount_of(spec: str) -> str:
    """What ``type=bind,"src=F","dst=F"`` binds."""
    [fields] = csv.reader([spec])
    what: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition("=")
        what[name] = value
    if what["type"] != "bind" or what["src"] != what["dst"]:
        fatal(f"the stand-in binds one folder by its own path, and not {spec!r}")
    return what["src"]


def main(words: list[str]) -> int:
    if words.pop(0) != "exec":
        fatal("the stand-in knows exec only")
    binds: list[str] = []
    flags: set[str] = set()
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("--bind", "-B"):
            binds.append(binds_of(words.pop(0)))
        elif word == "--mount":
            binds.append(mount_of(words.pop(0)))
        elif word in FLAGS:
            flags.add(word)
        else:
            sys.stderr.write(f'Error for command "exec": unknown flag: {word}\n\n')
            sys.stderr.flush()
            sys.stdout.write(USAGE)
            return 1
    if "APPTAINER_BIND" in os.environ:
        binds.append(binds_of(os.environ["APPTAINER_BIND"]))
    image, *command = words
    opening = f"While checking container encryption: could not open image {image}"
    if not os.path.lexists(image):
        fatal(f"{opening}: failed to retrieve path for {image}: lstat {image}: no such file or directory")
    if not os.path.isdir(image):
        fatal(f"{opening}: image format not recognized")
    if not os.path.lexists(f"{image}/bin/sh"):
        fatal("stat /bin/sh: no such file or directory")
    for one in binds:
        if not os.path.isdir(one):
            sys.stderr.write(f"WARNING: skipping mount of {one}: stat {one}: no such file or directory\n")
            why = f"mount {one}->{one} error: while mounting {one}: mount source {one} doesn't exist"
            fatal(f"container creation failed: mount hook function failure: {why}")
    return run(image, command, binds, clean="--cleanenv" in flags)


def evaluated(value: str) -> str:
    """Apptainer has a shell look at such a value, between double quotes."""
    quoted = value.replace('"', '\\"')
    ran = subprocess.run(["/bin/sh", "-c", f'printf %s "{quoted}"'], capture_output=True, text=True, check=False)
    return ran.stdout


def run(image: str, command: list[str], binds: list[str], *, clean: bool) -> int:
    """Start it, stay until it has ended; its status."""
    home = pwd.getpwuid(os.getuid()).pw_dir
    folders = [home, "/tmp", "/var/tmp", "/dev", "/proc", "/sys", *binds, os.getcwd()]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("APPTAINER", "SINGULARITY"))}
    if clean:
        kept = {name: value for name, value in kept.items() if name in KEPT_ALWAYS}
    for name in ("PATH", "LD_LIBRARY_PATH"):
        kept.pop(name, None)
    kept |= {name.removeprefix(GIVEN): evaluated(value) for name, value in os.environ.items() if name.startswith(GIVEN)}
    env = {**kept, "HOME": home, "APPTAINER_CONTAINER": image, "SINGULARITY_CONTAINER": image, "PATH": os.environ["PATH"]}
    env["APPTAINER_BIND"] = ",".join(binds)
    unshare, shell = shutil.which("unshare"), "/bin/sh"
    if unshare is None:
        fatal("the stand-in needs unshare")
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_NAME, b"starter", 0, 0, 0)
    server = subprocess.Popen(["sleep", "3600"], env={"PATH": os.environ["PATH"]}, process_group=0)
    signals = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def begin() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    child = subprocess.Popen(
        [str(unshare), "-m", shell, "-c", INSIDE, shell, image, os.getcwd(), *dict.fromkeys(folders), "--", *command],
        env=env,
        preexec_fn=begin,
    )
    while (status := child.poll()) is None:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            child.send_signal(number)
    server.kill()
    server.wait()
    if status < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
