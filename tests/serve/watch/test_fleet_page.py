"""The fleet page in a real browser: what it shows, that it stays text, and that it fits a phone."""

import base64
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from st4vla.platform.contracts import Observation, Spatial
from st4vla.platform.wire import openpi
from st4vla.serve.access import KeyFile
from st4vla.serve.events import Refused, Served, Stopped, Trouble
from st4vla.serve.post import PostConfig
from st4vla.serve.watch.board import Board, Report
from st4vla.serve.watch.fleet import FleetView
from st4vla.serve.watch.fleet_page import fleet_page
from tests.serve.running import CONFIG, a_post

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the fleet page is not looked at in a browser"),
]
# Elements with text of their own that is wider than they are.
CUT_OFF = """[...document.querySelectorAll('.robot dd, .robot dt, .robot h2, .robot .state')].filter(
    one => one.scrollWidth > one.clientWidth + 1)"""
EVERYTHING_KEPT = """JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href,
    document.documentElement.outerHTML, [...document.querySelectorAll('input')].map(one => one.value)])"""
HOSTILE = "<script>window.pwned=1</script>"
HOSTILE_WORDS = '"><img src=x onerror="window.pwned=2"><svg onload=window.pwned=3>'


class Browser:
    """One page of a headless browser, driven by its DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number, self._session = socket, 0, ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give the answer to one command."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps({**command, **({"sessionId": self._session} if self._session else {})}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._number:
            continue
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script: str) -> Any:
        """Give the value of an expression in the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, timeout_s: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(script):
            assert time.monotonic() < deadline, f"never true: {script}; {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def open(self, url: str, width: int, height: int, phone: bool = False) -> None:
        """Go to a page with a window of that size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        self.ask("Page.navigate", url=url)

    def picture(self, path: Path) -> None:
        """Save what is seen."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [str(CHROMIUM), *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"ws://\S+", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with connect(found[0], max_size=None, ping_interval=None) as socket:
            yield Browser(socket)
        process.terminate()


