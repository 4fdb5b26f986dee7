"""Find ports that nobody listens on."""

import socket


def free_ports(count: int) -> list[int]:
    """Give ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
