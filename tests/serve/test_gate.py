"""The gate hides what is not for robots, ends TLS, gives up on what trickles in, and comes back when it is killed."""

import datetime
import http.server
import os
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError
from st4vla.platform.ports import free_ports
from st4vla.serve.gate import Gate, GateConfig, gate_text


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path} for {self.headers.get('X-Forwarded-For')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def backend() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()


@pytest.fixture
def a_gate(backend: int, tmp_path: Path) -> Iterator[Gate]:
    port, vla_eval_port = free_ports(2)
    gate = Gate(GateConfig(port=port, vla_eval_port=vla_eval_port, request_timeout_s=1), backend, tmp_path, 1000)
    gate.open()
    yield gate
    gate.close()


def get(url: str, context: ssl.SSLContext | None = None, claimed_address: str = "") -> str:
    headers = {"X-Forwarded-For": claimed_address} if claimed_address else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=context) as answer:
        return answer.read().decode()


def test_requests_pass_with_their_true_address(a_gate: Gate) -> None:
    url = f"http://127.0.0.1:{a_gate._config.port}"
    assert get(f"{url}/v1/act", None, "6.6.6.6") == "/v1/act for 127.0.0.1"
    assert get(f"http://127.0.0.1:{a_gate._config.vla_eval_port}/").startswith("/vla-eval for")


def test_serves_own_pages_and_large_bodies_are_refused(a_gate: Gate) -> None:
    url = f"http://127.0.0.1:{a_gate._config.port}"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/-/routes")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(f"{url}/v1/act", b"x" * 1001, timeout=10)


def test_a_request_that_trickles_in_is_given_up(a_gate: Gate) -> None:
    with socket.create_connection(("127.0.0.1", a_gate._config.port)) as line:
        line.settimeout(20)
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert b"408" in line.recv(1000)


def test_every_door_bounds_the_connections_of_an_address() -> None:
    text = gate_text(GateConfig(vla_eval_port=8001, connections_per_address=7), 9000, 0, None, 1000)
    doors = [section for section in text.split("\nfrontend ")[1:]]
    assert len(doors) == 2
    for door in doors:
        assert "tcp-request connection track-sc0 src table addresses" in door
        assert "tcp-request connection reject if { sc_conn_cur(0,addresses) gt 7 }" in door


def test_an_address_has_its_connections_over_both_doors_together(backend: int, tmp_path: Path) -> None:
    port, vla_eval_port = free_ports(2)
    config = GateConfig(port=port, vla_eval_port=vla_eval_port, connections_per_address=2)
    gate = Gate(config, backend, tmp_path, 1000)
    gate.open()
    try:
        with ExitStack() as open_lines:
            for one in (port, vla_eval_port):
                line = open_lines.enter_context(socket.create_connection(("127.0.0.1", one), timeout=20))
                line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in line.recv(1000)
            with suppress(ConnectionError):
                third = open_lines.enter_context(socket.create_connection(("127.0.0.1", vla_eval_port), timeout=20))
                third.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert third.recv(1000) == b""
    finally:
        gate.close()


def test_a_killed_gate_comes_back(a_gate: Gate) -> None:
    os.kill(a_gate.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:
        try:
            assert get(f"http://127.0.0.1:{a_gate._config.port}/").startswith("/ for")
            break
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert a_gate.restarts == 1


def test_a_fallback_stands_in_while_nothing_listens_behind(backend: int, tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    gate = Gate(GateConfig(port=port), nobody, tmp_path, 1000, fallback_port=backend)
    gate.open()
    try:
        assert get(f"http://127.0.0.1:{port}/").startswith("/ for")
    finally:
        gate.close()


def test_tls_is_ended_here(backend: int, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    (port,) = free_ports(1)
    config = GateConfig(port=port, certificate=str(certificate), private_key=str(key))
    gate = Gate(config, backend, tmp_path / "gate", 1000)
    gate.open()
    try:
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert get(f"https://localhost:{port}/", trusting).startswith("/ for")
        with pytest.raises((urllib.error.URLError, OSError)):
            get(f"http://localhost:{port}/")
        assert (tmp_path / "gate" / "gate.pem").stat().st_mode & 0o777 == 0o600
    finally:
        gate.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize(
    "settings", [{"certificate": "x"}, {"port": 0}, {"port": 9, "vla_eval_port": 9}, {"request_timeout_s": 0}], ids=repr
)
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        GateConfig(**settings)


def test_an_address_that_is_taken_is_refused(backend: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose another gate.port|cannot be set up"):
        Gate(GateConfig(port=backend), backend, tmp_path, 1000).open()
