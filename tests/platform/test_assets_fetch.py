"""Files come in over a real connection: cut, wrong, slow or too many, and the tree never holds a wrong one."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from st4vla.platform.assets import command, fetch
from st4vla.platform.assets.fetch import FetchConfig, Fetcher
from st4vla.platform.assets.manifest import AssetFile
from st4vla.platform.assets.tree import AssetTree
from st4vla.platform.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 4000


def described(place: str, content: bytes, with_size: bool = True) -> AssetFile:
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return AssetFile(place, f"owner/name/commit/{place}", digest, len(content) if with_size else None)


@dataclass
class Mirror:
    """What the server does: the contents it has, how many answers it cuts off, and what it was asked."""

    contents: dict[str, bytes]
    url: str = ""
    cuts: int = 0
    errors: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror, wanted = self.mirror, self.headers.get("Range")
        place = self.path.removeprefix("/owner/name/commit/")
        mirror.asked.append((place, wanted))
        if mirror.errors:
            return self.send_error(mirror.errors.pop(0))
        if place not in mirror.contents:
            return self.send_error(404)
        content = mirror.contents[place]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and mirror.ranges else 0
        if start >= len(content) and start:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if not mirror.cuts else start + (len(content) - start) // 2
        mirror.cuts -= bool(mirror.cuts)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    told = Mirror({"robots/arm.urdf": CONTENT})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"mirror": told}))
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(mirror: Mirror, root: Path, **settings: float) -> Fetcher:
    return Fetcher(AssetTree(root), FetchConfig(mirror.url, pause_s=0, **settings))  # pyright: ignore[reportArgumentType]


def leftovers(root: Path) -> list[str]:
    return [file.name for file in root.rglob("*.part")]


def test_a_file_comes_to_its_place_whole_and_nothing_is_left_beside_it(mirror: Mirror, tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    tool = Fetcher(AssetTree(tmp_path), FetchConfig(mirror.url), lambda count: counted.update(bytes=count))
    assert tool.fetch([described("robots/arm.urdf", CONTENT)]) == {}
    assert (tmp_path / "data/robots/arm.urdf").read_bytes() == CONTENT
    assert counted["bytes"] == len(CONTENT)
    assert leftovers(tmp_path) == []


def test_a_download_that_is_cut_goes_on_where_it_was_cut(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = 2
    assert fetcher(mirror, tmp_path).fetch([described("robots/arm.urdf", CONTENT)]) == {}
    assert [wanted for _, wanted in mirror.asked] == [None, "bytes=512000-", "bytes=768000-"]
    assert (tmp_path / "data/robots/arm.urdf").read_bytes() == CONTENT


def test_the_next_run_resumes_what_the_last_one_left(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = 1
    file = described("robots/arm.urdf", CONTENT)
    assert "ended 512000 bytes early" in fetcher(mirror, tmp_path, attempts=1).fetch([file])["robots/arm.urdf"]
    assert not (tmp_path / "data/robots/arm.urdf").exists()
    assert fetcher(mirror, tmp_path).fetch([file]) == {}
    assert mirror.asked[-1] == ("robots/arm.urdf", "bytes=512000-")


def test_a_server_that_knows_no_ranges_sends_the_file_anew(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts, mirror.ranges = 1, False
    assert fetcher(mirror, tmp_path).fetch([described("robots/arm.urdf", CONTENT)]) == {}
    assert (tmp_path / "data/robots/arm.urdf").read_bytes() == CONTENT


def test_a_part_that_was_whole_is_not_sent_again(mirror: Mirror, tmp_path: Path) -> None:
    file = described("robots/arm.urdf", CONTENT, with_size=False)
    part = tmp_path / f"data/robots/arm.urdf.{file.git_id[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetcher(mirror, tmp_path).fetch([file]) == {}
    assert mirror.asked == [("robots/arm.urdf", f"bytes={len(CONTENT)}-")]


def test_wrong_content_is_refused_at_once_and_never_takes_the_place(mirror: Mirror, tmp_path: Path) -> None:
    mirror.contents["robots/arm.urdf"] = CONTENT[::-1]
    failed = fetcher(mirror, tmp_path).fetch([described("robots/arm.urdf", CONTENT)])
    assert "expected " + described("", CONTENT).git_id[:12] in failed["robots/arm.urdf"]
    assert len(mirror.asked) == 1
    assert not (tmp_path / "data/robots/arm.urdf").exists()
    assert leftovers(tmp_path) == []


def test_a_spoilt_part_is_thrown_away_and_the_file_fetched_anew(mirror: Mirror, tmp_path: Path) -> None:
    file = described("robots/arm.urdf", CONTENT)
    part = tmp_path / f"data/robots/arm.urdf.{file.git_id[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert fetcher(mirror, tmp_path).fetch([file]) == {}
    assert [wanted for _, wanted in mirror.asked] == ["bytes=1000-", None]


def test_a_file_that_grows_beyond_its_size_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    failed = fetcher(mirror, tmp_path).fetch([described("robots/arm.urdf", CONTENT[:1000])])
    assert "larger than the 1000 bytes expected" in failed["robots/arm.urdf"]


def test_a_busy_server_is_asked_again_and_an_absent_file_is_not(mirror: Mirror, tmp_path: Path) -> None:
    mirror.errors = [503, 429]
    assert fetcher(mirror, tmp_path).fetch([described("robots/arm.urdf", CONTENT)]) == {}
    failed = fetcher(mirror, tmp_path).fetch([described("robots/leg.urdf", CONTENT)])
    assert "the server answered 404" in failed["robots/leg.urdf"]
    assert len(mirror.asked) == 4


def test_one_file_that_fails_does_not_keep_the_others_away(mirror: Mirror, tmp_path: Path) -> None:
    mirror.contents |= {f"robots/{name}.stl": name.encode() for name in "abcdefgh"}
    files = [described(f"robots/{name}.stl", name.encode()) for name in "abcdefgh"]
    failed = fetcher(mirror, tmp_path).fetch([described("robots/leg.urdf", CONTENT), *files])
    assert list(failed) == ["robots/leg.urdf"]
    assert sorted(path.name for path in (tmp_path / "data/robots").glob("*.stl")) == [
        f"{name}.stl" for name in "abcdefgh"
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this machine has no /dev/full")
def test_a_full_disk_stops_the_fetch_and_says_so(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = described("robots/arm.urdf", CONTENT)
    part = tmp_path / f"data/robots/arm.urdf.{file.git_id[:12]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(DataError, match="The disk of .*robots is full; make room"):
        fetcher(mirror, tmp_path).fetch([file])


def test_a_mirror_out_of_reach_stops_the_fetch_after_one_file(tmp_path: Path) -> None:
    tool = Fetcher(AssetTree(tmp_path), FetchConfig("http://127.0.0.1:9", pause_s=0, attempts=2))
    with pytest.raises(DataError, match="http://127.0.0.1:9 cannot be used: .*refused.*name another mirror"):
        tool.fetch([described(f"robots/{name}", b"x") for name in "abcdefgh"])


def test_two_fetches_of_one_tree_exclude_each_other(mirror: Mirror, tmp_path: Path) -> None:
    with fetch._only_writer(tmp_path), pytest.raises(DataError, match="Another fetch is writing"):
        fetcher(mirror, tmp_path).fetch([])


def test_a_mirror_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="mirror is 'ftp://x'; it starts with https:// or http://"):
        FetchConfig("ftp://x")


def test_the_command_fetches_what_is_missing_and_only_that(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [described("robots/widowx/a.urdf", b"urdf"), described("robots/widowx/b.stl", b"mesh")]
    mirror.contents |= {file.place: content for file, content in zip(files, (b"urdf", b"mesh"), strict=True)}
    monkeypatch.setattr(command, "files_for", lambda _: files)
    (tmp_path / "data/robots/widowx").mkdir(parents=True)
    (tmp_path / "data/robots/widowx/a.urdf").write_bytes(b"urdf")
    command.fetch(AssetTree(tmp_path), ("simplerenv_widowx",), FetchConfig(mirror.url))
    assert [place for place, _ in mirror.asked] == ["robots/widowx/b.stl"]


def test_the_command_looks_for_room_before_it_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "files_for", lambda _: [AssetFile("robots/widowx/a", "x", "0" * 40, 1 << 60)])
    with pytest.raises(DataError, match="MB are to come; make room"):
        command.fetch(AssetTree(tmp_path), ("simplerenv_widowx",), FetchConfig("http://127.0.0.1:9"))
