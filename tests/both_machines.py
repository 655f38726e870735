"""What the test of ARM lets both machines do: print digests of what every codec writes of the same codes."""

import hashlib
import json

import numpy as np

from autonuq.quant.codecs import CODEC_NAMES, make_codec

SHAPES = ((8, 3, 3, 3), (40, 16, 1, 1), (10, 130))


def codes_of(shape, levels):
    """Return codes as trained layers have them: many small ones, rows of unlike spread."""
    rng = np.random.default_rng([*shape, levels])
    spread = rng.integers(1, 40, (shape[0], *[1] * (len(shape) - 1)))
    drawn = rng.integers(-spread, spread + 1, shape) + rng.integers(-spread, spread + 1, shape)
    step = 256 // levels
    return (np.clip(drawn, -128, 127) // step * step).astype(np.int8)


def written(codec_name, shape, levels):
    """Return the length and the digest of a layer's bytes, which give the codes again."""
    codes, codec = codes_of(shape, levels), make_codec(codec_name, shape)
    stream = bytes(codec.encode(codes))
    assert (codec.decode(stream, codes.size).reshape(shape) == codes).all()
    return len(stream), hashlib.sha256(stream).hexdigest()


if __name__ == "__main__":
    print(
        json.dumps([written(name, shape, levels) for name in CODEC_NAMES for shape in SHAPES for levels in (256, 16)])
    )
