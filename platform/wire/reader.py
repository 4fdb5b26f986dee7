"""Read msgpack from outside, strictly: one pass, every length checked against what is there before it is believed.

The msgpack library bounds single lengths, but not how many objects a frame of one-byte values becomes, and its errors
do not say where. This reader counts values, keeps the path to each, and refuses what the protocols have no use for:
extension types, keys that are not text, the same key twice, bytes after the message.
"""

import struct
from collections.abc import Callable
from typing import Any

from st4vla.platform.errors import RefusalKind, WireError
from st4vla.platform.wire.limits import DEFAULT_LIMITS, WireLimits

Key = str | bytes
Fold = Callable[[dict[Key, Any], str], Any]

CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = {
    lead: struct.Struct(f">{letter}")
    for lead, letter in zip(range(0xCA, 0xD4), ("f", "d", "B", "H", "I", "Q", "b", "h", "i", "q"), strict=True)
}
ONE, TWO, FOUR = struct.Struct(">B"), struct.Struct(">H"), struct.Struct(">I")
BINARY = {0xC4: ONE, 0xC5: TWO, 0xC6: FOUR}
TEXT = {0xD9: ONE, 0xDA: TWO, 0xDB: FOUR}
LISTS = {0xDC: TWO, 0xDD: FOUR}
MAPS = {0xDE: TWO, 0xDF: FOUR}
LONGEST_KEY = 256
LONGEST_PATH = 300


def read_frame(frame: bytes, fold: Fold, limits: WireLimits = DEFAULT_LIMITS) -> Any:
    """Decode one msgpack message.

    Args:
        fold: called with every complete map and the path to it; what it returns takes the map's place.

    Raises:
        WireError: "too_large" where a bound is passed, "malformed" where this is not msgpack or is cut short.
    """
    if len(frame) > limits.max_bytes:
        raise WireError("too_large", "", f"The frame has {len(frame)} bytes; at most {limits.max_bytes} are read.")
    return Reader(frame, fold, limits).read()


class Reader:
    """One pass over one frame."""

    def __init__(self, frame: bytes, fold: Fold, limits: WireLimits):
        self._frame = frame
        self._fold = fold
        self._limits = limits
        self._at = 0
        self._items = 0

    def read(self) -> Any:
        """Give the frame's one value."""
        value = self._value("", 0)
        if self._at != len(self._frame):
            raise WireError("malformed", "", f"{len(self._frame) - self._at} bytes stand after the message's end.")
        return value

    def _value(self, path: str, depth: int) -> Any:
        self._items += 1
        if self._items > self._limits.max_items:
            raise self._refusal("too_large", path, f"the message holds more than {self._limits.max_items} values.")
        lead = self._unpack(ONE, path)
        if lead < 0x80:
            return lead
        if lead >= 0xE0:
            return lead - 256
        if lead < 0x90:
            return self._map(lead & 0x0F, path, depth)
        if lead < 0xA0:
            return self._list(lead & 0x0F, path, depth)
        if lead < 0xC0:
            return self._text(lead & 0x1F, path)
        return self._long_form(lead, path, depth)

    def _long_form(self, lead: int, path: str, depth: int) -> Any:
        if lead in CONSTANTS:
            return CONSTANTS[lead]
        if lead in NUMBERS:
            return self._unpack(NUMBERS[lead], path)
        if lead in BINARY:
            return self._take(self._unpack(BINARY[lead], path), path)
        if lead in TEXT:
            return self._text(self._unpack(TEXT[lead], path), path)
        if lead in LISTS:
            return self._list(self._unpack(LISTS[lead], path), path, depth)
        if lead in MAPS:
            return self._map(self._unpack(MAPS[lead], path), path, depth)
        raise self._refusal("malformed", path, f"byte 0x{lead:02x} starts a msgpack type that is not taken here.")

    def _map(self, count: int, path: str, depth: int) -> Any:
        self._check_container(2 * count, path, depth)
        entries: dict[Key, Any] = {}
        for _ in range(count):
            key = self._key(path)
            entries[key] = self._value(join(path, key), depth + 1)
        return self._fold(entries, path) if len(entries) == count else self._repeated(path)

    def _repeated(self, path: str) -> Any:
        raise self._refusal("malformed", path, "a map holds the same key twice.")

    def _list(self, count: int, path: str, depth: int) -> list[Any]:
        self._check_container(count, path, depth)
        return [self._value(f"{path}[{i}]", depth + 1) for i in range(count)]

    def _key(self, path: str) -> Key:
        key = self._value(path, self._limits.max_depth)
        if not isinstance(key, str | bytes) or len(key) > LONGEST_KEY:
            raise self._refusal("malformed", path, f"a key is no text of at most {LONGEST_KEY} characters.")
        return key

    def _check_container(self, values: int, path: str, depth: int) -> None:
        if depth >= self._limits.max_depth:
            raise self._refusal("too_large", path, f"it is nested deeper than {self._limits.max_depth} levels.")
        if values > 2 * self._limits.max_entries:
            raise self._refusal("too_large", path, f"it holds more than {self._limits.max_entries} entries.")
        if values > len(self._frame) - self._at:
            raise self._refusal("malformed", path, "it says that it holds more entries than the frame has bytes left.")

    def _text(self, length: int, path: str) -> str:
        if length > self._limits.max_text:
            raise self._refusal("too_large", path, f"a text has {length} bytes; at most {self._limits.max_text}.")
        try:
            return self._take(length, path).decode()
        except UnicodeDecodeError:
            raise self._refusal("malformed", path, "a text is not UTF-8.") from None

    def _take(self, length: int, path: str) -> bytes:
        end = self._at + length
        if end > len(self._frame):
            raise self._refusal("malformed", path, f"{length} bytes are announced; the frame ends before.")
        taken = self._frame[self._at : end]
        self._at = end
        return taken

    def _unpack(self, form: struct.Struct, path: str) -> Any:
        end = self._at + form.size
        if end > len(self._frame):
            raise self._refusal("malformed", path, "the frame ends in the middle of a value.")
        (value,) = form.unpack_from(self._frame, self._at)
        self._at = end
        return value

    def _refusal(self, kind: RefusalKind, path: str, message: str) -> WireError:
        return WireError(kind, path, message[0].upper() + message[1:])


def join(path: str, key: Key) -> str:
    """Give the path of a map's entry, fit to be shown: printable and of bounded length."""
    name = key if isinstance(key, str) else key.decode("ascii", "replace")
    name = name if name.isprintable() else ascii(name)[1:-1]
    return (f"{path}.{name}" if path else name)[:LONGEST_PATH]
