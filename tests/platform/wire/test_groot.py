"""GR00T messages are read strictly: what numpy.save writes and nothing else, within the bounds."""

import io

import msgpack
import numpy as np
import pytest

from st4vla.platform.errors import WireError
from st4vla.platform.wire import groot
from st4vla.platform.wire.groot import Modality, Request
from st4vla.platform.wire.limits import WireLimits


def saved(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def frame(**entries) -> bytes:
    return msgpack.packb(entries) or b""


def array_frame(content: object) -> bytes:
    return frame(endpoint="get_action", data={"x": {groot.ARRAY: True, "as_npy": content}})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.array(1.5, np.float32),
        np.zeros((0, 3), np.float64),
        np.arange(5, dtype=">i4"),
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.array([True, False]),
    ],
)
def test_arrays_come_back_as_numpy_saved_them(array: np.ndarray) -> None:
    read = groot.unpack(array_frame(saved(array))).data["x"]
    np.testing.assert_array_equal(read, array)
    assert read.shape == array.shape and read.dtype == array.dtype.newbyteorder("=")


def test_a_request_without_an_endpoint_asks_for_actions() -> None:
    assert groot.unpack(frame(data={"a": 1})) == Request("get_action", {"a": 1}, "")
    assert groot.unpack(frame(endpoint="ping", api_token="t")) == Request("ping", {}, "t")


def test_nothing_that_would_be_unpickled_is_read() -> None:
    with pytest.raises(WireError, match="header"):
        groot.unpack(array_frame(saved(np.array([{}, None], object), allow_pickle=True)))


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "header"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }", "values"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", "needs 12 bytes"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", "header"),
        ("(" * 400, "header"),
        ("__import__('os').system('id')", "header"),
    ],
)
def test_a_header_that_lies_is_refused(header: str, field: str) -> None:
    text = header.encode() + b" \n"
    with pytest.raises(WireError, match=field):
        groot.unpack(array_frame(groot.MAGIC + len(text).to_bytes(2, "little") + text + b"\0" * 4))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "frame ends"),
        (frame(endpoint=7), "endpoint"),
        (frame(data=[1]), "data"),
        (frame(api_token="x" * 1000), "api_token"),
        (frame(data={"m": {groot.MODALITY: True, "as_json": {}}}), "data.m"),
        (msgpack.packb([1]) or b"", "expected a map"),
        (array_frame("text"), "data.x.as_npy"),
        (array_frame(b"\x93NUMPY\x02\x00" + b"\0" * 40), "data.x.as_npy"),
        (array_frame(groot.MAGIC + b"\xff\xff"), "data.x.as_npy"),
    ],
)
def test_a_refusal_names_the_field(body: bytes, named: str) -> None:
    with pytest.raises(WireError) as caught:
        groot.unpack(body)
    assert named in str(caught.value)


def test_a_large_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="at most 1000"):
        groot.unpack(array_frame(saved(np.zeros(1000))), WireLimits(max_bytes=1000))


def test_every_way_to_cut_or_flip_a_frame_is_read_or_refused() -> None:
    whole = array_frame(saved(np.arange(6, dtype=np.float32).reshape(2, 3)))
    rng = np.random.default_rng(0)
    for number in range(5000):
        torn = bytearray(whole[: int(rng.integers(len(whole) + 1))] if number % 2 else whole)
        for place in rng.integers(len(torn), size=number % 4) if torn else ():
            torn[place] = int(rng.integers(256))
        try:
            groot.unpack(bytes(torn))
        except WireError:
            continue


def test_answers_are_what_a_groot_client_decodes() -> None:
    answer = msgpack.unpackb(groot.pack([{"arm": np.ones((1, 2, 3), np.float32)}, {"n": np.float32(2)}]))
    assert np.load(io.BytesIO(answer[0]["arm"]["as_npy"]), allow_pickle=False).shape == (1, 2, 3)
    assert answer[1] == {"n": 2.0}
    modality = msgpack.unpackb(groot.pack(Modality((0, 1), ("a",))))
    assert modality == {groot.MODALITY: True, "as_json": {"delta_indices": [0, 1], "modality_keys": ["a"]}}
