"""Keys open what they are for and nothing else, and nobody may ask without end."""

import base64
from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError, WireError
from st4vla.serve.access import KeyFile, Lock, RateConfig, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def kind_of(lock: Lock, authorization: str | None, scope: str = "act") -> str:
    with pytest.raises(WireError) as caught:
        lock.admit(authorization, scope)
    return caught.value.kind


def test_a_key_opens_its_scopes_in_every_form_of_header(keys: KeyFile) -> None:
    key = keys.add("cell", ["act", "observe"])
    lock = Lock(keys.read())
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    for header in (f"Api-Key {key}", f"Bearer {key}", f"bearer {key}", f"Basic {basic}"):
        assert lock.admit(header, "observe").key_id == key.split("_")[1]
    assert kind_of(lock, f"Api-Key {key}", "admin") == "forbidden"


def test_what_is_no_key_is_refused(keys: KeyFile) -> None:
    key = keys.add("cell", ["act"])
    lock = Lock(keys.read())
    wrong = [None, "", "Api-Key", "Api-Key st4vla", key, f"Api-Key {key}x", f"Api-Key {key[:-1]}", "Basic %%%"]
    assert {kind_of(lock, header) for header in (*wrong, "Bearer st4vla_ffffffff_x")} == {"unauthorized"}


def test_only_hashes_are_kept_and_only_for_the_owner(keys: KeyFile) -> None:
    key = keys.add("cell", ["act"])
    assert key.split("_", 2)[2] not in keys.path.read_text()
    assert keys.path.stat().st_mode & 0o777 == 0o600


def test_a_key_ends_when_it_is_revoked_or_expires(keys: KeyFile) -> None:
    clock = Clock()
    short, long = keys.add("short", ["act"], days=1, now=1000.0), keys.add("long", ["act"], now=1000.0)
    lock = Lock(keys.read(), clock)
    caller = lock.admit(f"Api-Key {short}", "act")
    clock.now += 86401
    assert kind_of(lock, f"Api-Key {short}") == "unauthorized" and not lock.still_valid(caller)
    keys.revoke(long.split("_")[1])
    lock.change(keys.read())
    assert kind_of(lock, f"Api-Key {long}") == "unauthorized"


def test_without_any_key_everybody_is_let_in_but_not_before_that_is_known() -> None:
    assert Lock(()).admit(None, "admin").scopes == ("act", "observe", "admin")
    assert kind_of(Lock(None), None) == "unauthorized"


def test_a_key_acts_for_its_robots_alone(keys: KeyFile) -> None:
    key = keys.add("cell", ["act"], ["arm-*", "leg"])
    caller = Lock(keys.read()).admit(f"Bearer {key}", "act")
    caller.check_robot("arm-3")
    caller.check_robot("leg")
    with pytest.raises(WireError, match="not for a robot"):
        caller.check_robot("leg-2")


def test_an_unknown_scope_and_an_unknown_id_are_refused(keys: KeyFile) -> None:
    with pytest.raises(ConfigError, match="scopes are"):
        keys.add("cell", ["root"])
    with pytest.raises(ConfigError, match="no key 'abc'"):
        keys.revoke("abc")


def test_a_file_that_holds_something_else_is_refused(keys: KeyFile) -> None:
    keys.path.write_text('{"password": "x"}')
    with pytest.raises(ConfigError, match="does not hold keys"):
        keys.read()


def test_a_robot_may_ask_in_bursts_and_on_average() -> None:
    clock = Clock()
    rates = Rates(RateConfig(requests_per_s=10, burst=3), clock)
    for _ in range(3):
        rates.take("arm")
    with pytest.raises(WireError) as caught:
        rates.take("arm")
    assert caught.value.kind == "rate_limited"
    rates.take("leg")
    clock.now += 0.1
    rates.take("arm")
