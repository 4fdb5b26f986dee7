"""Send rubbish: a million frames at the decoders, twenty thousand over sockets, too much, too slowly, without a key.

    python -m benchmarks.serve_fuzz [--record] [--frames N] [--socket-frames N]

Frames are valid messages with bytes changed, cut, repeated or inserted, and bytes at random. Only a WireError may come
of one; anything else, a decode that takes a second, or memory that grows by more than 100 MB, counts as a fault. So
does a megabyte of empty pictures that is decoded, into a gigabyte, instead of being refused. Over sockets a robot with
a good key must be answered all the while.
"""

import argparse
import base64
import json
import random
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from benchmarks.fixed_latency import SPEC
from benchmarks.results import record
from benchmarks.serving import UNBOUNDED, Server, libero_message, server
from st4vla.platform.errors import WireError
from st4vla.platform.wire import groot, json_form, openpi, vla_eval
from st4vla.platform.wire.images import encode_image
from st4vla.platform.wire.json_form import write_image
from st4vla.platform.wire.limits import DEFAULT_LIMITS
from st4vla.platform.wire.stamps import KEY, RequestStamp
from st4vla.serve.access import KeyFile
from st4vla.serve.keymap import KeyMap, read_observation

SLOWEST_S = 1.0
FRAME = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
NATIVE = KeyMap.native(SPEC)
KEY_HEADER = "Authorization"


def seeds() -> dict[str, bytes]:
    """Give one valid message of each protocol."""
    stamp = RequestStamp("arm", "run", 3, 100.0, 1, 2, True, remaining=np.zeros((4, 7), np.float32)).as_plain()
    seen = {"images": {"third_person": FRAME, "wrist": FRAME}, "state": np.zeros(8), "prompt": "go", KEY: stamp}
    image = write_image(FRAME)
    act = {"images": {"third_person": image}, "state": [0.0] * 8, "instruction": "go", KEY: {"robot": "arm"}}
    gr00t = {"endpoint": "get_action", "data": {"observation": {"video": {"a": FRAME[None, None]}, "state": {}}}}
    return {
        "openpi": openpi.pack(seen),
        "vla_eval": vla_eval.pack(vla_eval.Message("observation", seen, 1), "png"),
        "json": json.dumps(act).encode(),
        "groot": groot.pack(gr00t),
    }


def bombs() -> dict[str, bytes]:
    """Give a message of each protocol that compresses pictures, full of small files with four million pixels each."""
    edge = int(DEFAULT_LIMITS.max_pixels**0.5)
    data = encode_image(np.zeros((edge, edge, 3), np.uint8))
    image = {"__image__": True, "format": "png", "data": data, "shape": [edge, edge, 3]}
    plain = {"format": "png", "data": base64.b64encode(data).decode()}
    cameras = [f"cam_{number}" for number in range(80)]
    seen = vla_eval.Message("observation", {"images": dict.fromkeys(cameras, image)}, 1)
    act = {"images": dict.fromkeys(cameras, plain), "instruction": "go"}
    return {"vla_eval": vla_eval.pack(seen), "json": json.dumps(act).encode()}


def explode() -> Counter[str]:
    """Feed the decoders bombs; count outcomes as `fuzz_decoders` does."""
    outcomes, feed = Counter[str](), decoders()
    for name, frame in bombs().items():
        try:
            feed[name](frame)
            outcomes["fault"] += 1
            print(f"{name}: a bomb of {len(frame)} bytes was decoded")
        except WireError as error:
            outcomes["refused" if error.kind == "too_large" else "fault"] += 1
    return outcomes


def decoders() -> dict[str, Callable[[bytes], object]]:
    """Give what is fed, by protocol."""

    def openpi_door(frame: bytes) -> None:
        message = openpi.unpack(frame)
        RequestStamp.read(message.get(KEY, {}))
        read_observation(message, NATIVE, SPEC)

    def vla_eval_door(frame: bytes) -> None:
        read_observation(vla_eval.unpack(frame).payload, NATIVE, SPEC)

    return {"openpi": openpi_door, "vla_eval": vla_eval_door, "json": json_form.read_act, "groot": groot.unpack}


def spoil(frame: bytes, rng: random.Random) -> bytes:
    """Give a frame with something wrong with it, or none of its own at all."""
    kind, spoilt = rng.randrange(7), bytearray(frame)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return bytes(spoilt[: rng.randrange(len(spoilt))])
    if kind == 2:
        return bytes(msgpack.Packer().pack(anything(rng, 0)))
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(spoilt))
        # Heads of msgpack's long forms lie from 0xc0 to 0xdf; they do the most harm.
        spoilt[at] = rng.randrange(0xC0, 0xE0) if kind == 3 else rng.randrange(256)
        if kind == 4:
            spoilt[at:at] = rng.randbytes(rng.randrange(1, 9))
        if kind == 5:
            del spoilt[at : at + rng.randrange(1, 9)]
    return bytes(spoilt)


def anything(rng: random.Random, depth: int) -> object:
    """Give a value of some type, with the protocols' own key words in it."""
    words = [
        "__ndarray__",
        "__image__",
        "data",
        "dtype",
        "shape",
        "<f4",
        "images",
        "state",
        "st4vla",
        "type",
        "payload",
    ]
    kind = rng.randrange(9 if depth < 5 else 6)
    if kind < 6:
        plain = [None, True, rng.randrange(-(2**40), 2**40), float("nan"), rng.choice(words), rng.randbytes(9)]
        return plain[kind]
    if kind < 8:
        keys = [*words, b"__ndarray__", b"data", b"dtype", b"shape", b"__npgeneric__"]
        return {rng.choice(keys): anything(rng, depth + 1) for _ in range(rng.randrange(6))}
    return [anything(rng, depth + 1) for _ in range(rng.randrange(6))]


