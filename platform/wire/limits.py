"""How large a message from outside may be; everything is checked before memory is set aside for it."""

from dataclasses import dataclass, fields

from st4vla.platform.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True)
class WireLimits:
    """Bounds on one message.

    Attributes:
        max_bytes: of the whole frame. Ray Serve's own WebSocket ends a connection above 16 MiB, so more is of no use.
        max_depth: maps and lists inside one another.
        max_items: values in the whole frame, containers and keys included.
        max_entries: in one map or list.
        max_text: bytes of one text.
        max_dims: of one array.
        max_pixels: height times width of one image, read from its header before it is decoded.
        max_total_pixels: of all compressed images together, each counted before it is decoded: an empty picture of four
            million pixels is 590 bytes of PNG and 12 MB of memory. Room for four cameras of 1920 x 1080.
    """

    max_bytes: int = 15 * MIB
    max_depth: int = 8
    max_items: int = 16_384
    max_entries: int = 8_192
    max_text: int = 8_192
    max_dims: int = 6
    max_pixels: int = 4_194_304
    max_total_pixels: int = 8_388_608

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"limits.{field.name} is {value}; a bound on messages is at least 1.")


DEFAULT_LIMITS = WireLimits()
