"""A network whose bytes are counted with a codec, or for a chip."""

from dataclasses import replace

from autonuq.quant.config import Target


def counted_with(model, codec="", **target):
    """Return the quantized model with this target in its configuration; see `Target`."""
    return replace(model, config=replace(model.config, target=Target(codec, **target)))