class Site:
    """The page and what it asks for, served as the application does."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.view = FleetView(clock=lambda: self.now)
        self.board, page = Board(clock=lambda: 0.0), fleet_page()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                if asked.path == "/v1/robots":
                    self.answer(json.dumps(site.board.fleet()).encode(), {"Content-Type": "application/json"})
                elif asked.path == "/v1/robots/frame":
                    picture = site.board.picture(parse_qs(asked.query)["robot"][0])
                    self.answer(picture or b"", {"Content-Type": "image/jpeg"})
                else:
                    self.answer(page.content, page.headers)

            def answer(self, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/fleet"

    def post(self) -> None:
        """Let the page see what the view has seen."""
        facts, deployment = {"waiting": 2}, {"canary_share": 0.1}
        pictures = self.view.pictures()
        self.board.post(Report("replica-1", self.view.snapshot(), None, pictures, facts, deployment))


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


def scene(step: int) -> np.ndarray:
    """Paint a table with a red and a blue block."""
    rows, columns = np.mgrid[0:224, 0:224]
    frame = np.stack([150 + rows / 6, 132 + rows / 8, 112 + columns / 9], 2).astype(np.uint8)
    frame[120:160, 60 + step : 100 + step] = (200, 54, 48)
    frame[90:130, 150:190] = (46, 84, 190)
    return frame


def tell(site: Site, make_served: Callable[..., Served], robots: int = 6) -> None:
    now, instruction = site.now, "put the red block into the blue bowl"
    for number in range(robots):
        for step in range(8):
            seen = Observation({"front": scene(6 * number)}, None, instruction)
            spatial = Spatial(
                "red block",
                (60.0 + 6 * number, 120.0, 100.0 + 6 * number, 160.0),
                ((80.0 + 6 * number, 140.0),),
                ((30, 40), (50, 80), (70, 105), (80 + 6 * number, 130)),
            )
            canary = number == 1
            answered = make_served(
                step,
                robot=f"arm-{number + 1}",
                at=now - 4 + step / 2,
                canary=canary,
                model_version="8" if canary else "7",
                spatial=spatial,
                plan_age_ms=60.0 + 700 * (number == 2),
                timing_ms={"total": 40 + 7 * number + 9 * ((step * 5) % 4)},
                interventions=[{"kind": "clamped", "limit": "velocity", "rows": [0, 1]}] * (number == 3),
            )
            site.view(Served(**{**vars(answered), "observation": seen}))


def test_the_page_shows_robots_marks_versions_and_stops(
    browser: Browser, site: Site, make_served: Callable[..., Served], tmp_path: Path
) -> None:
    tell(site, make_served)
    site.view(Stopped(True, "arm-5", "gripper jammed"))
    site.view(Refused("stale", "st4vla.sequence", robot="arm-3"))
    site.view(Trouble("recording_disk", "the disk has 800 MiB left and 1024 are kept free; free some space."))
    site.post()
    browser.open(site.url, 1280, 900)
    browser.wait("document.querySelectorAll('.robot').length === 6")
    browser.wait("[...document.querySelectorAll('.view img')].every(one => one.naturalWidth > 0)")
    first = "document.querySelector('.robot')"
    assert browser.run(f"{first}.querySelector('h2').textContent") == "arm-1"
    assert browser.run(f"{first}.querySelector('.tag.left').textContent") == "st4vla@7"
    assert browser.run(f"{first}.querySelector('.box').getAttribute('width')") == "40"
    assert browser.run(f"{first}.querySelectorAll('.dot').length") == 4
    assert browser.run(f"{first}.querySelector('.caption').textContent") == "red block"
    numbers = browser.run(f"[...{first}.querySelectorAll('dd')].map(one => one.textContent)")
    assert numbers == ["54 ms", "67 ms", "60 ms", "0.8 Hz"]
    assert browser.run("document.querySelectorAll('.robot.stopped').length") == 1
    text = browser.run("document.body.innerText")
    for words in (
        "Emergency stop: 1 robot",
        "arm-5 (gripper jammed)",
        "st4vla@8",
        "16.7 % of 10 % wanted, canary",
        "8 interventions, last clamped velocity",
        "1 refused, last stale",
        "free some space",
    ):
        assert words in text, words
    assert "STOPPED" in browser.run("document.title")
    browser.picture(tmp_path / "fleet.png")
    assert (tmp_path / "fleet.png").stat().st_size > 20_000


def test_what_robots_say_stays_text(browser: Browser, site: Site, make_served: Callable[..., Served]) -> None:
    for name in (HOSTILE, "a&b?c=d#e/../f", "\u202egnp.exe"):
        label = Spatial(HOSTILE_WORDS, (1, 1, 9, 9), (), ((1, 1), (2, 2)))
        changes = [{"kind": HOSTILE, "limit": HOSTILE_WORDS}]
        facts = {"say": HOSTILE_WORDS, "spatial": label, "model": HOSTILE, "interventions": changes, "at": site.now}
        site.view(make_served(1, name, **facts))
        site.view(Stopped(True, name, HOSTILE_WORDS))
        site.view(Trouble("x", HOSTILE_WORDS, robot=name))
    site.post()
    browser.open(site.url, 1000, 800)
    browser.wait("document.querySelectorAll('.robot .caption').length === 3")
    assert browser.run("window.pwned") is None
    assert browser.run("document.querySelectorAll('main script, main img[src=x]').length") == 0
    names = browser.run("[...document.querySelectorAll('.robot h2')].map(one => one.textContent)")
    assert sorted(names) == sorted([HOSTILE, "a&b?c=d#e/../f", "\u202egnp.exe"])
    assert browser.run("[...document.querySelectorAll('.view img')].every(one => one.naturalWidth === 16)")


def test_no_script_but_its_own_would_run(browser: Browser, site: Site) -> None:
    browser.open(site.url, 800, 600)
    browser.wait("document.querySelector('#empty b')?.textContent === 'No robot has connected yet'")
    browser.run(f"document.querySelector('main').insertAdjacentHTML('beforeend', `{HOSTILE_WORDS}`)")
    browser.run(
        "const bad = document.createElement('script'); bad.text = 'window.pwned = 4'; document.body.append(bad)"
    )
    time.sleep(0.3)
    assert browser.run("window.pwned") is None


def test_it_fits_a_phone_and_follows_what_happens(
    browser: Browser, site: Site, make_served: Callable[..., Served], tmp_path: Path
) -> None:
    tell(site, make_served, robots=3)
    site.post()
    browser.open(site.url, 390, 844, phone=True)
    browser.wait("document.querySelectorAll('.robot').length === 3")
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run(f"{CUT_OFF}.length") == 0
    browser.picture(tmp_path / "phone.png")
    browser.run("search.value = 'arm-2'; search.dispatchEvent(new Event('input'))")
    assert browser.run("[...document.querySelectorAll('.robot h2')].map(one => one.textContent)") == ["arm-2"]
    site.view(Stopped(True, "", "fire alarm"))
    site.post()
    browser.wait("document.querySelector('#stop').innerText.includes('the whole fleet')")
    site.server.shutdown()
    site.server.server_close()
    browser.wait("document.querySelector('#lost').innerText.includes('does not answer')")


def drive(port: int, robot: str, key: str) -> ClientConnection:
    """Let a robot connect and ask once."""
    headers = {"Authorization": f"Api-Key {key}"}
    line = connect(f"ws://127.0.0.1:{port}", additional_headers=headers, compression=None)
    line.recv()
    line.send(asked(robot))
    assert "actions" in openpi.unpack(line.recv(decode=False))
    return line


def asked(robot: str) -> bytes:
    images = {"third_person": scene(0), "wrist": scene(9)}
    message = {"images": images, "state": np.zeros(8, np.float32), "prompt": "lift the cup"}
    return openpi.pack({**message, "st4vla": {"robot": robot, "session": robot}})


def press(browser: Browser, button: str, key: str, reason: str = "") -> None:
    """Press a button, and in what opens type a reason and a key and confirm."""
    browser.run(f"document.querySelector({button!r}).click()")
    browser.wait("document.querySelector('#change').open")
    browser.run(f"document.querySelector('#change-reason').value = {reason!r}")
    browser.run(f"document.querySelector('#change-key').value = {key!r}")
    browser.run("document.querySelector('#change-do').click()")


def test_an_operator_stops_and_releases_robots_with_a_key_typed_for_it(
    browser: Browser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    watcher, admin = keys.add("watcher", ["act", "observe"]), keys.add("operator", ["admin"])
    with a_post(tmp_path, PostConfig(loader=CONFIG.loader)) as running:
        post, port = running.post, running.port
        lines = [drive(port, robot, watcher) for robot in ("arm-1", "arm-2")]
        browser.ask("Network.enable")
        login = base64.b64encode(f"me:{watcher}".encode()).decode()
        browser.ask("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {login}"})
        browser.open(f"http://127.0.0.1:{port}/fleet", 1280, 800)
        browser.wait("document.querySelectorAll('.robot').length === 2")
        # Extra headers would take the place of the page's own; the page goes on with what it has seen.
        browser.ask("Network.setExtraHTTPHeaders", headers={})

        press(browser, ".robot .small", "")
        browser.wait("document.querySelector('#change-wrong').innerText.includes('Nothing was changed')")
        browser.run("document.querySelector('#change-back').click()")
        press(browser, ".robot .small", watcher)
        browser.wait("document.querySelector('#change-wrong').innerText.includes('lacks the scope admin')")
        assert not post.desk.state.stopped
        assert browser.run("document.querySelector('#change-key').value") == ""
        browser.picture(tmp_path / "refused.png")
        browser.run("document.querySelector('#change-back').click()")

        press(browser, ".robot .small", admin, "a hand in the cell")
        browser.wait("!document.querySelector('#change').open")
        assert dict(post.desk.state.stopped) == {"arm-1": "a hand in the cell"}
        lines[0].send(asked("arm-1"))
        assert openpi.unpack(lines[0].recv(decode=False))["error"]["kind"] == "stopped"
        press(browser, "#halt", admin)
        browser.wait("!document.querySelector('#change').open")
        assert dict(post.desk.state.stopped) == {"arm-1": "a hand in the cell", "": "the fleet page"}
        lines[1].send(asked("arm-2"))
        assert openpi.unpack(lines[1].recv(decode=False))["error"]["kind"] == "stopped"
        browser.ask("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {login}"})
        browser.wait("document.querySelector('#halt').innerText === 'Release the fleet'")
        browser.wait("document.querySelector('.robot .small').innerText === 'Release'")
        assert "Emergency stop: the whole fleet" in browser.run("document.body.innerText")
        browser.picture(tmp_path / "stopped.png")
        browser.ask("Network.setExtraHTTPHeaders", headers={})

        press(browser, "#halt", admin)
        browser.wait("!document.querySelector('#change').open")
        press(browser, ".robot .small", admin)
        browser.wait("!document.querySelector('#change').open")
        assert not post.desk.state.stopped
        lines[0].send(asked("arm-1"))
        assert "actions" in openpi.unpack(lines[0].recv(decode=False))
        assert admin.split("_", 2)[2] not in browser.run(EVERYTHING_KEPT)
        for line in lines:
            line.close()
    assert admin.split("_", 2)[2] not in caplog.text


def test_the_confirming_step_fits_a_phone(
    browser: Browser, site: Site, make_served: Callable[..., Served], tmp_path: Path
) -> None:
    tell(site, make_served, robots=2)
    site.post()
    browser.open(site.url, 390, 844, phone=True)
    browser.wait("document.querySelectorAll('.robot').length === 2")
    browser.run("document.querySelector('.robot .small').click()")
    browser.wait("document.querySelector('#change').open")
    assert browser.run("document.querySelector('#change-title').innerText") == "Stop arm-1?"
    assert browser.run("document.documentElement.scrollWidth") == 390
    browser.picture(tmp_path / "phone.png")
