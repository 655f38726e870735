"""Pictures, decoded only once their header was seen to fit the file: a few kilobytes may promise any size.

Pillow tries each format that it knows on any file; here it is those that OpenCV reads for Caffe. So no PostScript runs.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
_FREE_PIXELS = 6 << 20
_MOST_RATIO = 16
"""How many pixels a picture may have beside those, for each of its bytes: photographs have up to 10."""
_JPEGS = ("JPEG", "MPO")  # a JPEG with a second picture behind the first, as phones write it, is opened as MPO
_MOST_SCANS = 100
"""Of a progressive JPEG, which has some ten: each goes over all pixels, and may take ten bytes."""
_SCAN = b"\xff\xda"
_TILE_SIDES = (322, 323)  # tags of a TIFF: width and length of a tile
_MOST_TILE = 1 << 12


def decode(file: Path | io.BytesIO, mode: str | None = None) -> Image.Image:
    """Decode a picture, the first one of several.

    Parameters
    ----------
    file : Path or BytesIO
    mode : str, optional
        Pillow's name of what its pixels become; None: they stay as they are.

    Raises
    ------
    OSError
        It cannot be read, is no picture of a known format, is damaged, or is larger than such a file can honestly be.
    """
    data = io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file
    try:
        with Image.open(data, formats=_FORMATS) as picture:
            _check(picture, data.getvalue())
            picture.load()
            return picture if mode in (None, picture.mode) else picture.convert(mode)
    except OSError:
        raise
    except Exception as error:
        # Pillow's decoders raise SyntaxError, ValueError, struct.error and more where a file is damaged.
        raise OSError(f"the picture is damaged: {error or type(error).__name__}") from error


def _check(picture: Image.Image, data: bytes) -> None:
    """Refuse what takes much more memory or time than the file's size lets expect."""
    pixels, most = picture.width * picture.height, _FREE_PIXELS + _MOST_RATIO * len(data)
    if pixels > most:
        raise OSError(f"{picture.width}x{picture.height} pixels in {len(data):,} bytes, as no photograph has them")
    if picture.format in _JPEGS and (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise OSError(f"a JPEG of {scans} scans; save it anew")
    if picture.format == "TIFF" and any(picture.tag_v2.get(tag, 0) > _MOST_TILE for tag in _TILE_SIDES):  # type: ignore[attr-defined]
        raise OSError(f"a TIFF of tiles larger than {_MOST_TILE} pixels; save it anew")
