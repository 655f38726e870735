"""Layers that detectors' forks of Caffe add: SSD, R-FCN, DeepLab, SegNet, SENet, ShuffleNet, darknet's converters.

Source: `LayerSetUp` and `Reshape` of weiliu89/caffe (Permute, PriorBox, Normalize, DetectionOutput), Fast R-CNN
(ROIPooling), R-FCN (PSROIPooling), DeepLab and PSPNet (Interp), darknet2caffe and AMCT's Caffe (Upsample, Reorg),
SegNet (Upsample with a mask), farmingyard/ShuffleNet (ShuffleChannel), SENet (Axpy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autonuq.graph import caffe_pb2
from autonuq.graph.model import Array, Layer, Shape
from autonuq.graph.shapes.registry import TWO, LayerError, define, legacy_shape

_MAX_BOXES = 1_000  # of a pixel; SSD has four or six


def permutation(layer: Layer, bottom: Shape) -> list[int]:
    """Return the order of a Permute's axes; those that it does not name follow in their own order."""
    order = list(layer.message.permute_param.order)
    if len(set(order)) != len(order) or any(axis >= len(bottom) for axis in order):
        raise LayerError(f"order {order} must name different axes of an input of {len(bottom)}")
    return order + [axis for axis in range(len(bottom)) if axis not in order]


def _permute_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [tuple(bottoms[0][axis] for axis in permutation(layer, bottoms[0]))]


def _image(layer: Layer, bottom: Shape) -> Shape:
    if len(bottom) != 4:
        raise LayerError(f"{layer.type} needs an input of 4 axes, got {bottom}")
    return bottom


@dataclass(frozen=True)
class PriorBoxes:
    """What a PriorBox layer puts on every pixel of its first bottom.

    Attributes
    ----------
    sizes : tuple of (float, float)
        Width and height of each box, in pixels of the image.
    variance : tuple of float
        One for all coordinates, or four.
    step, image : (float, float)
        Width and height: distance of the centres, size of the image, in pixels.
    offset : float
        Of the first centre, in steps.
    clip : bool
        Keep boxes inside the image.
    """

    sizes: tuple[tuple[float, float], ...]
    variance: tuple[float, ...]
    step: tuple[float, float]
    image: tuple[float, float]
    offset: float
    clip: bool


def prior_boxes(layer: Layer, bottoms: list[Shape]) -> PriorBoxes:
    """Read a PriorBox layer for a feature map and an image, both (N, C, H, W).

    Notes
    -----
    SSD keeps `min_size` and `max_size` in integers while it makes boxes: fractions are cut off.
    """
    message = layer.message.prior_box_param
    feature, data = (_image(layer, bottom) for bottom in bottoms)
    variance = tuple(message.variance) or (0.1,)
    if len(variance) not in (1, 4) or min(variance) <= 0:
        raise LayerError(f"variance needs one or four positive values, got {list(variance)}")
    image = _both(message, "img", "img_size", (data[3], data[2]))
    step = _both(message, "step", "step", (image[0] / feature[3], image[1] / feature[2]))
    return PriorBoxes(tuple(_box_sizes(message)), variance, step, image, message.offset, message.clip)


def _both(
    message: caffe_pb2.PriorBoxParameter, name: str, common: str, default: tuple[float, float]
) -> tuple[float, float]:
    """Read width and height, given apart or together; SSD computes both if one of them is 0."""
    if message.HasField(f"{name}_h") or message.HasField(f"{name}_w"):
        if message.HasField(common):
            raise LayerError(f"has both {common} and {name}_h or {name}_w; only one of them may be given")
        found = (getattr(message, f"{name}_w"), getattr(message, f"{name}_h"))
    else:
        found = (getattr(message, common),) * 2
    if min(found) < 0:
        raise LayerError(f"{common} must not be negative")
    return found if all(found) else default


def _box_sizes(message: caffe_pb2.PriorBoxParameter) -> list[tuple[float, float]]:
    least, most = list(message.min_size), list(message.max_size)
    if not all(map(math.isfinite, (*least, *most, *message.aspect_ratio))):
        raise LayerError("min_size, max_size and aspect_ratio must be finite")
    if not least or min(least) <= 0:
        raise LayerError("needs a positive min_size")
    if most and (len(most) != len(least) or any(high <= low for low, high in zip(least, most, strict=True))):
        raise LayerError("every max_size must be larger than its min_size")
    count = len(least) * (1 + bool(most) + len(message.aspect_ratio) * (1 + message.flip))
    if count > _MAX_BOXES:
        raise LayerError(f"min_size, max_size and aspect_ratio make {count} boxes a pixel; {_MAX_BOXES} is the most")
    ratios = [1.0]
    for ratio in message.aspect_ratio:
        if ratio <= 0:
            raise LayerError(f"aspect_ratio must be positive, got {ratio}")
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if message.flip else [ratio]
    sizes: list[tuple[float, float]] = []
    for index, low in enumerate(map(int, least)):
        sizes.append((low, low))
        if most:
            sizes.append((math.sqrt(low * int(most[index])),) * 2)
        sizes += [(low * math.sqrt(ratio), low / math.sqrt(ratio)) for ratio in ratios if abs(ratio - 1) >= 1e-6]
    return sizes


