"""Drawings of hands for people to look at: skeletons with their sides, masks, flags, and sheets of many images.

Images are (height, width, 3) uint8 RGB and are never changed in place. Keypoints are pixels, (0, 0) the centre of the
top-left pixel. Line widths scale with the image, so that 64 px are as readable as 1024.
"""

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from handdata.schemas import FINGERS, SIDES, WRIST, Side, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""

FINGER_COLOURS: Final[dict[Side, tuple[Colour, Colour, Colour, Colour, Colour]]] = {
    "right": ((255, 242, 168), (255, 212, 59), (255, 160, 40), (240, 100, 40), (214, 40, 57)),
    "left": ((205, 246, 255), (118, 214, 255), (60, 160, 245), (60, 105, 232), (128, 90, 226)),
}
"""Thumb to little finger, light to dark. Right hands are warm and left hands cool: the one contrast of hue that all
common kinds of colour blindness keep; fingers differ by lightness as well."""

SIDE_COLOURS: Final[dict[Side, Colour]] = {"right": (255, 172, 48), "left": (92, 190, 255)}
"""Colour of a hand's wrist and of its R or L mark."""

MASK_COLOUR: Final[Colour] = (0, 214, 150)
FLAG_COLOUR: Final[Colour] = (255, 224, 102)

_HALO: Final[Colour] = (20, 20, 28)
_PAPER: Final[Colour] = (250, 250, 250)
_INK: Final[Colour] = (34, 38, 46)
_SHIFT: Final = 4
"""Fractional bits of the coordinates that OpenCV draws at: a sixteenth of a pixel."""
_CANVAS_PX: Final = 512
"""Smaller images are drawn on a canvas of about this side, so that lines may be fractions of a pixel wide."""


def draw_keypoints(image: ByteArray, keypoints: FloatArray, valid: BoolArray) -> ByteArray:
    """Return the image with the skeletons of both hands and an R or L beside each wrist.

    Args:
        image: (height, width, 3) RGB.
        keypoints: (42, 2) pixels of the image; joints may lie outside it.
        valid: (42,) which joints to draw; a bone needs both of its ends.

    """
    height, width = image.shape[:2]
    points = np.asarray(keypoints, dtype=np.float64)
    # Farther out, nothing of a bone is visible, and OpenCV's fixed-point coordinates would overflow.
    near = np.isfinite(points).all(axis=1) & (np.abs(np.nan_to_num(points)) < 16 * max(height, width)).all(axis=1)
    canvas = _Canvas(width, height)
    for side in SIDES:
        rows = hand_rows(side)
        _draw_hand(canvas, points[rows], np.asarray(valid, dtype=bool)[rows] & near[rows], side)
    return canvas.over(image)


