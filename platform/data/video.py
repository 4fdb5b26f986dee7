"""Encode, join and decode the MP4 files of a dataset with PyAV.

Frames are uint8 [N,H,W,3], RGB. Streams are H.264, yuv420p, without B-frames and with a key frame every few
frames, so that a random frame costs a few decoded ones, and so that streams of one encoder join by copying packets.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from st4vla.platform.errors import ConfigError, DataError


@dataclass(frozen=True)
class VideoConfig:
    """How frames are compressed.

    Attributes:
        key_frame_every: frames from one key frame to the next; small is fast to seek, large is small on disk.
        quality: x264's constant rate factor, 0 (lossless) .. 51; 18 is visually lossless.
        preset: x264's preset; "veryfast" keeps two 128 px cameras far below the cost of rendering them.
    """

    key_frame_every: int = 4
    quality: int = 18
    preset: str = "veryfast"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.key_frame_every < 1:
            raise ConfigError(f"video.key_frame_every is {self.key_frame_every}; expected 1 or more frames.")
        if not 0 <= self.quality <= 51:
            raise ConfigError(f"video.quality is {self.quality}; x264 takes 0 (lossless) to 51 (worst).")


def encode(frames: np.ndarray, fps: int, config: VideoConfig = VideoConfig()) -> bytes:
    """Compress uint8 [N,H,W,3] to an MP4; equal frames give equal bytes but for rare runs (docs/data.md)."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        # One thread: x264 with several gives bytes that depend on the machine.
        stream.codec_context.thread_count = 1
        stream.options = {
            "crf": str(config.quality),
            "preset": config.preset,
            "g": str(config.key_frame_every),
            "bf": "0",
            "threads": "1",
        }
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def join(first: Path | bytes, num_frames: int, second: bytes, fps: int) -> bytes:
    """Append the MP4 `second` to the first `num_frames` frames of the MP4 `first`, copying packets, not decoding.

    Whatever `first` holds beyond `num_frames` is left out: it is what a killed writer did not finish.
    """
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out, _open(first) as one, _open(second) as two:
        stream = out.add_stream_from_template(one.streams.video[0])
        for source, start, count in ((one, 0, num_frames), (two, num_frames, None)):
            ticks = _ticks_per_frame(source.streams.video[0], fps)
            for packet in source.demux(source.streams.video[0]):
                if packet.pts is None or (count is not None and packet.pts >= count * ticks):
                    continue
                # Without B-frames packets are shown in the order in which they are decoded.
                packet.pts = packet.dts = packet.pts + start * ticks
                packet.duration = ticks
                packet.stream = stream
                out.mux(packet)
    return target.getvalue()


def decode(path: Path, start: int, count: int, fps: float) -> np.ndarray:
    """Read frames `start` .. `start + count - 1` of an MP4 as uint8 [count,H,W,3].

    Raises:
        DataError: the file is missing, damaged, or ends too early.
    """
    frames: list[np.ndarray] = []
    try:
        for index, frame in _frames_from(path, start, fps):
            if index >= start + count:
                break
            if index == start + len(frames):
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                break
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path} cannot be decoded: {error}; copy the file again or record it anew.") from error
    if len(frames) != count:
        raise DataError(
            f"{path} gives {len(frames)} of the {count} frames {start}..{start + count - 1}: "
            "it is truncated or has gaps; copy the file again or record it anew."
        )
    return np.stack(frames)


def describe(height: int, width: int, fps: int) -> dict[str, Any]:
    """Give the `info` that LeRobot keeps of a video feature encoded here."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def stated_size(feature: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Give the (height, width) that `info.json` states of a video feature, channels first or last.

    Args:
        feature: its row of the feature table.
        where: what an error names.

    Raises:
        DataError: neither the names, nor a side of 3, nor its `info` tell which numbers are meant.
    """
    shape, names = [int(side) for side in feature.get("shape") or ()], feature.get("names")
    if isinstance(names, list) and len(names) == len(shape) and {"height", "width"} <= {*names}:
        height, width = shape[names.index("height")], shape[names.index("width")]
        # Some datasets name the sides of [3,H,W] in the order H, W, C: no picture is 3 pixels high.
        if 3 not in (height, width):
            return height, width
    if len(shape) == 3 and 3 in (shape[0], shape[-1]):
        return (shape[0], shape[1]) if shape[-1] == 3 else (shape[1], shape[2])
    # LeRobot v2.0 called it video_info.
    info = feature.get("info") or feature.get("video_info") or {}
    if "video.height" in info and "video.width" in info:
        return int(info["video.height"]), int(info["video.width"])
    raise DataError(
        f"{where} has shape {shape} and names {names}; expected a height, a width and 3 channels in either order: "
        "mend the feature's shape or names in meta/info.json."
    )


def _frames_from(path: Path, start: int, fps: float) -> Iterator[tuple[int, av.VideoFrame]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if start and stream.time_base is not None:
            container.seek(int(start / fps / stream.time_base), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.time_base is not None:
                yield round(float(frame.pts * frame.time_base) * fps), frame


def _ticks_per_frame(stream: Any, fps: int) -> int:
    return round(1 / (stream.time_base * fps))


def _open(source: Path | bytes) -> Any:
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
