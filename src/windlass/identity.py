"""Who is who: the manager's own certificate authority, connection files, and the TLS contexts made from them.

Theory of operation
-------------------
A manager makes an authority for itself (EC P-256) and keeps it in its state folder (0700)::

    authority.json   the authority's key and the server's certificate; never leaves the folder
    client.json      for the user's programs and the command line: role ``client``; never sent anywhere
    pilot.json       travels with pilots: role ``enrol``, good only to ask for a certificate of one's own

A worker that connects with the enrolling credential makes a key on its node, and `Authority.issue` binds a certificate to its
worker id.  Role and name stand in the certificate's subject (``OU`` and ``CN``), so what a peer may say is known before a byte
of it is decoded.
The name that TLS checks is the manager's id, never an address: a manager may move, and addresses can be forged.  Because
a worker's certificate is of the same authority, the dialling side also checks that the other side's role is ``manager``.

Certificates are valid from a day back, because clocks differ, and for a year.

Python's `ssl` reads keys from files only, so a key goes through an anonymous memory file where the system has them.  `cryptography` takes
50 ms and hundreds of file-system calls to import and is loaded only where something is made or signed, never by a worker before its hello;
for the same reason the worker's part does without pathlib.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import stat
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from windlass.errors import ConnectionRefused, UnknownName, UsageError
from windlass.ownership import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

MANAGER: Final = "manager"
CLIENT: Final = "client"
FACTORY: Final = "factory"
ENROL: Final = "enrol"
WORKER: Final = "worker"

#: Seconds. A year outlasts the longest walltime that a batch system gives.
LIFETIME: Final = 365 * 86400.0
#: Seconds. Clocks of nodes differ; this is further than any that runs jobs at all.
BACKDATE: Final = 86400.0

#: Seconds. Long enough to wait for one's turn and read 100 GB; a permit names who may read what from whom, so it need not be short.
PERMIT_SECONDS: Final = 6 * 3600.0

Address = tuple[str, int]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_WORKER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}")


class Identity(NamedTuple):
    """What a certificate says of its holder."""

    role: str
    name: str


class ConnectionFile(msgspec.Struct, frozen=True):
    """How to reach a manager and what to show it: the content of ``client.json`` and ``pilot.json``. PEM texts."""

    manager: str
    role: str
    ca: str
    certificate: str
    key: str
    addresses: tuple[Address, ...]
    #: Where it was read, to be read afresh at a reconnect; empty: nowhere.
    path: str = ""
    #: Its owner has said that the file system, which has no modes, keeps others away. Believed of ``pilot.json``, which lies where
    #: the owner's manager put it and gives only the right to enrol; who reads ``client.json`` must say so as well.
    trusted: bool = False

    def client_context(self) -> ssl.SSLContext:
        """TLS for dialling with the credential of this file."""
        return context_for(self, self.certificate.encode(), self.key.encode())


class _Stored(msgspec.Struct):
    """``authority.json``."""

    manager: str
    ca: str
    ca_key: str
    certificate: str
    key: str
    lifetime: float
    #: When, in seconds of the epoch; 0: it was not noted.
    made: float = 0.0


# ---------------------------------------------------------------- folders and files


def state_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Where managers keep what outlives them: ``chosen``, ``$WINDLASS_STATE_DIR``, ``$XDG_STATE_HOME/windlass`` or
    ``~/.local/state/windlass``."""
    from pathlib import Path

    if chosen is not None and not isinstance(chosen, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"state_dir={chosen!r}: name a folder, as in state_dir='/data/me/windlass'")
    chosen = chosen or os.environ.get("WINDLASS_STATE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()  # pilots run elsewhere
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "windlass"


def trusts_state_folder(said: bool | None = None) -> bool:
    """Whether the user has said that nobody else can read the state folder, whatever its modes: ``said``, or an environment variable."""
    return said if said is not None else os.environ.get("WINDLASS_TRUST_STATE_DIR", "").lower() in ("1", "yes", "true", "on")


def manager_folder(name: str, state_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the manager of this name, there or not.

    Raises:
        UsageError: the name cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a manager: use a letter, then up to 62 letters, digits, '-' and '_'")
    return state_folder(state_dir) / "managers" / name


def cannot_keep_state(name: str, folder: Path, error: OSError) -> str:
    """What is said of a state folder that cannot be."""
    return (
        f"manager {name!r} cannot keep its state in {folder}: {error.strerror or error};"
        " name a folder that you can write to by --state-dir, state_dir= or WINDLASS_STATE_DIR"
    )


def find_manager(name_or_path: str | os.PathLike[str], state_dir: str | os.PathLike[str] | None = None) -> Path:
    """The ``client.json`` of a manager, given its name, its folder or the file itself.

    Raises:
        UnknownName: there is none; the text has near names.
    """
    from pathlib import Path

    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if path.is_file():
        return path.absolute()  # its folder has the manager's name
    if path.is_dir() and (path / "client.json").is_file():
        return path.absolute() / "client.json"
    managers = state_folder(state_dir) / "managers"
    if _NAME.fullmatch(text) and (managers / text / "client.json").is_file():
        return managers / text / "client.json"
    known = [folder.parent.name for folder in managers.glob("*/client.json")] if managers.is_dir() else []
    raise UnknownName("manager", text, known, hint=f"(managers are looked for in {managers})")


def write_private(path: Path, data: bytes) -> None:
    """Replace a file, atomically and readable by its owner only; readers see the old one or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def make_private(folder: Path, trust: bool | None = None) -> None:
    """Make a folder that only its owner can enter. ``trust``: the user says that it is one where modes say nothing.

    Raises:
        UsageError: its file system has no modes, or none that keep others away.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # file systems without modes may say so
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            folder.chmod(0o700)
    if trusts_state_folder(trust):
        return
    mode, kind = stat.S_IMODE(folder.stat().st_mode), file_system_of(folder)
    if mode & 0o077:
        why = f"chmod has no effect there (mode {mode:04o} stays)"
    elif kind in WITHOUT_MODES:
        why = "modes do not decide there who may read"
    else:
        return
    raise UsageError(
        f"{folder} is to hold private keys, and its file system ({kind or 'of an unknown kind'}) cannot keep them from other users: {why}. "
        "Choose a folder elsewhere with --state-dir, state_dir= or WINDLASS_STATE_DIR; or, if you know that nobody else can read this one "
        "(by an access list, or a share of your own), say so with --trust-state-dir, trust_state_dir=True or WINDLASS_TRUST_STATE_DIR=1"
    )


#: File systems on which modes can be set and others may read all the same, by access lists or a server's own rules.
WITHOUT_MODES: Final = frozenset({"afs", "auristorfs", "cifs", "smb3", "smbfs", "ncpfs", "vfat", "exfat", "msdos"})


def file_system_of(folder: Path) -> str:
    """The kind of file system that a folder is on, as mount(8) names it; "" where that cannot be seen."""
    return kind_of(os.stat(folder).st_dev)


def _check_private(path: str, strict_folder: bool, trust: bool | None = None, about: os.stat_result | None = None) -> None:
    """Refuse a credential that others can read or swap. ``about``: what is known of the file, if ``path`` is no link."""
    # Where it is a link, what it leads to counts: its mode, and the folder that holds it.
    real = os.path.realpath(path) if about is None else os.path.abspath(path)
    about = about or os.stat(real)
    if about.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise UsageError(f"{path} belongs to user {about.st_uid}, not to you (user {os.geteuid()}): use a file of your own")
    if trusts_state_folder(trust):
        return
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise UsageError(
            f"{path} holds a private key and others can read it (mode {stat.S_IMODE(about.st_mode):04o}): "
            f"run  chmod 600 {path}  and make a new one if somebody may have read it. "
            "Where chmod has no effect (AFS, CIFS) and you know that nobody else can read it: --trust-state-dir, trust_state_dir=True "
            "or WINDLASS_TRUST_STATE_DIR=1"
        )
    folder = os.path.dirname(real)
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    # A batch system's sandbox may be listed by others, which gives them nothing; they must not be able to swap the file.
    swappable = mode & 0o022 and not mode & stat.S_ISVTX
    if swappable or (strict_folder and mode & 0o077):
        raise UsageError(f"{folder}, which holds {os.path.basename(path)}, is open to others (mode {mode:04o}): run  chmod 700 {folder}")


def read_connection_file(path: str | os.PathLike[str], *, trust: bool | None = None) -> ConnectionFile:
    """Read ``client.json`` or ``pilot.json``. ``trust``: the user says that others cannot read it, whatever its mode.

    Raises:
        FileNotFoundError: it is not there.
        UsageError: others can read it, or it is not a connection file; the text says what to do.
    """
    path = os.fspath(path)
    # A thousand workers read it from one shared filesystem: with as few operations as it takes.
    about: os.stat_result | None = None
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    else:
        about = os.fstat(file)
    try:
        data = b"".join(iter(lambda: os.read(file, 64 << 10), b""))
    finally:
        os.close(file)
    try:
        found = msgspec.json.decode(data, type=ConnectionFile)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not a connection file of Windlass ({error}); give the manager's client.json or pilot.json") from error
    _check_private(path, strict_folder=found.role != ENROL, trust=(found.trusted and found.role == ENROL) or trust, about=about)
    return msgspec.structs.replace(found, path=os.path.abspath(path))


# ---------------------------------------------------------------- TLS contexts


@contextmanager
def _as_file(data: bytes) -> Generator[str]:
    """A path that gives these bytes to this process, as long as the block lasts."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("windlass-key", os.MFD_CLOEXEC)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    import tempfile

    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(data)
        file.flush()
        yield file.name


def _prepare(context: ssl.SSLContext, ca_pem: str, cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca_pem)
    with _as_file(cert_pem.rstrip() + b"\n" + key_pem) as path:
        context.load_cert_chain(path)
    return context


class _DiallingContext(ssl.SSLContext):
    """A context for names that are ASCII already, as managers' ids are.

    The one of the standard library puts each name through the idna codec, whose tables are twenty file-system calls before hello.
    """

    def _encode_hostname(self, hostname: str) -> str:  # called by ssl.SSLContext; where it no longer is, nothing is lost but those calls
        return hostname


def context_for(connection: ConnectionFile, cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """TLS for dialling the manager of ``connection`` with this certificate and key. Pass its id as ``server_hostname``."""
    context = _DiallingContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the host name
    return _prepare(context, connection.ca, cert_pem, key_pem)


def serving_context(ca_pem: str, cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """TLS for a worker that serves its peers with the certificate of its own: whoever comes must show one of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _prepare(context, ca_pem, cert_pem, key_pem)


def peer_of(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> Identity:
    """Role and name of the other side, from its verified certificate.

    Raises:
        ConnectionRefused: it showed none, or one without role and name.
    """
    certificate = cast("dict[str, Any]", ssl_object.getpeercert() or {})
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    fields = {key: value for part in subject for key, value in part}
    role, name = fields.get("organizationalUnitName"), fields.get("commonName")
    if not role or not name:
        raise ConnectionRefused("the other side's certificate names no role: it was not made by a Windlass manager")
    return Identity(role, name)


# ---------------------------------------------------------------- making certificates


def new_key_and_request(worker_id: str) -> tuple[bytes, bytes]:
    """A fresh private key and a request to sign it for this worker id: (key PEM, request PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(WORKER, worker_id)).sign(key, hashes.SHA256())
    return _key_pem(key), _pem(request)


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def _pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return thing.public_bytes(s.Encoding.PEM)


def _subject(role: str, name: str) -> x509.Name:
    from cryptography import x509

    oid = x509.oid.NameOID
    return x509.Name([x509.NameAttribute(oid.ORGANIZATIONAL_UNIT_NAME, role), x509.NameAttribute(oid.COMMON_NAME, name)])


class _Signer:
    """The authority's certificate and key, loaded."""

    def __init__(self, ca_pem: bytes, key_pem: bytes) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        self.certificate = x509.load_pem_x509_certificate(ca_pem)
        self.key: Any = serialization.load_pem_private_key(key_pem, None)

    def sign(self, public: Any, role: str, name: str, lifetime: float) -> bytes:
        return _pem(_certificate(self.certificate.subject, self.key, public, _subject(role, name), role, name, lifetime))


def _certificate(
    issuer: x509.Name, signer: Any, public: Any, subject: x509.Name, role: str, name: str, lifetime: float
) -> x509.Certificate:
    """One certificate; ``role`` "authority" makes the authority's own."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    authority = role == "authority"
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=BACKDATE))
        .not_valid_after(now + datetime.timedelta(seconds=lifetime))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=authority, crl_sign=authority, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        purposes = x509.oid.ExtendedKeyUsageOID
        uses = {MANAGER: [purposes.SERVER_AUTH], WORKER: [purposes.CLIENT_AUTH, purposes.SERVER_AUTH]}  # a worker may serve peers
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses.get(role, [purposes.CLIENT_AUTH])), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


class Authority:
    """A manager's own certificate authority, and its state folder."""

    def __init__(self, folder: Path, stored: _Stored, trust: bool | None = None) -> None:
        self.folder = folder
        self._trust = trust
        self._stored = stored
        self._signer: _Signer | None = None

    @property
    def manager_id(self) -> str:
        return self._stored.manager

    def is_half_spent(self, now: float) -> bool:
        """Half of the time is over for which its certificates hold: a manager that begins now is to have a new one."""
        return now > self._stored.made + self._stored.lifetime / 2

    @property
    def client_file(self) -> Path:
        return self.folder / "client.json"

    @property
    def pilot_file(self) -> Path:
        return self.folder / "pilot.json"

    @classmethod
    def create(
        cls,
        manager_id: str,
        folder: Path,
        addresses: Sequence[Address] = (),
        *,
        lifetime: float = LIFETIME,
        trust: bool | None = None,
    ) -> Authority:
        """Make an authority, and write its files into ``folder`` (made if need be, mode 0700). ``lifetime`` in seconds.

        Raises:
            UsageError: the id cannot be one, or the folder cannot be private and ``trust`` does not say that this is well.
        """
        if not _NAME.fullmatch(manager_id):
            raise UsageError(f"{manager_id!r} cannot be a manager's id: use a letter, then up to 62 letters, digits, '-' and '_'")
        make_private(folder, trust)
        ca_key = _new_key()
        subject = _subject("authority", manager_id)
        ca = _pem(_certificate(subject, ca_key, ca_key.public_key(), subject, "authority", manager_id, lifetime))
        key = _new_key()
        signer = _Signer(ca, _key_pem(ca_key))
        certificate = signer.sign(key.public_key(), MANAGER, manager_id, lifetime)
        stored = _Stored(
            manager=manager_id,
            ca=ca.decode(),
            ca_key=_key_pem(ca_key).decode(),
            certificate=certificate.decode(),
            key=_key_pem(key).decode(),
            lifetime=lifetime,
            made=time.time(),
        )
        authority = cls(folder, stored, trust)
        authority._signer = signer
        write_private(folder / "authority.json", msgspec.json.encode(stored))
        authority._write_connection(authority.client_file, CLIENT, addresses)
        authority._write_connection(authority.pilot_file, ENROL, addresses)
        return authority

    @classmethod
    def load(cls, folder: Path, *, trust: bool | None = None) -> Authority:
        """The authority that is kept in ``folder``.

        Raises:
            FileNotFoundError: there is none.
            UsageError: others can read it, or it is damaged.
        """
        path = folder / "authority.json"
        data = path.read_bytes()
        _check_private(os.fspath(path), strict_folder=True, trust=trust)
        try:
            stored = msgspec.json.decode(data, type=_Stored)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{path} is damaged ({error}): remove {folder} and a new authority is made, which old pilots cannot use"
            ) from error
        if not stored.made:
            stored.made = os.stat(path).st_mtime
        return cls(folder, stored, trust)

    def _write_connection(self, path: Path, role: str, addresses: Sequence[Address]) -> None:
        certificate, key = self.credential(role, role)
        connection = ConnectionFile(
            manager=self.manager_id,
            role=role,
            ca=self._stored.ca,
            certificate=certificate.decode(),
            key=key.decode(),
            addresses=tuple((host, port) for host, port in addresses),
            trusted=trusts_state_folder(self._trust),
        )
        write_private(path, msgspec.json.encode(connection))

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Write where the manager listens into ``client.json`` and ``pilot.json``."""
        for path in (self.client_file, self.pilot_file):
            old = read_connection_file(path, trust=self._trust)
            fresh = msgspec.structs.replace(
                old, addresses=tuple((host, port) for host, port in addresses), path="", trusted=trusts_state_folder(self._trust)
            )
            write_private(path, msgspec.json.encode(fresh))

    def signer(self) -> _Signer:
        """The key that signs, loaded when first needed."""
        if self._signer is None:
            self._signer = _Signer(self._stored.ca.encode(), self._stored.ca_key.encode())
        return self._signer

    def credential(self, role: str, name: str, lifetime: float = 0.0) -> tuple[bytes, bytes]:
        """A new certificate and key for a role, made here: (certificate PEM, key PEM). ``lifetime`` in seconds; 0: the authority's."""
        key = _new_key()
        return self.signer().sign(key.public_key(), role, name, lifetime or self._stored.lifetime), _key_pem(key)

    def issue(self, csr_pem: bytes, worker_id: str) -> bytes:
        """A certificate (PEM) that binds the request's key to this worker id; what the request says of itself does not count.

        Raises:
            ConnectionRefused: the request is damaged or not signed by its key, or the id cannot be one.
        """
        from cryptography import x509

        if not _WORKER_NAME.fullmatch(worker_id) or worker_id == self.manager_id:
            raise ConnectionRefused(f"{worker_id!r} cannot be a worker's id: use up to 64 letters, digits and any of '_.:@-'")
        try:
            request = x509.load_pem_x509_csr(csr_pem)
            sound = request.is_signature_valid
        except Exception as error:  # the parser's errors are many, the bytes a stranger's
            raise ConnectionRefused(f"worker {worker_id}'s certificate request cannot be read: {error}") from error
        if not sound:
            raise ConnectionRefused(f"worker {worker_id}'s certificate request is not signed by its own key")
        return self.signer().sign(request.public_key(), WORKER, worker_id, self._stored.lifetime)

    def permit(self, name: str, source: str, reader: str, seconds: float = PERMIT_SECONDS) -> bytes:
        """The word that worker ``reader`` may read the file ``name`` from worker ``source`` for so many seconds: see `windlass.permits`."""
        from windlass.permits import make_permit

        return make_permit(self.signer().key, name, source, reader, time.time() + seconds)

    def server_context(self) -> ssl.SSLContext:
        """TLS for the manager's listener: version 1.3, a certificate of this authority asked of everyone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A reconnect shows its certificate again anyway; tickets would cost two more records per handshake.
        context.num_tickets = 0
        return _prepare(context, self._stored.ca, self._stored.certificate.encode(), self._stored.key.encode())
