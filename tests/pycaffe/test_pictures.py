"""Pictures are decoded where their header fits their size, and in the formats that OpenCV reads for Caffe."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autonuq.pycaffe.io import load_image
from autonuq.pycaffe.pictures import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def stored(kind, pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(width, height, packed=b""):
    """Return a PNG that promises a size, checksums right."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["png", "bmp", "ppm", "tiff", "gif", "jpeg", "webp"])
def test_known_formats_are_decoded(kind):
    data = stored(kind)
    found = np.asarray(decode(io.BytesIO(data), "RGB"))
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decode(io.BytesIO(data), "L").size == (24, 20)


@pytest.mark.parametrize("kind", ["eps", "pcx", "ico", "sgi", "tga", "pdf"])
def test_other_formats_are_not_even_tried(kind):
    with pytest.raises(OSError, match="no picture, or of another format than JPEG, PNG"):
        decode(io.BytesIO(stored(kind)))


@pytest.mark.parametrize(("width", "height"), [(4000, 4000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_more_pixels_than_the_file_can_honestly_hold_are_refused(width, height):
    with pytest.raises(OSError, match=f"{width}x{height} pixels in 57 bytes|damaged"):
        decode(io.BytesIO(png(width, height)))


def test_a_large_photograph_and_a_plain_picture_are_decoded():
    noise = np.random.default_rng(1).integers(0, 256, (2000, 3600, 3), np.uint8)
    assert decode(io.BytesIO(stored("jpeg", noise, quality=30)), "RGB").size == (3600, 2000)
    assert decode(io.BytesIO(stored("png", np.zeros((2000, 3000, 3), np.uint8))), "RGB").size == (3000, 2000)


def test_a_jpeg_of_many_scans_is_refused():
    data = stored("jpeg", progressive=True)
    scan = data[data.index(b"\xff\xda") : data.index(b"\xff\xc4", data.index(b"\xff\xda"))]
    with pytest.raises(OSError, match="a JPEG of 2.. scans"):
        decode(io.BytesIO(data[:-2] + scan * 200 + data[-2:]))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_damage_is_an_oserror_that_names_the_file(tmp_path, kind):
    whole, path = stored(kind), tmp_path / "a.picture"
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for data in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(data)
            try:
                load_image(path)
            except OSError as error:
                assert "a.picture" in str(error)


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png")
