"""The parsers of data, settings and packed files, and what good files of each look like."""

from __future__ import annotations

import binascii
import io
import json
import lzma
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutations import Parser
from mutators import BOMB_BYTES, BYTES, INTEGERS, MAX_BYTES, TEXT, ZIP, change_json, change_toml, damaged, npy, zip_bomb
from PIL import Image

from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import pack
from autonuq.compress.packed_file import load_packed
from autonuq.compress.quantized import default_config, quantize
from autonuq.evaluate.builtin import DataSettings, TransformSettings
from autonuq.evaluate.builtin.annotations import Annotations, CocoFile, VocFolder, load_objects
from autonuq.evaluate.builtin.sources import decode_picture, open_images
from autonuq.evaluate.builtin.transform import Transform
from autonuq.graph import caffe_pb2
from autonuq.graph.datum import parse_datum
from autonuq.graph.files import expected_blobs, parse_graph
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.graph.record import load_record, write_record
from autonuq.pycaffe.io import load_image
from autonuq.quant.codecs import CODEC_NAMES
from autonuq.quant.config import Target
from autonuq.settings.config_json import load_config_json, write_config_json
from autonuq.settings.mapping import load_marks
from autonuq.settings.simplified import load_simplified
from autonuq.study.study_file import load_task

_NETWORK = b"""name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
        convolution_param { num_output: 6 kernel_size: 3 group: 2 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv2" top: "bn" }
layer { name: "pool" type: "Pooling" bottom: "bn" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
_RNG_SEED = 7


def _pixels(shape: tuple[int, ...] = (6, 10, 12, 3)) -> Any:
    return np.random.default_rng(_RNG_SEED).integers(0, 256, shape, np.uint8)


# Images: npz, pictures, records of a database; means


def _npz_bytes(compressed: bool, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _npz_originals(folder: Path) -> list[bytes]:
    zip_bomb("images.npy"), zip_bomb("labels.npy")
    labels = np.arange(6) % 3
    return [
        _npz_bytes(True, images=_pixels(), labels=labels),
        _npz_bytes(False, images=_pixels((6, 3, 10, 12)).astype(np.float32), labels=labels.astype(np.uint8)),
        _npz_bytes(True, images=np.zeros((6, 28, 28, 3), np.uint8), labels=labels, x=np.ones(9)),
    ]


def _read_npz(path: Path) -> None:
    images = open_images(DataSettings("npz", path))
    images.read(0, 2, 3)
    images.digest()


def _picture_originals(folder: Path) -> list[bytes]:
    _deflated()
    colour, grey = Image.fromarray(_pixels((40, 50, 3))), Image.fromarray(_pixels((40, 50)))
    flat = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    kinds = ("png", "jpeg", "bmp", "gif", "ppm", "tiff", "webp")
    return [_picture(image, kind) for image in (colour, grey, flat) for kind in kinds] + [
        _picture(colour, "jpeg", progressive=True),
        _picture(colour.convert("P"), "png"),
        _picture(grey, "tiff", compression="tiff_lzw"),
    ]


def _picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def change_png(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change a PNG's chunks, checksums right: sizes of the picture, bombs of pixels and of text."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return data
    which = rng.randrange(len(chunks))
    for index, (kind, body) in enumerate(chunks):
        if kind == b"IHDR" and rng.random() < 0.6:
            sides = [rng.choice((0, 1, 40, 1000, 9000, 13000, 65535, 2**31 - 1)) for _ in range(2)]
            body = struct.pack(">II", *sides) + body[8:]
        if kind == b"IDAT" and rng.random() < 0.3:
            body = _deflated()
        if index == which and rng.random() < 0.5:
            body = damaged(rng, body, body, BYTES)
        chunks[index] = (kind, body)
    if rng.random() < 0.3:
        bomb = rng.choice(((b"zTXt", b"a\0\0" + _deflated()), (b"iCCP", b"a\0\0" + _deflated()), chunks[which]))
        chunks[1:1] = [bomb] * rng.choice((1, 1, 50))
    return data[:8] + b"".join(_png_chunk(*chunk) for chunk in chunks)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@cache
def _deflated() -> bytes:
    return zlib.compress(bytes(BOMB_BYTES), 9)


def _means(folder: Path) -> list[Any]:
    values = np.random.default_rng(_RNG_SEED).random((3, 8, 8)).astype(np.float32)
    return [values, values[:, 0, 0], values.astype(np.float64)]


def _binaryproto_originals(folder: Path) -> list[bytes]:
    new = caffe_pb2.BlobProto(data=_means(folder)[0].tobytes())
    new.shape.dim.extend((3, 8, 8))
    old = caffe_pb2.BlobProto(num=1, channels=3, height=8, width=8, data=_means(folder)[0].tobytes())
    return [new.SerializeToString(), old.SerializeToString()]


def _npz_means(folder: Path) -> list[bytes]:
    zip_bomb("m.npy")
    return [_npz_bytes(index == 1, m=mean) for index, mean in enumerate(_means(folder))]


def _npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _read_mean(suffix: str, path: Path) -> None:
    Transform(TransformSettings(mean_file=f"{path}{suffix}"), (3, 8, 8)).apply([_pixels((8, 8, 3))], "RGB", "BGR")


def change_npy(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change the header of an array's file."""
    return npy(rng, data)


