"""A stand-in for ``apptainer exec``, for machines that have none: run as a program, by root.

Theory of operation
-------------------
It does what a pilot meets of Apptainer 1.3, as its sources have it: the image's root is another one (mount namespace, chroot), read-only,
with the home, ``/tmp``, ``/var/tmp``, devices, what ``--bind`` names and the working directory bound by the same paths. The environment
goes in but for PATH, HOME and LD_LIBRARY_PATH and what begins with ``APPTAINER``; the image's own ``.singularity.d/env/*.sh`` is read
over it. The process that was started stays as the parent of what runs inside: it passes on every signal, is followed by SIGKILL when it
is killed, and ends with the same status.

It knows sandbox folders only, and no user namespace: what a setuid installation does is done by being root.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FLAGS = {"--nv", "--rocm", "--cleanenv", "--writable-tmpfs"}
FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
PR_SET_PDEATHSIG = 1

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
    LD_LIBRARY_PATH=/.singularity.d/libs PATH=PATHS
    export LD_LIBRARY_PATH PATH
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


def main(words: list[str]) -> int:
    if words.pop(0) != "exec":
        fatal("the stand-in knows exec only")
    binds: list[str] = []
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("--bind", "-B"):
            binds.append(binds_of(words.pop(0)))
        elif word not in FLAGS:
            sys.stderr.write(f'Error for command "exec": unknown flag: {word}\n')
            return 1
    image, *command = words
    if not os.path.isdir(image):
        fatal(f"could not open image {image}: failed to retrieve path for {image}: lstat {image}: no such file or directory")
    if not os.path.lexists(f"{image}/bin/sh"):
        fatal("stat /bin/sh: no such file or directory")
    for one in binds:
        if not os.path.isdir(one):
            fatal(f"container creation failed: mount {one}->{one} error: while mounting {one}: mount source {one} doesn't exist")
    home = pwd.getpwuid(os.getuid()).pw_dir
    folders = [home, "/tmp", "/var/tmp", "/dev", "/proc", "/sys", *binds, os.getcwd()]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("APPTAINER", "SINGULARITY"))}
    for name in ("PATH", "LD_LIBRARY_PATH"):
        kept.pop(name, None)
    env = {**kept, "HOME": home, "APPTAINER_CONTAINER": image, "SINGULARITY_CONTAINER": image, "PATH": os.environ["PATH"]}
    unshare, shell = shutil.which("unshare"), "/bin/sh"
    if unshare is None:
        fatal("the stand-in needs unshare")
    signals = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    prctl = ctypes.CDLL(None).prctl

    def begin() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    child = subprocess.Popen(
        [str(unshare), "-m", shell, "-c", INSIDE, shell, image, os.getcwd(), *dict.fromkeys(folders), "--", *command],
        env=env,
        preexec_fn=begin,
    )
    while True:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            child.send_signal(number)
        elif (status := child.poll()) is not None:
            return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
