"""Draw frames with what is annotated in them, large enough for people to see."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from st4vla.platform.contracts import FrameAnnotation

SCALE = 3
COLORS = ((255, 82, 82), (64, 196, 255), (105, 240, 174), (255, 215, 64), (224, 64, 251), (255, 171, 64))
TRACE_COLOR, TEXT_COLOR, PAPER = (255, 255, 255), (235, 235, 235), (24, 24, 28)
CAPTION_PX, MARGIN_PX = 34, 6


def draw_frame(image: np.ndarray, annotation: FrameAnnotation | None, scale: int = SCALE) -> Image.Image:
    """Draw boxes and points by name and the trace with its end marked, on uint8 [H,W,3] enlarged `scale` times."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    if annotation is None:
        return picture
    pen, font = ImageDraw.Draw(picture), _font(13)
    for number, (name, box) in enumerate(annotation.boxes.items()):
        color = COLORS[number % len(COLORS)]
        key = name in (annotation.target, annotation.destination)
        pen.rectangle([value * scale for value in box], outline=color, width=3 if key else 1)
        _label(pen, (box[0] * scale, box[1] * scale - 16), _role(name, annotation), color, font)
    for number, name in enumerate(annotation.boxes):
        if name in annotation.points:
            _dot(pen, annotation.points[name], COLORS[number % len(COLORS)], scale)
    trace = [(x * scale, y * scale) for x, y in annotation.trace]
    if len(trace) >= 2:
        pen.line(trace, fill=TRACE_COLOR, width=2)
        pen.ellipse(_around(trace[-1], 5), outline=TRACE_COLOR, width=2)
    return picture


def contact_sheet(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], note: str = ""
) -> Image.Image:
    """Lay pictures out, one row per camera: [(camera, [(caption, picture), ...]), ...], under a title."""
    widths = [sum(picture.width + MARGIN_PX for _, picture in row) for _, row in rows]
    heights = [max(picture.height for _, picture in row) + CAPTION_PX + MARGIN_PX for _, row in rows]
    sheet = Image.new("RGB", (max(widths) + MARGIN_PX, sum(heights) + CAPTION_PX * 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PX, 6), title, fill=TEXT_COLOR, font=_font(20))
    pen.text((MARGIN_PX, 36), note, fill=TEXT_COLOR, font=_font(14))
    top = CAPTION_PX * 2
    for (camera, row), height in zip(rows, heights, strict=True):
        left = MARGIN_PX
        for number, (caption, picture) in enumerate(row):
            text = f"{camera}: {caption}" if number == 0 else caption
            pen.text((left, top + 8), _fitted(text, picture.width, _font(14)), fill=TEXT_COLOR, font=_font(14))
            sheet.paste(picture, (left, top + CAPTION_PX))
            left += picture.width + MARGIN_PX
        top += height
    return sheet


def _role(name: str, annotation: FrameAnnotation) -> str:
    if name == annotation.target:
        return f"{name} (target)"
    return f"{name} (destination)" if name == annotation.destination else name


def _label(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
    font: ImageFont.ImageFont,
) -> None:
    corner = (max(corner[0], 0), max(corner[1], 0))
    pen.rectangle(pen.textbbox(corner, text, font=font), fill=(0, 0, 0))
    pen.text(corner, text, fill=color, font=font)


def _dot(pen: ImageDraw.ImageDraw, point: tuple[float, float], color: tuple[int, int, int], scale: int) -> None:
    pen.ellipse(_around((point[0] * scale, point[1] * scale), 5), fill=color, outline=(0, 0, 0), width=2)


def _around(center: tuple[float, float], radius: int) -> list[float]:
    return [center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius]


def _fitted(text: str, width: int, font: ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
