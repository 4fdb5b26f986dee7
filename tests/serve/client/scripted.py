"""A robot's client over a link whose answers come when a test says so."""

from collections import deque

from st4vla.platform.wire.stamps import KEY, metadata
from st4vla.serve.client import ClientConfig, RobotClient
from st4vla.serve.client.link import Connected, Reply
from st4vla.serve.client.point_server import SPEC, answer
from st4vla.serve.safety.embodiment import Embodiment
from st4vla.serve.safety.interventions import InterventionLog, read_log

POINT = Embodiment.load("point")


class ScriptedLink:
    """A link whose answers come after so many control steps, or when told."""

    def __init__(self, delays=(), told=None):
        self.is_up, self.sent, self.step = True, [], 0
        self._events = deque([(0, Connected(told if told is not None else metadata(SPEC, "point")))])
        self._delays = deque(delays)

    def start(self):
        pass

    def close(self):
        pass

    def send(self, ticket, message):
        self.sent.append(message)
        if self._delays and ticket > 0:
            self.tell(Reply(ticket, answer(message)), self._delays.popleft())

    def tell(self, event, delay=0):
        self._events.append((self.step + delay, event))

    def poll(self):
        due = next((entry for entry in self._events if entry[0] <= self.step), None)
        if due is None:
            return None
        self._events.remove(due)
        return due[1]


def client_of(link, tmp_path=None, clock=lambda: 0.0, **config):
    log = InterventionLog(tmp_path / "log.jsonl") if tmp_path is not None else None
    return RobotClient(ClientConfig(**{"robot": "arm", "execute_steps": 4, **config}), POINT, link, log, clock)


def logged(client):
    client._interventions.flush()
    return list(read_log(client._interventions.path))


def run(client, link, robot, steps):
    whys = []
    for _ in range(steps):
        command = client.tick(robot.observe)
        robot.hold() if command.action is None else robot.apply(command.action)
        link.step += 1
        whys.append(command.why)
    return whys


def stamps(link):
    return [message[KEY] for message in link.sent]