def _prior_box_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    found = prior_boxes(layer, bottoms)
    return [(1, 2, math.prod(bottoms[0][2:]) * len(found.sizes) * 4)]


def _normalize_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [() if layer.message.norm_param.channel_shared else (_image(layer, bottoms[0])[1],)]


def _normalize_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    return [_image(layer, bottoms[0])]


def detection_classes(layer: Layer) -> tuple[int, int]:
    """Return a DetectionOutput's number of classes and of boxes for each prior: one, or one a class."""
    message = layer.message.detection_output_param
    if message.num_classes < 1:
        raise LayerError("needs num_classes")
    return message.num_classes, 1 if message.share_location else message.num_classes


def _detection_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """One row; how many there are depends on the data."""
    message = layer.message.detection_output_param
    classes, kinds = detection_classes(layer)
    if message.nms_param.nms_threshold < 0 or not 0 < message.nms_param.eta <= 1:
        raise LayerError("nms_threshold must not be negative, and eta must lie above 0 and not above 1")
    location, confidence, prior = bottoms[:3]
    least = 1 if message.variance_encoded_in_target else 2
    if len(prior) < 3 or prior[0] != 1 or not least <= prior[1] <= 2 or prior[2] % 4:
        raise LayerError(f"the third input {prior} must be priors of shape (1, 2, 4 P)")
    boxes = prior[2] // 4
    if location[0] != confidence[0] or math.prod(location[1:]) != boxes * kinds * 4:
        raise LayerError(f"{boxes} priors need {boxes * kinds * 4} locations an item, got {location}")
    if math.prod(confidence[1:]) != boxes * classes:
        raise LayerError(f"{boxes} priors need {boxes * classes} confidences an item, got {confidence}")
    return [(1, 1, 1, 7)]


def interp_crop(layer: Layer) -> tuple[int, int]:
    """Return how many pixels an Interp layer cuts off at the beginning and at the end of both axes."""
    message = layer.message.interp_param
    if message.pad_beg > 0 or message.pad_end > 0:
        raise LayerError("pad_beg and pad_end must not be positive: they crop")
    return -message.pad_beg, -message.pad_end