def draw_mask(image: ByteArray, mask: BoolArray, colour: Colour = MASK_COLOUR) -> ByteArray:
    """Return the image with a translucent mask and its outline.

    Args:
        image: (height, width, 3) RGB.
        mask: (height, width), true where the hand is.
        colour: Colour of fill and outline.

    """
    height, width = image.shape[:2]
    filled = image.copy()
    filled[mask] = (0.72 * image[mask] + 0.28 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    canvas = _Canvas(width, height)
    for outline in outlines:
        canvas.closed_line(outline[:, 0], max(0.6, max(width, height) / 240), colour)
    return canvas.over(filled)


def draw_flags(image: ByteArray, flags: Sequence[str]) -> ByteArray:
    """Return the image with the names of its flags at the lower edge, one a line; without flags, a copy of it."""
    if not flags:
        return image.copy()
    height, width = image.shape[:2]
    font = _font(max(10, round(width / 17)))
    line_px = _line_height(font)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for line, flag in enumerate(reversed(flags)):
        text = _shortened(flag.replace("_", " "), font, width - 6)
        top = height - (line + 1) * line_px
        draw.rectangle((0, top, font.getlength(text) + 6, top + line_px - 1), fill=FLAG_COLOUR)
        draw.text((3, top), text, fill=(0, 0, 0), font=font)
    return np.array(picture)


def draw_crop(
    image: ByteArray,
    mask: ByteArray | None,
    keypoints: FloatArray,
    valid: BoolArray,
    flags: Sequence[str],
    size_px: int,
) -> ByteArray:
    """Return the (size_px, size_px, 3) picture of an annotated crop: mask, keypoints and flags drawn.

    The crop is scaled before it is drawn on, so that lines are as sharp in a small picture as in a large one.

    Args:
        image: (S, S, 3) RGB.
        mask: Levels (S, S), 255 on the hands; None where there is no mask.
        keypoints: (42, 2) pixels of the image.
        valid: (42,) which joints to draw.
        flags: Names at the lower edge.
        size_px: Side of the picture, pixels.

    """
    picture = fit(image, size_px, size_px)
    if mask is not None:
        picture = draw_mask(picture, np.array(Image.fromarray(mask).resize((size_px, size_px))) >= 128)
    scaled = (keypoints + 0.5) * (size_px / image.shape[0]) - 0.5
    return draw_flags(draw_keypoints(picture, scaled, valid), flags)


def fit(image: ByteArray, width: int, height: int) -> ByteArray:
    """Return the whole image, scaled without stretching and centred on white, as (height, width, 3)."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_CUBIC)
    fitted = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    fitted[top : top + size[1], left : left + size[0]] = scaled
    return fitted


def tile(images: Sequence[ByteArray], columns: int, gap: int, captions: Sequence[str]) -> ByteArray:
    """Return one picture of many images on white, row by row, each with its caption below.

    Args:
        images: At least one image; a smaller one is centred in the cell of the largest.
        columns: Number of images in a row.
        gap: Pixels between the cells and around them.
        captions: One caption an image; a line break starts a new line, and a line that is too long loses its middle.

    Raises:
        ValueError: There is no image, or there are not as many captions as images.

    """
    if not images or len(images) != len(captions):
        raise ValueError(f"expected at least one image and a caption for each, got {len(images)} and {len(captions)}")
    columns = min(columns, len(images))
    cell_width = max(image.shape[1] for image in images)
    cell_height = max(image.shape[0] for image in images)
    font = _font(min(max(11, round(cell_width / 15)), 18))
    line_px = _line_height(font)
    caption_px = max(caption.count("\n") + 1 if caption else 0 for caption in captions) * line_px
    stride_x, stride_y = cell_width + gap, cell_height + caption_px + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * stride_x + gap, rows * stride_y + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for position, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(position, columns)
        left, top = gap + column * stride_x, gap + row * stride_y
        height, width = image.shape[:2]
        sheet.paste(Image.fromarray(image), (left + (cell_width - width) // 2, top + (cell_height - height) // 2))
        for line, text in enumerate(caption.split("\n")):
            corner = left, top + cell_height + line * line_px
            draw.text(corner, _shortened(text, font, cell_width), fill=_INK, font=font)
    return np.array(sheet)


def titled_columns(rows: Sequence[Sequence[ByteArray]], titles: Sequence[str], gap: int) -> ByteArray:
    """Return one picture of rows of images of one size on white, with a title above each column.

    Args:
        rows: At least one row, of an image a column.
        titles: One title a column; a line that is too long loses its middle.
        gap: Pixels between the images and around them.

    """
    height, width = rows[0][0].shape[:2]
    font = _font(min(max(11, round(width / 11)), 18))
    title_px = _line_height(font)
    size = len(titles) * (width + gap) + gap, title_px + gap + len(rows) * (height + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        left = gap + column * (width + gap)
        text = _shortened(title, font, width)
        draw.text((left + (width - font.getlength(text)) / 2, 0), text, fill=_INK, font=font)
        for row, images in enumerate(rows):
            sheet.paste(Image.fromarray(images[column]), (left, title_px + gap + row * (height + gap)))
    return np.array(sheet)


class _Canvas:
    """A transparent layer over an image, drawn at a higher resolution where the image is small.

    OpenCV blends an anti-aliased edge with the pixels below it. On an empty layer of four channels it blends colour and
    coverage alike: the result is the layer with premultiplied alpha.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.zoom = max(1, round(_CANVAS_PX / max(width, height)))
        self.layer: ByteArray = np.zeros((height * self.zoom, width * self.zoom, 4), dtype=np.uint8)

    def _to_layer(self, points: NDArray[np.number]) -> NDArray[np.int32]:
        """Map the image's pixels to OpenCV's fixed-point pixels of the layer; both have the centre of pixel 0 at 0."""
        centred = (np.asarray(points, dtype=np.float64) + 0.5) * self.zoom - 0.5
        return np.round(centred * 2**_SHIFT).astype(np.int32)

    def _thickness(self, width: float) -> int:
        return max(1, round(width * self.zoom))

    def line(self, start: NDArray[np.floating], end: NDArray[np.floating], width: float, colour: Colour) -> None:
        first, second = self._to_layer(start).tolist(), self._to_layer(end).tolist()
        cv2.line(self.layer, first, second, (*colour, 255), self._thickness(width), cv2.LINE_AA, _SHIFT)

    def closed_line(self, points: NDArray[np.number], width: float, colour: Colour) -> None:
        cv2.polylines(
            self.layer, [self._to_layer(points)], True, (*colour, 255), self._thickness(width), cv2.LINE_AA, _SHIFT
        )

    def disc(self, centre: NDArray[np.floating], radius: float, colour: Colour) -> None:
        fixed_radius = round(radius * self.zoom * 2**_SHIFT)
        cv2.circle(
            self.layer, self._to_layer(centre).tolist(), fixed_radius, (*colour, 255), cv2.FILLED, cv2.LINE_AA, _SHIFT
        )

    def letter(self, text: str, centre: NDArray[np.floating], height: float, colour: Colour) -> None:
        font, stroke = cv2.FONT_HERSHEY_SIMPLEX, self._thickness(height / 6)
        scale = cv2.getFontScaleFromHeight(font, max(1, round(height * self.zoom)), stroke)
        (text_width, text_height), _ = cv2.getTextSize(text, font, scale, stroke)
        x, y = self._to_layer(centre) / 2**_SHIFT + (-text_width / 2, text_height / 2)
        cv2.putText(self.layer, text, (round(x), round(y)), font, scale, (*colour, 255), stroke, cv2.LINE_AA)

    def over(self, image: ByteArray) -> ByteArray:
        layer = cv2.resize(self.layer, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(np.float32)
        blended = layer[..., :3] + image * (1 - layer[..., 3:] / 255)
        return np.asarray(np.clip(np.round(blended), 0, 255), dtype=np.uint8)


def _draw_hand(canvas: _Canvas, points: NDArray[np.float64], valid: BoolArray, side: Side) -> None:
    """Draw one hand's 21 joints."""
    if not valid.any():
        return
    extent = float(np.ptp(points[valid], axis=0).max())
    # A small hand in a large image has thinner lines, or they would cover it.
    width = max(1.0, min(max(canvas.width, canvas.height) / 130, max(extent, 1.0) / 42))
    colours = FINGER_COLOURS[side]
    bones = [
        (start, end, colour)
        for joints, colour in zip(FINGERS.values(), colours, strict=True)
        for start, end in zip((WRIST, *joints[:-1]), joints, strict=True)
        if valid[start] and valid[end]
    ]
    for start, end, _ in bones:
        canvas.line(points[start], points[end], 1.9 * width, _HALO)
    for start, end, colour in bones:
        canvas.line(points[start], points[end], width, colour)
    dots = [(WRIST, SIDE_COLOURS[side], 1.25)]
    dots += [(joint, colour, 0.9) for joints, colour in zip(FINGERS.values(), colours, strict=True) for joint in joints]
    for joint, colour, radius in dots:
        if valid[joint]:
            canvas.disc(points[joint], radius * width + 0.4 * width, _HALO)
            canvas.disc(points[joint], radius * width, colour)
    _draw_side(canvas, points, valid, side, width)


def _draw_side(canvas: _Canvas, points: NDArray[np.float64], valid: BoolArray, side: Side, line_width: float) -> None:
    """Draw an R or L in a disc, next to the wrist and away from the fingers, inside the image."""
    anchor = points[int(np.flatnonzero(valid)[0])]  # the wrist, or the valid joint nearest to it in the tree
    away = anchor - points[valid].mean(axis=0)
    length = float(np.hypot(*away))
    direction = away / length if length > 1e-6 else np.array([0.0, 1.0])
    radius = max(5.5, 3.6 * line_width)
    limits = np.array([canvas.width, canvas.height]) - 1 - radius
    centre = np.clip(anchor + direction * (radius + 2.2 * line_width), radius, np.maximum(limits, radius))
    canvas.disc(centre, radius + 0.5 * line_width, _HALO)
    canvas.disc(centre, radius, SIDE_COLOURS[side])
    canvas.letter(side[0].upper(), centre, 1.3 * radius, (0, 0, 0))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in typeface, which every installation has."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent + 1


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the text, or its two ends where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(_ends(text, keep)) > width:
        keep -= 1
    return _ends(text, keep)


def _ends(text: str, keep: int) -> str:
    return f"{text[: keep // 2]}...{text[len(text) - (keep - keep // 2) :]}"
