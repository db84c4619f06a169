"""Certificates, connection files, and who may be whom."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from windlass.errors import ConnectionRefused, UnknownName, UsageError
from windlass.identity import (
    CLIENT,
    ENROL,
    MANAGER,
    WORKER,
    Authority,
    ConnectionFile,
    Identity,
    context_for,
    find_manager,
    manager_folder,
    new_key_and_request,
    peer_of,
    read_connection_file,
    state_folder,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create("m1", tmp_path / "m1", [("127.0.0.1", 9123)])


def shake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A TLS handshake in memory: both sides, or the error of the side that refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    return ours, theirs


def test_files_are_private_and_their_folder_too(authority: Authority) -> None:
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    files = sorted(path.name for path in authority.folder.iterdir())
    assert files == ["authority.json", "client.json", "pilot.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in authority.folder.iterdir()} == {0o600}


def test_a_connection_file_says_who_where_and_as_what(authority: Authority) -> None:
    client, pilot = read_connection_file(authority.client_file), read_connection_file(authority.pilot_file)
    assert (client.manager, client.role, client.addresses) == ("m1", CLIENT, (("127.0.0.1", 9123),))
    assert (pilot.manager, pilot.role, pilot.path) == ("m1", ENROL, str(authority.pilot_file))


def test_addresses_are_rewritten_in_both_files_and_credentials_stay(authority: Authority) -> None:
    before = read_connection_file(authority.pilot_file)
    authority.set_addresses([("10.0.0.1", 1), ("10.0.0.2", 2)])
    after = read_connection_file(authority.pilot_file)
    assert after.addresses == read_connection_file(authority.client_file).addresses == (("10.0.0.1", 1), ("10.0.0.2", 2))
    assert after.key == before.key


@pytest.mark.parametrize("path", ["client.json", "pilot.json"])
def test_a_file_that_others_can_read_is_refused_with_the_remedy(authority: Authority, path: str) -> None:
    (authority.folder / path).chmod(0o640)
    with pytest.raises(UsageError, match=rf"others can read it \(mode 0640\): run  chmod 600 .*{path}"):
        read_connection_file(authority.folder / path)


def test_the_clients_folder_must_be_private(authority: Authority) -> None:
    authority.folder.chmod(0o755)
    with pytest.raises(UsageError, match=r"is open to others \(mode 0755\): run  chmod 700"):
        read_connection_file(authority.client_file)


def test_a_pilots_sandbox_may_be_listed_but_not_written_by_others(authority: Authority) -> None:
    authority.folder.chmod(0o755)
    assert read_connection_file(authority.pilot_file).role == ENROL
    authority.folder.chmod(0o777)
    with pytest.raises(UsageError, match="chmod 700"):
        read_connection_file(authority.pilot_file)


def test_what_is_no_connection_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a connection file of Windlass"):
        read_connection_file(tmp_path / "x.json")


def test_both_sides_learn_role_and_name(authority: Authority) -> None:
    client = read_connection_file(authority.client_file)
    ours, theirs = shake(client.client_context(), authority.server_context(), "m1")
    assert peer_of(ours) == Identity(MANAGER, "m1")
    assert peer_of(theirs) == Identity(CLIENT, CLIENT)
    assert ours.version() == "TLSv1.3"


def test_an_authority_that_is_loaded_again_is_the_same_one(authority: Authority) -> None:
    client = read_connection_file(authority.client_file)
    _, theirs = shake(client.client_context(), Authority.load(authority.folder).server_context(), "m1")
    assert peer_of(theirs).role == CLIENT


def test_half_of_its_time_is_over_some_day(authority: Authority) -> None:
    """Also by the file of one that did not note when it was made."""
    made, year = time.time(), 365 * 86400
    again = Authority.load(authority.folder)
    assert not again.is_half_spent(made + 0.49 * year)
    assert again.is_half_spent(made + 0.51 * year)
    path = authority.folder / "authority.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "made": 0.0}))
    os.utime(path, (made, made - 0.6 * year))
    assert Authority.load(authority.folder).is_half_spent(made)


def test_the_name_that_is_checked_is_the_managers_id(authority: Authority) -> None:
    client = read_connection_file(authority.client_file)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(client.client_context(), authority.server_context(), "m2")


def test_another_managers_credentials_do_not_do(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create("m1", tmp_path / "other", [])
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.verify.failed"):
        shake(read_connection_file(other.client_file).client_context(), authority.server_context(), "m1")


def test_a_worker_gets_a_certificate_for_its_own_key_and_id(authority: Authority) -> None:
    key, request = new_key_and_request("somebody-else")
    certificate = authority.issue(request, "w1")
    context = context_for(read_connection_file(authority.pilot_file), certificate, key)
    _, theirs = shake(context, authority.server_context(), "m1")
    assert peer_of(theirs) == Identity(WORKER, "w1")


def test_a_worker_cannot_be_issued_the_managers_name(authority: Authority) -> None:
    _, request = new_key_and_request("w1")
    for name in ("m1", "", "a b", "x" * 65, "über"):
        with pytest.raises(ConnectionRefused, match="cannot be a worker's id"):
            authority.issue(request, name)


def test_a_damaged_request_is_refused(authority: Authority) -> None:
    with pytest.raises(ConnectionRefused, match="worker w1's certificate request cannot be read"):
        authority.issue(b"nonsense", "w1")


def test_certificates_begin_a_day_back_and_last_a_year(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(read_connection_file(authority.pilot_file).certificate.encode())
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 366


@pytest.mark.parametrize("name", ["", "1m", "a.b", "a/b", "x" * 64, "../up"])
def test_a_managers_id_must_be_a_plain_word(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use a letter, then up to 62"):
        Authority.create(name, tmp_path / "x")
    with pytest.raises(UsageError, match="cannot name a manager"):
        manager_folder(name)


def test_the_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WINDLASS_STATE_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_folder() == Path.home() / ".local" / "state" / "windlass"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "windlass"
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "mine"))
    assert manager_folder("m1") == tmp_path / "mine" / "managers" / "m1"


def test_a_manager_is_found_by_name_folder_or_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    with pytest.raises(UnknownName, match="there is no manager yet"):
        find_manager("experiment")
    made = Authority.create("m1", manager_folder("experiment"))
    assert find_manager("experiment") == find_manager(made.folder) == find_manager(made.client_file) == made.client_file
    with pytest.raises(UnknownName, match="there is no manager 'experimint'; did you mean 'experiment'"):
        find_manager("experimint")


def test_a_worker_can_dial_without_the_library_that_signs(authority: Authority) -> None:
    """It takes hundreds of file-system calls to import."""
    program = (
        "import sys; from windlass.identity import read_connection_file; import windlass.transport; "
        "read_connection_file(sys.argv[1]).client_context(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('cryptography', 'cloudpickle', 'numpy', 'psutil')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(authority.pilot_file)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


def test_keys_go_through_a_private_file_where_there_are_no_memory_files(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    connection: ConnectionFile = read_connection_file(authority.client_file)
    shake(connection.client_context(), authority.server_context(), "m1")