def fuzz_decoders(count: int) -> Counter[str]:
    """Feed every decoder; count outcomes, "fault" among them."""
    rng, outcomes, frames, feed = random.Random(0), Counter[str](), seeds(), decoders()
    names = list(frames)
    for number in range(count):
        name = names[number % len(names)]
        frame = spoil(frames[name], rng)
        began = time.perf_counter()
        try:
            feed[name](frame)
            outcomes["read"] += 1
        except WireError as error:
            outcomes["refused"] += 1
            outcomes[f"refused as {error.kind}"] += 1
        except Exception as error:
            outcomes["fault"] += 1
            print(f"{name}: {error!r} from {frame[:80]!r}")
        if time.perf_counter() - began > SLOWEST_S:
            outcomes["slow"] += 1
    return outcomes


def fuzz_sockets(running: Server, key: str, count: int) -> Counter[str]:
    """Send spoilt frames over many connections; count what came back."""
    rng, outcomes, frame = random.Random(1), Counter[str](), libero_message(1)
    small = seeds()["openpi"]
    sent = 0
    while sent < count:
        try:
            with connect(running.url, compression=None, additional_headers={KEY_HEADER: f"Api-Key {key}"}) as line:
                line.recv(timeout=20)
                for _ in range(40):
                    line.send(spoil(frame if sent % 50 == 0 else small, rng))
                    sent += 1
                    outcomes["refused" if b"error" in line.recv(timeout=20, decode=False)[:200] else "answered"] += 1
        except ConnectionClosed:
            outcomes["sent away"] += 1
        except TimeoutError:
            outcomes["fault: no answer"] += 1
    return outcomes


def wrong_keys(running: Server, count: int = 200) -> int:
    """Count the handshakes with wrong keys that were let in."""
    let_in = 0
    for number in range(count):
        try:
            headers = {KEY_HEADER: f"Api-Key st4vla_{number:08x}_{number}"}
            with connect(running.url, additional_headers=headers if number % 2 else None):
                let_in += 1
        except InvalidHandshake:
            pass
    return let_in


def too_much(running: Server, key: str) -> bool:
    """Say whether a frame of 20 MiB ends its connection, and nothing else."""
    try:
        headers = {KEY_HEADER: f"Api-Key {key}"}
        with connect(running.url, compression=None, max_size=None, additional_headers=headers) as line:
            line.recv(timeout=20)
            line.send(b"\0" * (20 * 1024 * 1024))
            line.recv(timeout=30)
    except (ConnectionClosed, OSError):
        return True
    return False


def too_slow(running: Server, sockets: int = 200, patience_s: float = 40.0) -> int:
    """Open connections that send a byte a second; count those that the server has not ended in time."""
    lines = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(sockets)]
    head, until = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", time.monotonic() + patience_s
    for line in lines:
        line.sendall(head)
        line.setblocking(False)
    while lines and time.monotonic() < until:
        time.sleep(1)
        lines = [line for line in lines if is_open(line)]
    return len(lines)


def is_open(line: socket.socket) -> bool:
    """Send one more byte, and say whether the other end still listens."""
    try:
        line.send(b"a")
        return line.recv(1024) == b"never"
    except BlockingIOError:
        return True
    except OSError:
        return False


class Bystander:
    """A well-behaved robot that asks all the while."""

    def __init__(self, running: Server, key: str):
        self.answered, self.failed, self._key, self._url = 0, 0, key, running.url
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        headers = {KEY_HEADER: f"Api-Key {self._key}"}
        with connect(self._url, compression=None, additional_headers=headers) as line:
            line.recv()
            while not self._end.wait(0.05):
                line.send(libero_message(77))
                answer = openpi.unpack(bytes(line.recv(timeout=30, decode=False)))
                good = answer.get("actions", np.zeros((1, 1)))[0, 0] == 77
                self.answered, self.failed = self.answered + good, self.failed + (not good)

    def close(self) -> None:
        """Stop asking."""
        self._end.set()
        self._thread.join()


def attack(frames: int) -> dict[str, int]:
    """Attack a server from every side; give the faults by kind."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        key = KeyFile(Path(name) / "keys.json").add("bench", ["act", "observe"])
        with server("fixed-0-0@1", *UNBOUNDED, f"folder={name}") as running:
            robot = Bystander(running, key)
            outcomes = fuzz_sockets(running, key, frames)
            print(f"over sockets: {dict(outcomes)}")
            faults = {
                "unanswered": outcomes["fault: no answer"],
                "let in with a wrong key": wrong_keys(running),
                "20 MiB taken": not too_much(running, key),
                "slow connections kept": too_slow(running),
            }
            robot.close()
            print(f"meanwhile a robot was answered {robot.answered} times")
            return {**faults, "answers a robot did not get": robot.failed + (robot.answered == 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results.json")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--socket-frames", type=int, default=20_000)
    options = parser.parse_args()
    fuzz_decoders(2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = fuzz_decoders(options.frames) + explode()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"decoders: {dict(outcomes)}; memory grew by at most {grown:.0f} MB")
    faults = attack(options.socket_frames) if options.socket_frames else {}
    print(f"faults: {faults}")
    if options.record:
        command = "python -m benchmarks.serve_fuzz --record"
        at_decoders = outcomes["fault"] + outcomes["slow"] + (grown > 100)
        record("1,000,000 spoilt frames at the decoders, faults", 6, at_decoders, "faults", "<= 0", command)
        record(
            "20,000 spoilt frames and other attacks over sockets, faults",
            6,
            int(sum(faults.values())),
            "faults",
            "<= 0",
            command,
        )


if __name__ == "__main__":
    main()
