"""Datasets with an address come from real servers of this machine: one speaks the hub's protocol, one S3's."""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import pytest

from st4vla.platform.data.address import Address, read_address, without_secrets
from st4vla.platform.data.bucket import copy_object, list_objects, open_bucket
from st4vla.platform.data.lerobot_config import DatasetConfig
from st4vla.platform.data.lerobot_reader import open_dataset
from st4vla.platform.data.remote import fetch, pinned
from st4vla.platform.data.show import main as show
from st4vla.platform.errors import ConfigError, DataError
from st4vla.platform.train.sources import ReadingConfig, SourceConfig, open_source

COMMIT = "c0" * 20


class Files(BaseHTTPRequestHandler):
    """Serves the files of `folder`; remembers what was asked for."""

    folder: Path
    asked: list[str]
    fail_after: int = 0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, path: Path, **headers: str) -> None:
        content = path.read_bytes()
        start, end = 0, len(content) - 1
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
        part = content[start : end + 1]
        self.asked.append(f"{self.command} {path.name} {start}")
        self.answer(part, 206 if wanted else 200, Content_Length=str(len(part)), **headers)


class Hub(Files):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/datasets/lab/set/revision/") or path == "/api/datasets/lab/set":
            self.asked.append("commit")
            self.answer(json.dumps({"id": "lab/set", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/api/datasets/lab/set/tree/{COMMIT}"):
            self.answer(json.dumps([self.entry(one) for one in sorted(self.files())]).encode())
        elif (file := self.folder / path.removeprefix(f"/datasets/lab/set/resolve/{COMMIT}/")).is_file():
            self.send_file(file, ETag=f'"{digest(file)}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    def files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())

    def entry(self, path: Path) -> dict[str, object]:
        name, size = path.relative_to(self.folder).as_posix(), path.stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": digest(path)}


class Bucket(Files):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = parse_qs(url.query)
        inside = unquote(url.path).removeprefix("/store").strip("/")
        if "list-type" in query:
            self.answer(self.listing(query["prefix"][0]).encode(), Content_Type="application/xml")
        elif (file := self.folder / inside).is_file():
            self.send_file(file, Last_Modified=self.date(file), ETag=f'"{digest(file)}"')
        else:
            self.answer(b"", 404)

    def date(self, file: Path) -> str:
        return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(file.stat().st_mtime))

    def listing(self, prefix: str) -> str:
        keys = sorted(path for path in self.folder.rglob("*") if path.is_file())
        rows = [
            f"<Contents><Key>{path.relative_to(self.folder).as_posix()}</Key><Size>{path.stat().st_size}</Size>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(path.stat().st_mtime))}</LastModified>"
            f'<ETag>"x"</ETag></Contents>'
            for path in keys
            if path.relative_to(self.folder).as_posix().startswith(prefix)
        ]
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        count = f"<IsTruncated>false</IsTruncated><KeyCount>{len(rows)}</KeyCount>"
        return f"{head}<Name>store</Name><Prefix>{prefix}</Prefix>{count}{''.join(rows)}</ListBucketResult>"


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def serve(handler: type[Files], folder: Path) -> Iterator[ThreadingHTTPServer]:
    served = type("Served", (handler,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Files]]:
    for server in serve(Hub, dataset_folder):
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server.RequestHandlerClass  # type: ignore[misc]


@pytest.fixture
def bucket(dataset_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (
        ("ACCESS_KEY_ID", "nobody"),
        ("SECRET_ACCESS_KEY", "verysecret"),
        ("EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    for server in serve(Bucket, dataset_folder.parent):
        Bucket.asked = server.RequestHandlerClass.asked  # type: ignore[attr-defined]
        options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        yield f"s3://store/set?{options}"


def test_addresses_are_read_and_written_alike() -> None:
    assert read_address("hf:lab/set") == Address("hf", "lab/set")
    assert read_address("hf:lab/set@v1.2/robots/arm") == Address("hf", "lab/set", "robots/arm", "v1.2")
    assert read_address("s3:store/a/b/") == read_address("s3://store/a/b") == Address("s3", "store", "a/b")
    assert read_address("s3://store/a?region=eu-west-1").options == (("region", "eu-west-1"),)
    for text in ("hf:lab/set@v1.2/robots/arm", "s3://store/a/b?region=eu-west-1", "hf:lab/set"):
        assert str(read_address(text)) == text
    assert [read_address(text).title for text in ("hf:lab/set@v1", "hf:lab/set/arm", "s3://store/a/b")] == [
        "set",
        "arm",
        "b",
    ]


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    for text in ("s3://KEY:verysecret@store/a", "s3://store/a?secret_key=verysecret"):
        with pytest.raises(ConfigError) as refused:
            read_address(text)
        assert "verysecret" not in str(refused.value)
    with pytest.raises(ConfigError, match="no address; write hf:owner/name"):
        read_address("hf:set")


def test_signed_urls_lose_their_signature() -> None:
    assert (
        without_secrets("404 for https://cdn/x?X-Amz-Signature=abc&b=1 now\nsecond")
        == "404 for https://cdn/x?... now second"
    )


def test_a_dataset_of_the_hub_is_the_one_on_disk(hub: type[Files], dataset_folder: Path, tmp_path: Path) -> None:
    config = DatasetConfig("hf:lab/set", cameras=("wrist",), downloads=str(tmp_path / "kept"))
    dataset, local = open_dataset(config), open_dataset(dataset_folder)
    assert dataset.digest == local.digest and dataset.name == "set"
    assert (dataset.image(7, "wrist") == local.image(7, "wrist")).all()
    assert not list((tmp_path / "kept").rglob("*third_person*")), "only the chosen camera is fetched"
    hub.asked.clear()
    assert open_dataset(config).num_frames == 25
    assert hub.asked == ["commit"], "what is there is not fetched again"


def test_a_pinned_dataset_needs_no_hub_any_more(
    hub: type[Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = str(tmp_path / "kept")
    assert pinned("hf:lab/set@main", kept) == f"hf:lab/set@{COMMIT}"
    fetch("hf:lab/set", kept)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert open_dataset(DatasetConfig(f"hf:lab/set@{COMMIT}", downloads=kept)).num_frames == 25
    with caplog.at_level(logging.WARNING):
        assert pinned("hf:lab/set", kept) == f"hf:lab/set@{COMMIT}"
    assert "going on with commit c0c0" in caplog.text


def test_a_hub_out_of_reach_names_the_address_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"hf:lab/set cannot be read: .*check the name, the network .*HF_TOKEN"):
        open_dataset(DatasetConfig("hf:lab/set", downloads=str(tmp_path)))


def test_a_dataset_that_the_hub_does_not_have_is_named(hub: type[Files], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hf:lab/other cannot be read: .*404"):
        fetch("hf:lab/other", str(tmp_path))


def test_a_dataset_of_a_bucket_is_the_one_on_disk(bucket: str, dataset_folder: Path, tmp_path: Path) -> None:
    config = DatasetConfig(bucket, cameras=("third_person",), downloads=str(tmp_path / "kept"))
    dataset, local = open_dataset(config), open_dataset(dataset_folder)
    assert dataset.digest == local.digest and dataset.name == "set"
    assert (dataset.image(3, "third_person") == local.image(3, "third_person")).all()
    assert not list((tmp_path / "kept").rglob("*wrist*"))
    Bucket.asked.clear()
    open_dataset(config)
    assert not [one for one in Bucket.asked if one.startswith("GET")], "what is there is not fetched again"


def test_half_a_file_goes_on_where_it_stopped(bucket: str, dataset_folder: Path, tmp_path: Path) -> None:
    address = read_address(bucket)
    system, base = open_bucket(address)
    info = list_objects(system, base)["meta/info.json"]
    whole = (dataset_folder / "meta/info.json").read_bytes()
    (tmp_path / f".info.json.{info.mtime_ns:x}.part").write_bytes(whole[:100])
    Bucket.asked.clear()
    copy_object(system, info, tmp_path / "info.json", address)
    assert (tmp_path / "info.json").read_bytes() == whole
    assert [one for one in Bucket.asked if one.startswith("GET")] == ["GET info.json 100"]


def test_what_left_the_bucket_or_changed_there_is_followed(bucket: str, dataset_folder: Path, tmp_path: Path) -> None:
    fetch(bucket, str(tmp_path), ["meta/*"])
    info, gone = dataset_folder / "meta/info.json", dataset_folder / "meta/modality.json"
    info.write_text(info.read_text() + "\n")
    os.utime(info, (1_700_000_000, 1_700_000_000))
    gone.unlink()
    kept = fetch(bucket, str(tmp_path), ["meta/*"])
    assert (kept / "meta/info.json").read_text() == info.read_text() and not (kept / "meta/modality.json").exists()


def test_an_unreadable_bucket_names_the_address_and_no_secret(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"s3://store/none\?.* holds 0 objects|s3://store/none.* cannot be read"
    ) as refused:
        fetch(bucket.replace("/set", "/none"), str(tmp_path))
    assert "verysecret" not in str(refused.value)
    closed = "s3://store/set?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9"
    with pytest.raises(DataError, match=r"s3://store/set.* cannot be read: .*AWS_ACCESS_KEY_ID"):
        fetch(closed, str(tmp_path))


def test_training_and_show_take_addresses(hub: type[Files], workplace: Path) -> None:
    reading = ReadingConfig(("wrist",), 4, "arm", frame_cache=None, downloads=str(workplace / "kept"))
    source = open_source(SourceConfig("hf:lab/set"), reading)
    assert (source.name, len(source.robot())) == ("set", 20)
    show({"dataset": "hf:lab/set", "out": "out", "episodes": 1, "frames": 1, "cameras": ["wrist"], "downloads": "kept"})
    assert (workplace / "out" / "index.html").exists()
