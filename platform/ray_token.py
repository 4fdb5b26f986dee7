"""Keep one secret of our own with which every Ray process of st4vla is authenticated.

`ray start` and `ray job submit` disagree about when a token is asked for unless both are told; so both get the mode
and the place of a token that belongs to this user's st4vla and nothing else.
"""

import os
import secrets
from pathlib import Path


def st4vla_home() -> Path:
    """The user's own folder for what outlives a run: ST4VLA_HOME, or ~/.st4vla."""
    return Path(os.environ.get("ST4VLA_HOME") or Path.home() / ".st4vla")


def ray_token_environment() -> dict[str, str]:
    """Give the variables that authenticate with Ray, making the token, readable by its owner only, if need be.

    Variables the user has set are kept, so that a foreign cluster's own token can be used.
    """
    if "RAY_AUTH_MODE" in os.environ:
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        return {name: os.environ[name] for name in names if name in os.environ}
    path = st4vla_home() / "ray_token"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