def _datum_originals(folder: Path) -> list[bytes]:
    raw = caffe_pb2.Datum(channels=3, height=10, width=12, data=_pixels((3, 10, 12)).tobytes(), label=3)
    floats = caffe_pb2.Datum(channels=1, height=2, width=3, float_data=[0.5] * 6, label=1)
    picture = caffe_pb2.Datum(data=_picture(Image.fromarray(_pixels((10, 12, 3))), "jpeg"), encoded=True, label=2)
    return [message.SerializeToString() for message in (raw, floats, picture)]


def _read_datum(path: Path) -> None:
    datum = parse_datum(path.read_bytes(), "00000001", path)
    if datum.values is None:
        decode_picture(io.BytesIO(datum.encoded), 3, path)


def _label_originals(folder: Path) -> list[bytes]:
    for name in ("a.png", "b c.png", "ä.png"):
        (folder / name).write_bytes(_picture(Image.fromarray(_pixels((8, 8, 3))), "png"))
    return ["a.png 0\nb c.png 11\nä.png 2\n".encode(), b"a.png 3\n\na.png 1\n"]


def _read_labels(path: Path) -> None:
    images = open_images(DataSettings("folder", path.parent, labels=str(path)))
    images.read(0, 2, 3)
    images.digest()


_VOC = """<annotation><filename>{0}.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>
</object><object><name>dog</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9.5</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""
_COCO = {
    "images": [{"id": 3, "file_name": "a.jpg", "width": 50, "height": 40}, {"id": 1, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 18, "bbox": [1, 2, 20, 10.5], "area": 210, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
    ],
}


def _read_labelled(annotations: Annotations, names: Sequence[str]) -> None:
    load_objects(annotations, [name for name in names if name in annotations], ("cat", "dog"), 2)


def _read_voc(path: Path) -> None:
    _read_labelled(VocFolder(path.parent, "folder"), [path.stem])


def _read_coco(path: Path) -> None:
    _read_labelled(CocoFile(path, "folder"), ["a", "b"])


# Settings


@cache
def _graph() -> Graph:
    graph = parse_graph(_NETWORK, Path("small.prototxt"))
    rng = np.random.default_rng(_RNG_SEED)
    blobs = {
        name: [rng.laplace(scale=0.2, size=shape).astype(np.float32) for shape in shapes]
        for name, shapes in expected_blobs(graph).items()
    }
    blobs["bn"] = [blobs["bn"][0], np.abs(blobs["bn"][1]) + 1, np.ones(1, np.float32)]
    blobs["fc"][0][:] = np.round(blobs["fc"][0] * 2) / 2  # few levels
    return graph.with_layers(layer.with_(blobs=blobs[layer.name]) for layer in graph.layers)


def _config_originals(folder: Path) -> list[bytes]:
    path = folder / "good.json"
    write_config_json(path, default_config(_graph()), capabilities(_graph()))
    nuq = {"version": 1, "conv1": {"weight_quant_params": {"wts_algo": "nuq_quantize", "num_steps": 16}}}
    aim = {"codec": "entropy", "batch_num": 2, "skip_fusion_layers": ["conv2"], "fc": {"quant_enable": False}}
    return [path.read_bytes(), json.dumps(nuq).encode(), json.dumps(aim).encode()]


_CFGS = (
    b'batch_num: 2\nskip_layers: "fc"\nskip_layer_types: "Pooling"\nactivation_offset: true\njoint_quant: false\n'
    b"common_config { arq_quantize { channel_wise: true } ifmr_quantize { search_range_start: 0.7 "
    b"search_range_end: 1.3 search_step: 0.01 max_percentile: 0.999999 } }\n",
    b'override_layer_configs { layer_name: "conv1" calibration_config { hfmg_quantize { num_of_bins: 4096 } } }\n'
    b'override_layer_types { layer_type: "InnerProduct" calibration_config { arq_quantize { } } }\ndo_fusion: false\n',
    b'nuq_config { mapping_file: "map.json" nuq_quantize { num_steps: 16 num_of_iteration: 3 } }\n',
)


def _cfg_originals(folder: Path) -> list[bytes]:
    (folder / "map.json").write_bytes(_mapping_originals(folder)[0])
    return list(_CFGS)


def _mapping_originals(folder: Path) -> list[bytes]:
    operators = [
        {
            "name": f"{name}relu1",
            "attr": [
                {"key": "_fe_weight_compress", "value": {"b": True}},
                {"key": "_datadump_original_op_names", "value": {"list": {"s": [name, "relu1"]}}},
            ],
        }
        for name in ("conv1", "fc")
    ]
    plain = {"name": "conv1", "attr": [{"key": "fe_weight_compress", "value": {"i": 1}}]}
    return [json.dumps({"graph": [{"op": found}]}).encode() for found in (operators, [plain, *operators])]


_STUDIES = (
    b'name = "a"\nout = "out"\n[model]\nprototxt = "a.prototxt"\nweights = "a.caffemodel"\n'
    b'[evaluator]\nclass = "evaluate.py:Top1"\nevaluate_batch_num = 4\ntimeout = 9.5\n[quantization]\nbatch_num = 2\n'
    b'activation_offset = true\ncodec = "entropy"\nlevels = "any"\n[search]\ntrials = 14\nseed = 3\nconfidence = 0.8\n'
    b'storage = "sqlite:///a.db"\nfloat_layers = ["conv1"]\n[workers]\nbackend = "dask"\nscheduler = "tcp://a:1"\n',
    b'name = "b"\nmodel = {prototxt = "a.prototxt", weights = "a.caffemodel"}\n[evaluator]\nkind = "top1"\n'
    b'drop = "1 %"\nbatch_size = 8\n[evaluator.data]\nnpz = "a.npz"\nimages = "x"\nstart = 5\ncount = 90\n'
    b'[evaluator.transform]\nresize = [32, 32]\ncrop = 28\nmean = [1.0, 2, 3]\nscale = 0.5\nchannels = "BGR"\n'
    b'[confirm.data]\nnpz = "a.npz"\nstart = 95\ncount = 5\n[quantization]\ncodec = "ascend"\nchip = "ascend310"\n'
    b'marks = "all"\n',
    b'name = "c"\n[model]\nprototxt = "a.prototxt"\nweights = "a.caffemodel"\n[evaluator]\nkind = "top5"\ndrop = 2\n'
    b'[evaluator.data]\nfolder = "pictures"\n[evaluator.calibration]\nlmdb = "db"\n[evaluator.transform]\n'
    b'mean_file = "mean.npz:m"\n[search]\nsampler = "tpe"\nconfirm = true\nstop_gain = 0.1\nartifacts = "art"\n',
)


def _record_originals(folder: Path) -> list[bytes]:
    model = _model("entropy")
    path = folder / "good.txt"
    return [write_record(path, model.factors, clusters=clusters).read_bytes() for clusters in (False, True)]


# Packed files


def _model(codec: str) -> Any:
    found = quantize(_graph(), default_config(_graph(), skip_layers=["conv2"] if codec == "ascend" else []))
    factors = {
        name: replace(own, scale_d=0.05, offset_d=-3, channels=3, height=8, width=8)
        for name, own in found.factors.items()
    }
    return replace(found, factors=factors, config=replace(found.config, target=Target(codec)))


def _packed_originals(folder: Path) -> list[bytes]:
    _lzma_bomb(), _layer_names(), _names_in_order()
    found = []
    for codec in CODEC_NAMES:
        path = folder / f"{codec}.nuq"
        pack(Candidate(_model(codec)), path, "study a: lost 0.3 points")
        found.append(path.read_bytes())
    return found


_PREAMBLE = struct.Struct("<8sIQ")


def _sections(data: bytes) -> tuple[list[str], list[bytes]]:
    """Return the names and the contents of a good packed file's sections."""
    place, names, found = _PREAMBLE.size + 4, [], []
    known = ["", *(f"{name}" for name in _layer_names())]
    while place + 8 <= len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        body, stored = data[place : place + 8 + size], data[place + 8 + size : place + 12 + size]
        fitting = [name for name in known if struct.pack("<I", zlib.crc32(body, zlib.crc32(name.encode()))) == stored]
        if not fitting:
            return names, found
        names.append(fitting[0])
        found.append(body[8:])
        place += 12 + size
    return names, found


