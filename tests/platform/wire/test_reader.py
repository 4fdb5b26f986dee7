"""Frames from outside are decoded as msgpack decodes them, or refused by name."""

import msgpack
import numpy as np
import pytest

from st4vla.platform.errors import WireError
from st4vla.platform.wire import openpi
from st4vla.platform.wire.limits import WireLimits
from st4vla.platform.wire.reader import read_frame

VALUES = [0, 127, 128, 255, 256, 65535, 65536, 2**32, 2**64 - 1, -1, -32, -33, -129, -40000, -(2**63), 0.5, -1e300]
MORE = [None, True, False, "", "a", "x" * 40, "y" * 300, b"", b"abc", b"z" * 70000, [], [1, [2, [3]]], {"a": {"b": []}}]


def packed(value: object) -> bytes:
    frame = msgpack.packb(value)
    assert frame is not None
    return frame


def refused(frame: bytes, limits: WireLimits | None = None) -> WireError:
    with pytest.raises(WireError) as caught:
        openpi.unpack(frame, limits or WireLimits())
    return caught.value


def packed_array(**changes: object) -> bytes:
    entries = {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "|u1", b"shape": [2, 2, 3]}
    return packed({"observation/image": {**entries, **{k.encode(): v for k, v in changes.items()}}})


@pytest.mark.parametrize("value", VALUES + MORE, ids=lambda value: repr(value)[:20])
def test_every_plain_value_comes_back(value: object) -> None:
    frame = packed(value)
    assert read_frame(frame, lambda entries, path: entries) == value == msgpack.unpackb(frame)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "<i4", ">i8", "float16", ">f4", "float64"])
def test_arrays_come_back_in_native_order(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = openpi.unpack(openpi.pack({"a": array}))["a"]
    assert np.array_equal(back, array) and back.dtype == array.dtype.newbyteorder("=") and back.dtype.isnative


def test_an_empty_array_comes_back() -> None:
    assert openpi.unpack(openpi.pack({"a": np.zeros((0, 7), np.float32)}))["a"].shape == (0, 7)


def test_a_numpy_scalar_comes_back() -> None:
    back = openpi.unpack(openpi.pack({"a": np.float32(0.5), "b": np.uint8(7), "c": np.bool_(True)}))
    assert back == {"a": 0.5, "b": 7, "c": True} and back["a"].dtype == np.float32


def test_objects_are_neither_sent_nor_read() -> None:
    with pytest.raises(TypeError, match="object"):
        openpi.pack({"a": np.array([object()])})
    assert refused(packed_array(dtype="|O")).field == "observation/image.dtype"


@pytest.mark.parametrize("dtype", ["O", "|V8", "<c16", "<M8[s]", "S4", "<U2", "f1", "f4,f4", "", 7, "x" * 500])
def test_other_dtypes_are_refused(dtype: object) -> None:
    error = refused(packed_array(dtype=dtype))
    assert (error.kind, error.field) == ("invalid", "observation/image.dtype") and len(str(error)) < 200


@pytest.mark.parametrize("shape", [[2, 2, 4], [12, 1, 0], [-1, 3], ["3"], 12, None, [True, 12], [2**62, 2**62]])
def test_a_shape_that_does_not_fit_the_bytes_is_refused(shape: object) -> None:
    assert refused(packed_array(shape=shape)).field.startswith("observation/image.")


def test_a_huge_shape_beside_a_zero_is_refused() -> None:
    assert refused(packed_array(shape=[0, 2**40], data=b"")).kind == "too_large"


def test_an_array_without_its_shape_is_refused() -> None:
    frame = packed({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "|u1"}})
    assert (refused(frame).kind, refused(frame).field) == ("missing", "a.shape")


def test_a_length_beyond_the_frame_is_refused_before_memory_is_taken() -> None:
    for frame in (b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        assert refused(frame).kind in ("malformed", "too_large")


def test_a_frame_of_one_byte_values_is_refused_by_count() -> None:
    frame = packed([[{}] * 8000] * 100)
    assert refused(frame).kind == "too_large"


def test_deep_nesting_is_refused() -> None:
    assert refused(b"\x91" * 100_000).kind == "too_large"


def test_the_frame_itself_is_bounded() -> None:
    assert refused(packed({"a": b"x" * 100}), WireLimits(max_bytes=64)).kind == "too_large"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x81\xa1a",
        b"\xc1",
        packed(msgpack.ExtType(1, b"x")),
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\x01\x02",
        b"\x81\x90\x02",
        b"\xa2\xff\xfe",
        packed({}) + b"\0",
        packed([1]),
        packed({b"a": 1}),
    ],
    ids=[
        "empty",
        "cut",
        "reserved",
        "extension",
        "twice",
        "number key",
        "list key",
        "utf8",
        "tail",
        "list",
        "bytes key",
    ],
)
def test_what_is_not_a_message_is_refused(frame: bytes) -> None:
    assert refused(frame).kind in ("malformed", "too_large")


def test_a_refusal_names_the_path() -> None:
    frame = packed({"images": {"wrist": [1, {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}]}})
    assert refused(frame).field == "images.wrist[1].data"


def test_a_refusal_survives_pickling_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(WireError("invalid", "state", "It is NaN.")))
    assert error.as_plain() == {"error": {"kind": "invalid", "field": "state", "message": "It is NaN."}}
