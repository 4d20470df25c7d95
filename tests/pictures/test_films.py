"""Films that players open: their frames, colours, sizes and rates."""

from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from handdata.pictures.films import encode_film, require_film_format
from handdata.schemas import UsageError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 90), (30, 60, 200)]


def film_of(colours: list[tuple[int, int, int]], height: int, width: int) -> np.ndarray:
    return np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])


@pytest.mark.parametrize(("size", "written"), [((64, 48), (64, 48)), ((65, 33), (66, 34)), ((1, 1), (2, 2))])
def test_mp4_is_h264_of_even_size_with_the_colours_and_the_rate(
    size: tuple[int, int], written: tuple[int, int]
) -> None:
    content = encode_film(film_of(COLOURS, *size), Path("a.MP4"), 29.97)
    with av.open(BytesIO(content)) as container:
        (stream,) = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate is not None and float(stream.average_rate) == pytest.approx(29.97)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape[:2] for frame in shown] == [written] * len(COLOURS)
    for frame, colour in zip(shown, COLOURS, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("name", ["a.webp", "a.GIF"])
def test_an_animation_has_every_frame_and_lasts_as_long_as_the_rate_says(name: str) -> None:
    colours = [(number * 5, 255 - number * 5, 90) for number in range(48)]
    with Image.open(BytesIO(encode_film(film_of(colours, 33, 65), Path(name), 24))) as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (48, (65, 33), 0)  # type: ignore[attr-defined]
        total = 0
        for number, colour in enumerate(colours):
            film.seek(number)
            shown = np.asarray(film.convert("RGB"))
            assert np.abs(shown.astype(int) - colour).mean() < 6
            total += film.info["duration"]
    assert total == 2000


def test_other_names_of_films_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a.avi: neither .mp4, .webp nor .gif"):
        require_film_format(Path("a.avi"))
    require_film_format(Path("A.Mp4"))
