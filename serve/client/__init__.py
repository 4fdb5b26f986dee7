"""The robot's end of the wire; needs numpy, msgpack and websockets, nothing else."""

from st4vla.serve.client.robot_client import RobotClient
from st4vla.serve.client.settings import ClientConfig, ClientStats, Command, Robot

__all__ = ["ClientConfig", "ClientStats", "Command", "Robot", "RobotClient"]
