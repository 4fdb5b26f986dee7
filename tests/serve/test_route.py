"""The straight way to a replica is told from the way round."""

import socket
import threading
from pathlib import Path

from st4vla.serve.route import has_replica, wait_for_direct_route

HEAD = "# pxname,svname," + ",".join(f"c{place}" for place in range(2, 20))


def row(server: str, status: str) -> str:
    return ",".join(["http-st4vla", server, *["0"] * 15, status, "1", "1"])


def test_only_a_replica_that_is_up_counts():
    assert has_replica("\n".join([HEAD, row("SERVE_REPLICA_st4vla-Post-x", "UP")]))
    assert not has_replica("\n".join([HEAD, row("SERVE_REPLICA_st4vla-Post-x", "DOWN 1/2")]))
    assert not has_replica("\n".join([HEAD, row("SERVE_PROXY_ACTOR-fallback-y", "UP")]))
    assert not has_replica("")


def test_the_socket_below_a_place_is_asked_until_a_replica_is_up(tmp_path: Path):
    (tmp_path / "node").mkdir()
    answers = iter([row("SERVE_PROXY_ACTOR-fallback-y", "UP"), row("SERVE_REPLICA_st4vla-Post-x", "UP")])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "node" / "admin.sock"))
        server.listen()

        def answer() -> None:
            for text in answers:
                line, _ = server.accept()
                assert line.recv(100) == b"show stat\n"
                line.sendall(text.encode())
                line.close()

        threading.Thread(target=answer, daemon=True).start()
        assert wait_for_direct_route(tmp_path, patience_s=10)


def test_patience_ends(tmp_path: Path):
    assert not wait_for_direct_route(tmp_path, patience_s=0.2)
