"""vla-eval frames, JSON bodies and our stamps are read whole or refused by name."""

import base64
import io
import json
import zlib
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from PIL import Image

from st4vla.platform.contracts import PolicySpec
from st4vla.platform.errors import WireError
from st4vla.platform.wire import json_form, openpi, vla_eval
from st4vla.platform.wire.images import encode_image
from st4vla.platform.wire.limits import WireLimits
from st4vla.platform.wire.stamps import KEY, ActionSchema, ReplyStamp, RequestStamp, metadata, read_refusal

IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
SPEC = PolicySpec(("third_person",), 128, 7, 7, 8, 5.0, "tabletop_panda")


def packed(value: object) -> bytes:
    frame = msgpack.packb(value)
    assert frame is not None
    return frame


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + size + b"\x08\x02\x00\x00\x00") + chunk(b"IDAT" + zlib.compress(b""))


def chunk(content: bytes) -> bytes:
    return (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")


@pytest.mark.parametrize("form", ["png", "raw"])
def test_vla_eval_images_come_back_exactly(form: vla_eval.ImageFormat) -> None:
    sent = vla_eval.Message("observation", {"images": {"cam": IMAGE}, "states": np.ones(8)}, 3)
    back = vla_eval.unpack(vla_eval.pack(sent, form))
    assert (
        np.array_equal(back.payload["images"]["cam"], IMAGE) and back.seq == 3 and back.payload["states"].shape == (8,)
    )


def test_a_jpeg_comes_back_about_right() -> None:
    sent = vla_eval.Message("observation", {"cam": np.full((16, 16, 3), 100, np.uint8)}, 1)
    assert abs(int(vla_eval.unpack(vla_eval.pack(sent, "jpeg")).payload["cam"].mean()) - 100) < 3


@pytest.mark.parametrize("edge", [3_000, 60_000])
def test_an_image_that_claims_to_be_huge_is_refused_by_its_header(edge: int) -> None:
    entries = {"__image__": True, "format": "png", "data": png_header(edge, edge), "shape": [4, 5, 3]}
    frame = packed({"type": "observation", "payload": {"cam": entries}, "seq": 1, "timestamp": 0.0})
    with pytest.raises(WireError) as caught:
        vla_eval.unpack(frame)
    assert (caught.value.kind, caught.value.field) == ("too_large", "payload.cam")


def blank(edge: int) -> bytes:
    """An empty picture of one bit a pixel."""
    buffer = io.BytesIO()
    Image.new("1", (edge, edge)).save(buffer, "PNG")
    return buffer.getvalue()


def of_vla_eval(images: int, limits: WireLimits) -> object:
    entries = {"__image__": True, "format": "png", "data": blank(64), "shape": [64, 64, 3]}
    payload = {f"cam_{number}": entries for number in range(images)}
    return vla_eval.unpack(packed({"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0}), limits)


def of_json(images: int, limits: WireLimits) -> object:
    entries = {"format": "png", "data": base64.b64encode(blank(64)).decode()}
    body = {"images": {f"cam_{number}": entries for number in range(images)}}
    return json_form.read_act(json.dumps(body).encode(), limits)


@pytest.mark.parametrize(("read", "field"), [(of_vla_eval, "payload.cam_2"), (of_json, "images.cam_2")])
def test_images_that_are_too_large_together_are_refused_at_the_first_that_is_too_much(
    read: Callable[[int, WireLimits], object], field: str
) -> None:
    limits = WireLimits(max_total_pixels=2 * 64 * 64)
    read(2, limits)
    with pytest.raises(WireError, match="12288 pixels so far; at most 8192") as caught:
        read(3, limits)
    assert (caught.value.kind, caught.value.field) == ("too_large", field)


def test_a_megabyte_of_empty_pictures_is_refused_by_the_standing_limits() -> None:
    entries = {"__image__": True, "format": "png", "data": blank(2048), "shape": [2048, 2048, 3]}
    payload = {"images": {f"cam_{number}": entries for number in range(1500)}}
    frame = packed({"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0})
    assert len(frame) < 2**20
    with pytest.raises(WireError) as caught:
        vla_eval.unpack(frame)
    assert (caught.value.kind, caught.value.field) == ("too_large", "payload.images.cam_2")


@pytest.mark.parametrize("data", [b"", b"not a picture", encode_image(IMAGE)[:40], encode_image(IMAGE, "jpeg")])
def test_what_is_no_png_is_refused(data: bytes) -> None:
    entries = {"__image__": True, "format": "png", "data": data, "shape": [4, 5, 3]}
    frame = packed({"type": "observation", "payload": {"cam": entries}, "seq": 1, "timestamp": 0.0})
    with pytest.raises(WireError, match="payload.cam.data"):
        vla_eval.unpack(frame)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"type": "kill"}, "type"), ({"seq": "1"}, "seq"), ({"payload": []}, "payload"), ({"timestamp": None}, "seq")],
)
def test_a_broken_envelope_is_refused(change: dict, field: str) -> None:
    envelope = {"type": "hello", "payload": {}, "seq": 1, "timestamp": 0.0, **change}
    with pytest.raises(WireError) as caught:
        vla_eval.unpack(packed(envelope))
    assert caught.value.field == field


def act_body(**changes: object) -> bytes:
    entries = {"images": {"cam": json_form.write_image(IMAGE)}, "state": [0.0] * 7, "instruction": "reach"}
    return json.dumps({**entries, **changes}).encode()


def test_a_json_request_is_read() -> None:
    form = json_form.read_act(act_body(st4vla={"robot": "arm-1", "deadline_ms": 100, "remaining": [[0.0] * 7]}))
    assert np.array_equal(form.images["cam"], IMAGE) and form.state is not None and form.state.shape == (7,)
    assert form.stamp.robot == "arm-1" and form.stamp.remaining is not None and form.stamp.remaining.shape == (1, 7)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", ""),
        (b"[" * 5000, ""),
        (b'{"state": NaN}', ""),
        (b"[]", ""),
        (b'{"state": [' + b"1," * 20000 + b"1]}", ""),
        (act_body(state=[[1.0]]), "state"),
        (act_body(state=["1"]), "state"),
        (act_body(state=[10**400]), "state"),
        (act_body(instruction=7), "instruction"),
        (act_body(images=[1]), "images"),
        (act_body(images={"cam": {"format": "gif", "data": ""}}), "images.cam.format"),
        (act_body(images={"cam": {"format": "png", "data": "%%%"}}), "images.cam.data"),
        (act_body(images={"cam": {"format": "raw", "data": "AAAA", "shape": [9, 9, 3]}}), "images.cam.data"),
        (act_body(extra=1), "extra"),
        (act_body(st4vla=[1]), KEY),
        (act_body(st4vla={"sequence": -1}), f"{KEY}.sequence"),
        (act_body(st4vla={"password": "x"}), f"{KEY}.password"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_broken_json_request_names_its_field(body: bytes, field: str) -> None:
    with pytest.raises(WireError) as caught:
        json_form.read_act(body)
    assert caught.value.field == field


def test_a_question_needs_both_fields() -> None:
    with pytest.raises(WireError, match="question"):
        json_form.read_ground(json.dumps({"image": json_form.write_image(IMAGE)}).encode())


def test_base64_beyond_the_limit_is_refused() -> None:
    body = act_body(images={"cam": {"format": "raw", "shape": [1], "data": base64.b64encode(b"x" * 99).decode()}})
    with pytest.raises(WireError, match="at most 64"):
        json_form.read_act(body, WireLimits(max_bytes=64))


def test_a_request_stamp_comes_back() -> None:
    stamp = RequestStamp("arm-1", "run-7", 3, 250.0, 2, 4, True, True)
    assert RequestStamp.read(openpi.unpack(openpi.pack({KEY: stamp.as_plain()}))[KEY]) == stamp


def test_a_remaining_comes_back_as_rows() -> None:
    stamp = RequestStamp(remaining=np.ones((2, 7), np.float32))
    back = RequestStamp.read(openpi.unpack(openpi.pack({KEY: stamp.as_plain()}))[KEY])
    assert back.remaining is not None and np.array_equal(back.remaining, np.ones((2, 7)))


@pytest.mark.parametrize(
    "entries",
    [
        {"robot": "a" * 200},
        {"robot": "a\nb"},
        {"sequence": True},
        {"sequence": 1.5},
        {"deadline_ms": float("nan")},
        {"deadline_ms": -1},
        {"spatial": 1},
        {"remaining": [[1.0]]},
        {"remaining": np.full((1, 7), np.nan)},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_a_broken_stamp_is_refused_by_name(entries: dict) -> None:
    with pytest.raises(WireError) as caught:
        RequestStamp.read(entries)
    assert caught.value.field == f"{KEY}.{next(iter(entries))}"


def test_a_reply_stamp_holds_no_arrays_and_comes_back() -> None:
    stamp = ReplyStamp("run-7", 3, 120.0, "st4vla-v2", {"total": 31.0}, {"points": [[1.0, 2.0]]}, ["speed"])
    plain = stamp.as_plain()
    assert not any(isinstance(value, np.ndarray) for value in plain.values())
    assert ReplyStamp.read(openpi.unpack(openpi.pack({KEY: plain}))[KEY]).as_plain() == plain


def test_the_handshake_says_what_the_columns_mean() -> None:
    ours = openpi.unpack(openpi.pack(metadata(SPEC, "v1")))[KEY]
    schema = ActionSchema.read(ours["actions"])
    assert schema.names[-1] == "gripper" and schema.units[0] == "m" and schema.chunk_length == 8
    assert schema == ActionSchema.of(SPEC) and ours["cameras"] == ["third_person"]


def test_a_refusal_is_told_from_a_reply() -> None:
    error = read_refusal(openpi.unpack(openpi.pack(WireError("deadline", "", "Too late.").as_plain())))
    assert error is not None and error.kind == "deadline"
    assert read_refusal({"actions": [1]}) is None