def _interp_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message, shape = layer.message.interp_param, _image(layer, bottoms[0])
    sizes = [size - sum(interp_crop(layer)) for size in shape[2:]]
    if min(sizes) < 1:
        raise LayerError(f"pad_beg and pad_end leave nothing of {shape}")
    if len(bottoms) == 2:
        return [(*shape[:2], *_image(layer, bottoms[1])[2:])]
    scaled = message.HasField("zoom_factor") or message.HasField("shrink_factor")
    if scaled == (message.HasField("height") and message.HasField("width")):
        raise LayerError("needs either height and width, or zoom_factor or shrink_factor")
    if not scaled:
        return [(*shape[:2], message.height, message.width)]
    if message.zoom_factor < 1 or message.shrink_factor < 1:
        raise LayerError("zoom_factor and shrink_factor must be positive")
    sizes = [(size - 1) // message.shrink_factor + 1 for size in sizes]
    return [(*shape[:2], *((size - 1) * message.zoom_factor + 1 for size in sizes))]


def _check_scale(message: caffe_pb2.UpsampleParameter) -> None:
    if not math.isfinite(message.scale):
        raise LayerError(f"scale must be finite, got {message.scale}")


def upsample_factors(layer: Layer) -> tuple[tuple[int, int], float]:
    """Return by what an Upsample layer repeats rows and columns, and by what it multiplies.

    darknet2caffe's layer repeats `scale` times; AMCT's repeats `stride` times and multiplies by `scale`.
    """
    message = layer.message.upsample_param
    _check_scale(message)
    if any(message.HasField(name) for name in ("stride", "stride_h", "stride_w")) or not message.HasField("scale"):
        height, width = (
            getattr(message, name) if message.HasField(name) else message.stride for name in ("stride_h", "stride_w")
        )
        repeat, factor = (height, width), message.scale
    else:
        repeat, factor = (int(message.scale),) * 2, 1.0
        if repeat[0] != message.scale:
            raise LayerError(f"scale must be a whole number, got {message.scale}")
    if min(repeat) < 1:
        raise LayerError(f"must repeat at least once, got {repeat}")
    return repeat, factor


def _upsample_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    number, channels, *sizes = _image(layer, bottoms[0])
    if len(bottoms) == 1:
        repeat, _ = upsample_factors(layer)
        return [(number, channels, *(size * count for size, count in zip(sizes, repeat, strict=True)))]
    if bottoms[1] != bottoms[0]:
        raise LayerError(f"the mask {bottoms[1]} must have the shape of the values {bottoms[0]}")
    message = layer.message.upsample_param
    _check_scale(message)
    result = []
    for axis, size in zip("hw", sizes, strict=True):
        if message.HasField("upsample_h") and message.HasField("upsample_w"):
            result.append(getattr(message, f"upsample_{axis}"))
            continue
        common = int(message.scale) if message.HasField("scale") else 2  # SegNet's default
        factor = getattr(message, f"scale_{axis}") if message.HasField(f"scale_{axis}") else common
        result.append(size * factor - (1 if getattr(message, f"pad_out_{axis}") else 0))
    return [(number, channels, *result)]


def _shuffle_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    group = layer.message.shuffle_channel_param.group
    if len(bottoms[0]) < 2 or group < 1 or bottoms[0][1] % group:
        raise LayerError(f"group {group} must divide the channels of {bottoms[0]}")
    return bottoms


def _reorg_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    number, channels, height, width = _image(layer, bottoms[0])
    stride, reverse = layer.message.reorg_param.stride, layer.message.reorg_param.reverse
    if stride < 1 or channels % stride**2:
        raise LayerError(f"stride {stride} must be positive, and its square must divide {channels} channels")
    if reverse:
        return [(number, channels // stride**2, height * stride, width * stride)]
    if height % stride or width % stride:
        raise LayerError(f"stride {stride} must divide height and width of {bottoms[0]}")
    return [(number, channels * stride**2, height // stride, width // stride)]


def _regions(layer: Layer, bottoms: list[Shape]) -> int:
    _image(layer, bottoms[0])
    if legacy_shape(bottoms[1])[1:] != (5, 1, 1):
        raise LayerError(f"the second input {bottoms[1]} must hold rows of (batch index, x1, y1, x2, y2)")
    return bottoms[1][0]


def roi_scale(layer: Layer) -> tuple[float, float]:
    """Return by what ROIPooling multiplies x and y."""
    message = layer.message.roi_pooling_param
    width, height = (
        getattr(message, name) if message.HasField(name) else message.spatial_scale
        for name in ("spatial_scale_w", "spatial_scale_h")
    )
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise LayerError("spatial_scale must be positive and finite")
    return width, height


def _roi_pooling_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.roi_pooling_param
    count = _regions(layer, bottoms)
    roi_scale(layer)
    if message.pooled_h < 1 or message.pooled_w < 1:
        raise LayerError("pooled_h and pooled_w must be positive")
    return [(count, bottoms[0][1], message.pooled_h, message.pooled_w)]


def _psroi_pooling_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    message = layer.message.psroi_pooling_param
    count = _regions(layer, bottoms)
    if min(message.group_size, message.output_dim) < 1 or not 0 < message.spatial_scale < math.inf:
        raise LayerError("group_size, output_dim and spatial_scale must be positive, and finite")
    if bottoms[0][1] != message.output_dim * message.group_size**2:
        raise LayerError(f"needs output_dim * group_size^2 channels, got {bottoms[0]}")
    return [(count, message.output_dim, message.group_size, message.group_size)]


def _axpy_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    factor, x, y = bottoms
    if x != y or len(x) < 2 or factor[:2] != x[:2] or math.prod(factor[2:]) != 1:
        raise LayerError(f"needs (N, C), (N, C, ...) and the same again, got {factor}, {x} and {y}")
    return [x]


def prior_box_values(layer: Layer, bottoms: list[Shape]) -> Array:
    """Compute what a PriorBox layer puts out.

    Returns
    -------
    ndarray of float32, shape (1, 2, H * W * P * 4)
        Corners (x1, y1, x2, y2) of P boxes a pixel, in image sizes; then their variances.

    Notes
    -----
    **Cost**: no memory beside the result; x is the same in every row, y in every column.
    """
    found = prior_boxes(layer, bottoms)
    height, width = bottoms[0][2:]
    result = np.empty((2, height, width, len(found.sizes), 4), np.float32)
    result[0, ..., 0::2] = _sides(found, 0, width)
    result[0, ..., 1::2] = _sides(found, 1, height)[:, None]
    if found.clip:
        np.clip(result[0], 0, 1, out=result[0])
    result[1] = found.variance
    return result.reshape(1, 2, -1)


def _sides(found: PriorBoxes, axis: int, count: int) -> Array:
    """Return where the boxes at `count` pixels along an axis (0: x) begin and end, shape (count, P, 2)."""
    centres = (np.arange(count) + found.offset) * float(found.step[axis])
    half = np.array(found.sizes)[:, axis] / 2
    with np.errstate(over="ignore", invalid="ignore"):  # sizes may be anything that float32 holds
        return np.asarray((centres[:, None, None] + half[:, None] * np.array([-1, 1])) / float(found.image[axis]))


define(["Permute"], _permute_tops)
define(["PriorBox"], _prior_box_tops, bottoms=TWO)
define(["Normalize"], _normalize_tops, _normalize_blobs)
define(["DetectionOutput"], _detection_tops, bottoms=range(3, 5))
define(["Interp"], _interp_tops, bottoms=range(1, 3))
define(["Upsample"], _upsample_tops, bottoms=range(1, 3))
define(["ShuffleChannel"], _shuffle_tops)
define(["Reorg"], _reorg_tops)
define(["ROIPooling"], _roi_pooling_tops, bottoms=TWO)
define(["PSROIPooling"], _psroi_pooling_tops, bottoms=TWO)
define(["Axpy"], _axpy_tops, bottoms=range(3, 4))