@cache
def _layer_names() -> tuple[str, ...]:
    return tuple(layer.name for codec in CODEC_NAMES for layer in Candidate(_model(codec)).fake_quant_graph().layers)


def _joined(names: Sequence[str], sections: Sequence[bytes]) -> bytes:
    chunks = []
    for name, body in zip(names, sections, strict=True):
        framed = struct.pack("<Q", len(body)) + body
        chunks += [framed, struct.pack("<I", zlib.crc32(framed, zlib.crc32(name.encode())))]
    size = _PREAMBLE.size + 4 + sum(map(len, chunks))
    preamble = _PREAMBLE.pack(b"\x89NUQ\r\n\x1a\n", 1, size)
    return b"".join([preamble, struct.pack("<I", zlib.crc32(preamble)), *chunks])


def change_sections(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change one section of a packed file, everything around it right: network, counts, shapes, streams."""
    names, sections = _sections(data)
    if not sections:
        return data
    which = rng.choice((0, rng.randrange(len(sections))))
    if names[which] == "":
        sections[which] = _changed_network(rng, sections[which], other)
        if rng.random() < 0.5:  # layers of the new sizes
            sections = [_resized(rng, section) for section in sections[:1]] + [
                _changed_layer(rng, section) if rng.random() < 0.5 else section for section in sections[1:]
            ]
    else:
        sections[which] = _changed_layer(rng, sections[which])
    return _joined(names, sections)


def _changed_network(rng: Random, section: bytes, other: bytes) -> bytes:
    if rng.random() < 0.1:
        return _lzma_bomb()
    text = _unpacked(section)
    return section if text is None else lzma.compress(damaged(rng, text, text, TEXT), lzma.FORMAT_ALONE, preset=0)


def _unpacked(section: bytes) -> bytes | None:
    """Return the text of a network's section, None if it is damaged or a bomb."""
    try:
        text = lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(section, MAX_BYTES + 1)
    except lzma.LZMAError:
        return None
    return text if len(text) <= MAX_BYTES else None


def _resized(rng: Random, section: bytes) -> bytes:
    text = _unpacked(section)
    if text is None:
        return section
    size = b"num_output: %d" % rng.choice((1, 1000, 10**6, 5 * 10**7, 10**9, 2**31 - 1))
    return lzma.compress(
        text.replace(rng.choice((b"num_output: 8", b"num_output: 5")), size), lzma.FORMAT_ALONE, preset=0
    )


@cache
def _lzma_bomb() -> bytes:
    return lzma.compress(b"#" * BOMB_BYTES, lzma.FORMAT_ALONE, preset=0)


def _changed_layer(rng: Random, section: bytes) -> bytes:
    """Change a field of a layer's section; the codec's own checksum is made right again."""
    if section[:1] != b"\1":
        return damaged(rng, section, section, BYTES)
    try:
        head, arrays, rest = _arrays(section)
    except struct.error:
        return damaged(rng, section, section, BYTES)
    what = rng.randrange(6)
    scales, shifts, codec, shape, stream = arrays
    if what == 0:
        head = damaged(rng, head, head, BYTES)[: len(head)].ljust(len(head), b"\0")
    elif what == 1:
        scales, shifts = scales * rng.choice((0, 2, 100)), damaged(rng, shifts, shifts, BYTES)
    elif what == 2:
        codec = rng.choice((*(name.encode() for name in CODEC_NAMES), b"int8", b"", b"\xff", b"x" * 3000))
    elif what == 3:
        sizes = [rng.choice(INTEGERS) & 0xFFFFFFFF if rng.random() < 0.5 else size for size in _uint32(shape)]
        shape = struct.pack(f"<{len(sizes)}I", *sizes)
    else:
        stream = _changed_stream(rng, codec, stream, math.prod(_uint32(shape)))
    return b"\1" + head + b"".join(_array(*one) for one in _widths((scales, shifts, codec, shape, stream))) + rest


def _changed_stream(rng: Random, codec: bytes, stream: bytes, count: int) -> bytes:
    stream = damaged(rng, stream, stream, BYTES) if rng.random() < 0.7 else rng.choice((b"\0\0", bytes(9), stream[:4]))
    if codec != b"entropy" or len(stream) < 2 or rng.random() < 0.3:
        return stream
    count = rng.choice((count, rng.choice(INTEGERS)))
    checksum = binascii.crc_hqx(stream[2:], binascii.crc_hqx(count.to_bytes(8, "little"), 0))
    return (checksum ^ rng.choice((0, 0x2C6E))).to_bytes(2, "little") + stream[2:]


def _arrays(section: bytes) -> tuple[bytes, list[bytes], bytes]:
    place, found = 7, []
    for width in (4, 1, 1, 4, 1):
        (count,) = struct.unpack_from("<I", section, place)
        found.append(section[place + 4 : place + 4 + count * width])
        place += 4 + count * width
    return section[1:7], found, section[place:]


def _widths(arrays: Sequence[bytes]) -> list[tuple[bytes, int]]:
    return list(zip(arrays, (4, 1, 1, 4, 1), strict=True))


def _array(data: bytes, width: int) -> bytes:
    return struct.pack("<I", len(data) // width) + data[: len(data) // width * width]


def _uint32(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4])


def _mended(data: bytes) -> bytes:
    """Make the checksums of a packed file right again, whatever its sections hold by now."""
    names, sections = [], []
    place, expected = _PREAMBLE.size + 4, _names_in_order()
    while place + 12 <= len(data) and len(names) < len(expected):
        size = min(struct.unpack_from("<Q", data, place)[0], len(data) - place - 12)
        names.append(expected[len(names)])
        sections.append(data[place + 8 : place + 8 + size])
        place += 12 + size
    return _joined(names, sections)


@cache
def _names_in_order() -> tuple[str, ...]:
    packed = {name for name in _model("entropy").factors}
    return ("", *(layer.name for layer in _graph().layers if layer.name in packed or layer.blobs))


def _fixed(originals: Sequence[bytes], folder: Path) -> Sequence[bytes]:
    return originals


def _read_with(load: Any, path: Path) -> None:
    load(path, capabilities(_graph()))


_JSON = (*TEXT, *[change_json] * 8)

PARSERS = [
    Parser("npz", ".npz", _npz_originals, _read_npz, ZIP),
    Parser("picture", ".png", _picture_originals, lambda path: decode_picture(path, 3, path), [change_png] * 6),
    Parser("picture of pycaffe", ".png", _picture_originals, load_image, [change_png] * 6, expected=(OSError,)),
    Parser("label file", ".txt", _label_originals, _read_labels, TEXT),
    Parser("VOC XML", ".xml", partial(_fixed, [_VOC.format(name).encode() for name in "ab"]), _read_voc, TEXT),
    Parser("COCO JSON", ".json", partial(_fixed, [json.dumps(_COCO).encode()] * 2), _read_coco, _JSON),
    Parser("datum", ".datum", _datum_originals, _read_datum),
    Parser("mean .binaryproto", ".binaryproto", _binaryproto_originals, partial(_read_mean, "")),
    Parser(
        "mean .npy",
        ".npy",
        lambda folder: [_npy_bytes(mean) for mean in _means(folder)],
        partial(_read_mean, ""),
        [change_npy] * 6,
    ),
    Parser(
        "mean .npz",
        ".npz",
        _npz_means,
        partial(_read_mean, ":m"),
        ZIP,
    ),
    Parser("study file", ".toml", partial(_fixed, _STUDIES), load_task, (*TEXT, *[change_toml] * 8)),
    Parser("record", ".txt", _record_originals, load_record, TEXT),
    Parser("config.json", ".json", _config_originals, partial(_read_with, load_config_json), _JSON),
    Parser("cfg", ".cfg", _cfg_originals, partial(_read_with, load_simplified), TEXT),
    Parser("mapping", ".json", _mapping_originals, partial(_read_with, load_marks), _JSON),
    Parser("nuq raw", ".nuq", _packed_originals, load_packed),
    Parser("nuq mended", ".nuq", _packed_originals, load_packed, [change_sections] * 12, mend=_mended),
]
