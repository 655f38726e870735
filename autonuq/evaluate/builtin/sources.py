"""Images: arrays in an `.npz`, a folder of pictures, a Caffe LMDB; with the number of a class for each, or without.

Every source gives its images in a fixed order as arrays (height, width, channels).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from autonuq.array_files import load_arrays
from autonuq.errors import EvaluatorError
from autonuq.graph.datum import Datum, parse_datum
from autonuq.pycaffe.pictures import decode
from autonuq.reading import reading

Order = Literal["RGB", "BGR"]
_DECODERS = 4  # threads that decode pictures; Pillow works outside the interpreter's lock
_CHUNK_BYTES = 1 << 20
_LMDB_FILE = "data.mdb"
_DIGESTED_BYTES, _DIGESTED = 64 << 20, 1024  # of pictures or records, if there are more
_PIECES = 4  # of one that is larger than its share
_LABEL_DIGITS = 9  # Caffe's labels have 32 bits
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class DataSettings:
    """Where images are.

    Attributes
    ----------
    kind : {"npz", "folder", "lmdb"}
    path : Path
    images, labels : str
        npz: names of the arrays. folder: `labels` is the label file, lines of `picture label`, or the folder of masks.
        Only kinds with labels look at them.
    layout : {"NHWC", "NCHW"} or None
        Of an npz's images; None: told from the number of channels.
    start : int
        Images to pass over.
    count : int or None
        Images to use; None: all the others.
    """

    kind: Literal["npz", "folder", "lmdb"]
    path: Path
    images: str = "images"
    labels: str = "labels"
    layout: str | None = None
    start: int = 0
    count: int | None = None

    def overlaps(self, other: DataSettings) -> bool:
        """Say whether two settings of one source have an image in common."""
        last = [math.inf if one.count is None else one.start + one.count for one in (self, other)]
        return self.start < last[1] and other.start < last[0]

    @property
    def span(self) -> slice:
        """The images that are used."""
        return slice(self.start, None if self.count is None else self.start + self.count)


class Images(Protocol):
    """What every source offers."""

    labels: NDArray[np.int64]
    """One for each image where they were loaded; otherwise none."""
    order: Order
    """Of the colours that `read` gives."""
    wanted: Order
    """The order that a network takes if nobody says otherwise."""
    file: Path
    """What says which images there are."""

    @property
    def names(self) -> list[str]:
        """Of each image: its picture's path in the folder without suffix, its record's key, or its number."""

    def keep(self, places: NDArray[np.int64]) -> None:
        """Forget all images but those at these places, before anything is loaded."""

    def load(self) -> None:
        """Load the labels of the images, where it was opened for that, and see that what it needs is there."""

    def read(self, start: int, stop: int, channels: int) -> Sequence[NDArray[Any]]:
        """Return images as uint8 or float32 arrays of shape (height, width, channels)."""

    def digest(self) -> str:
        """Return what changes with the data, but not with where they lie."""

    def parts(self) -> dict[str, str]:
        """Return a digest of the content of each file or folder, by its name."""


Part = Literal["all", "search", "held back"]

HELD_EVERY = 4
"""One image of so many is held back from the search, interleaved."""
LEAST_HELD = 500
"""Where fewer would be held back, none is: they could tell nothing."""


def part_of(count: int, part: Part) -> NDArray[np.int64]:
    """Return which of `count` images belong to a part, in order: the same ones each time."""
    places = np.arange(count, dtype=np.int64)
    held = places % HELD_EVERY == HELD_EVERY - 1
    if part == "all" or held.sum() < LEAST_HELD:
        return places[:0] if part == "held back" else places
    return np.asarray(places[held if part == "held back" else ~held])


def open_images(
    settings: DataSettings, part: Part = "all", *, labelled: bool = True, names: Container[str] | None = None
) -> Images:
    """Open a source, or a part of it.

    Parameters
    ----------
    settings : DataSettings
    part : {"all", "search", "held back"}
        Of the images that the settings name.
    labelled : bool
        Whether each has the number of a class.
    names : container of str, optional
        Only images that are called so count.

    Raises
    ------
    EvaluatorError
        It cannot be read, lacks something, or has no image in the span that the settings ask for.
    """
    kinds: dict[str, type[NpzImages] | type[FolderImages] | type[LmdbImages]]
    kinds = {"npz": NpzImages, "folder": FolderImages, "lmdb": LmdbImages}
    source = kinds[settings.kind](settings, labelled)
    places = [place for place, name in enumerate(source.names) if names is None or name in names][settings.span]
    if not places or (settings.count is not None and len(places) < settings.count):
        wanted = "one" if settings.count is None else f"{settings.count} images"
        have = f"there are {len(places)} from number {settings.start} on"
        raise EvaluatorError(f"data must hold at least {wanted}; {have}", path=source.file)
    source.keep(np.array(places, np.int64)[part_of(len(places), part)])
    source.load()
    return source


class NpzImages:
    """Arrays of images (N, H, W), (N, H, W, C) or (N, C, H, W), and of labels (N,)."""

    order: Order = "RGB"
    wanted: Order = "RGB"  # arrays are taken as they are

    def __init__(self, settings: DataSettings, labelled: bool) -> None:
        self._settings, self.file = settings, settings.path
        wanted = (settings.images, settings.labels) if labelled else (settings.images,)
        arrays = load_arrays(settings.path, wanted, EvaluatorError)
        self._images = arrays[settings.images]
        if self._images.ndim not in (3, 4) or self._images.dtype.kind not in "uif":
            raise self._error(
                f"'{settings.images}' must hold numbers of shape (N, H, W), (N, H, W, C) or (N, C, H, W). "
                f"Got {self._images.dtype} of shape {self._images.shape} instead."
            )
        self.labels = self._labels(arrays[settings.labels]) if labelled else np.empty(0, np.int64)
        self._kept = np.arange(len(self._images))

    def _labels(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        if labels.shape != (len(self._images),) or labels.dtype.kind not in "ui":
            raise self._error(
                f"'{self._settings.labels}' must hold one whole number for each of {len(self._images)} images. "
                f"Got {labels.dtype} of shape {labels.shape} instead."
            )
        return labels.astype(np.int64)

    @property
    def names(self) -> list[str]:
        """See `Images`."""
        return list(map(str, self._kept.tolist()))

    def keep(self, places: NDArray[np.int64]) -> None:
        """See `Images`."""
        self._kept = places
        self.labels = self.labels[places] if len(self.labels) else self.labels

    def load(self) -> None:
        """See `Images`; they are there already."""

    def read(self, start: int, stop: int, channels: int) -> Sequence[NDArray[Any]]:
        """See `Images`."""
        images = self._images[self._kept[start:stop]]
        if images.ndim == 3:
            images = images[..., np.newaxis]
        elif self._layout(channels) == "NCHW":
            images = images.transpose(0, 2, 3, 1)
        if images.shape[-1] != channels:
            raise self._error(f"its images have {images.shape[-1]} channels, the network takes {channels}")
        kept = images if images.dtype == np.uint8 else images.astype(np.float32)
        return list(kept)

    def _layout(self, channels: int) -> str:
        first, last = self._images.shape[1] == channels, self._images.shape[-1] == channels
        if self._settings.layout is None and first and last:
            raise self._error(f"shape {self._images.shape} may be NCHW or NHWC; say which with 'layout'")
        return self._settings.layout or ("NCHW" if first else "NHWC")

    def digest(self) -> str:
        """Digest the file."""
        digest = hashlib.sha256(repr(self._settings.span).encode())
        with self._settings.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def parts(self) -> dict[str, str]:
        """See `Images`."""
        return {self._settings.path.name: self.digest()}

    def _error(self, message: str) -> EvaluatorError:
        return EvaluatorError(message, path=self._settings.path)


class FolderImages:
    """Pictures in a folder: those that a text file names with their labels, or without labels all below it."""

    order: Order = "RGB"
    wanted: Order = "BGR"  # as Caffe, which reads pictures with OpenCV

    def __init__(self, settings: DataSettings, labelled: bool) -> None:
        self._folder = settings.path
        self.file = Path(settings.labels) if labelled else settings.path
        entries = list(self._entries(self.file) if labelled else self._pictures())
        self._files = [name for name, _ in entries]
        self.labels = np.array([label for _, label in entries if label is not None], np.int64)

    @property
    def names(self) -> list[str]:
        """See `Images`."""
        return [name.removesuffix(PurePosixPath(name).suffix) for name in self._files]

    def keep(self, places: NDArray[np.int64]) -> None:
        """See `Images`."""
        self._files = [self._files[place] for place in places]
        self.labels = self.labels[places] if len(self.labels) else self.labels

    def load(self) -> None:
        """See `Images`."""
        with reading(self.file, EvaluatorError, "names what can be no file", what="label file"):
            missing = next((name for name in self._files if not (self._folder / name).is_file()), None)
        if missing is not None:
            raise EvaluatorError(f"picture '{missing}' of {self.file} is not there", path=self._folder)

    def _pictures(self) -> Iterator[tuple[str, None]]:
        """Yield the pictures of the folder and of those in it, in the order of their names."""
        with reading(self._folder, EvaluatorError, "cannot be read", what="folder of pictures"):
            if not self._folder.is_dir():
                raise EvaluatorError("folder of pictures not found", path=self._folder)
            found = [
                path.relative_to(self._folder).as_posix()
                for path in self._folder.rglob("*")
                if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
            ]
        if not found:
            raise EvaluatorError(f"holds no picture ({', '.join(PICTURE_SUFFIXES)})", path=self._folder)
        yield from ((name, None) for name in sorted(found))

    def _entries(self, file: Path) -> Iterator[tuple[str, int]]:
        with reading(file, EvaluatorError, "is no text", what="label file"):
            lines = file.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            name, _, label = line.strip().rpartition(" ")
            if name and label.isdecimal() and len(label) <= _LABEL_DIGITS:
                yield name.strip(), int(label)
            elif line.strip():
                raise EvaluatorError(f"line {number} must read 'picture label'. Got '{line}' instead.", path=file)

    def read(self, start: int, stop: int, channels: int) -> Sequence[NDArray[Any]]:
        """See `Images`."""
        paths = [self._folder / name for name in self._files[start:stop]]
        with ThreadPoolExecutor(_DECODERS) as pool:
            return list(pool.map(lambda path: decode_picture(path, channels, path), paths))

    def digest(self) -> str:
        """Digest the names, sizes and labels of the pictures; they are too many to read."""
        digest = hashlib.sha256()
        for name, label in self._lines():
            digest.update(f"{name}{label} {(self._folder / name).stat().st_size}\n".encode())
        return digest.hexdigest()

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield each picture and what stands behind its name."""
        labels = [f" {label}" for label in self.labels.tolist()] or [""] * len(self._files)
        yield from zip(self._files, labels, strict=True)

    def parts(self) -> dict[str, str]:
        """See `Images`."""
        paths = [self._folder / name for name in self._files]
        lines = "".join(f"{name}{label}\n" for name, label in self._lines())
        listed = {self.file.name: hashlib.sha256(lines.encode()).hexdigest()} if len(self.labels) else {}
        content = sampled_digest([path.stat().st_size for path in paths], lambda n: _BytesOf(paths[n]))
        return listed | {self._folder.name: content}


class _BytesOf:
    """The bytes of a file, read where they are looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, places: slice) -> bytes:
        with self._path.open("rb") as file:
            file.seek(places.start)
            return file.read(places.stop - places.start)


def sampled_digest(sizes: Sequence[int], content: Callable[[int], Any]) -> str:
    """Digest the sizes of many things, and their contents: of all, or, where these are too many bytes, of a sample.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each.
    content : callable
        Its number -> what gives bytes for a slice.

    Notes
    -----
    The sample is spread evenly over the things, and over each that is large, the same one each time.
    **Cost**: `_DIGESTED_BYTES` and `_DIGESTED` reads at most, however many there are.
    """
    digest = hashlib.sha256(np.array(sizes, "<i8").tobytes())
    places = np.arange(len(sizes))
    each = max([*sizes, 1])
    if sum(sizes) > _DIGESTED_BYTES:
        places = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), _DIGESTED)).astype(int))
        each = _DIGESTED_BYTES // len(places)
    for place in places.tolist():
        own, pieces = content(place), 1 if sizes[place] <= each else _PIECES
        length = min(sizes[place], each) // pieces
        for start in np.linspace(0, sizes[place] - length, pieces).astype(int).tolist():
            digest.update(own[start : start + length])
    return digest.hexdigest()


def decode_picture(file: Path | io.BytesIO, channels: int, path: Path) -> NDArray[np.uint8]:
    """Decode a picture to (height, width, 1 or 3), RGB; `path` is for messages."""
    if channels not in (1, 3):
        raise EvaluatorError(f"pictures have 1 or 3 channels, the network takes {channels}", path=path)
    with reading(path, EvaluatorError, "cannot be read", what="picture"):
        pixels = np.asarray(decode(file, "L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


class LmdbImages:
    """The records of a database that Caffe's `convert_imageset` or one like it wrote, in the order of their keys."""

    order: Order = "BGR"
    wanted: Order = "BGR"

    def __init__(self, settings: DataSettings, labelled: bool) -> None:
        self._path = self.file = settings.path
        self._labelled = labelled
        self.labels = np.empty(0, np.int64)
        try:
            self._lmdb = importlib.import_module("lmdb")
        except ImportError as error:
            raise EvaluatorError("reading an LMDB needs a package: pip install 'autonuq[lmdb]'") from error
        with self._transaction() as transaction:
            self._records = transaction.stat()["entries"]
            self._keys = list(map(bytes, transaction.cursor().iternext(values=False)))

    @property
    def names(self) -> list[str]:
        """See `Images`."""
        return [key.decode(errors="replace") for key in self._keys]

    def keep(self, places: NDArray[np.int64]) -> None:
        """See `Images`."""
        self._keys = [self._keys[place] for place in places]

    def load(self) -> None:
        """See `Images`."""
        if self._labelled:
            with self._transaction() as transaction:
                labels = [self._datum(key, transaction.get(key)).label for key in self._keys]
            self.labels = np.array(labels, np.int64)

    @contextmanager
    def _transaction(self, *, buffers: bool = False) -> Iterator[Any]:
        """Open the database for a moment: a handle must not be carried into another process."""
        with reading(self._path, EvaluatorError, "is no LMDB that can be read"):
            environment = self._lmdb.open(
                str(self._path), readonly=True, lock=False, create=False, subdir=self._path.is_dir()
            )
            with environment:
                self._check_size(environment)
                with environment.begin(buffers=buffers) as transaction:
                    yield transaction

    def _check_size(self, environment: Any) -> None:
        """Refuse a database that says it has more pages than its file: to read one that is not there is a SIGBUS."""
        file = self._path / _LMDB_FILE if self._path.is_dir() else self._path
        pages, held = environment.info()["last_pgno"] + 1, file.stat().st_size // environment.stat()["psize"]
        if pages > held:
            raise EvaluatorError(f"is truncated: it has {held:,} of {pages:,} pages", path=self._path)

    def _datum(self, key: bytes, value: bytes) -> Datum:
        return parse_datum(bytes(value), key.decode(errors="replace"), self._path)

    def read(self, start: int, stop: int, channels: int) -> Sequence[NDArray[Any]]:
        """See `Images`."""
        keys = self._keys[start:stop]
        with self._transaction() as transaction:
            data = [self._datum(key, transaction.get(key)) for key in keys]
        return [self._pixels(datum, channels) for datum in data]

    def _pixels(self, datum: Datum, channels: int) -> NDArray[Any]:
        if datum.values is None:
            return decode_picture(io.BytesIO(datum.encoded), channels, self._path)[..., ::-1]
        if len(datum.values) != channels:
            raise EvaluatorError(
                f"its images have {len(datum.values)} channels, the network takes {channels}", path=self._path
            )
        return datum.values.transpose(1, 2, 0)

    def digest(self) -> str:
        """Digest the keys and labels, and the size of the database; the pixels are too many to read."""
        digest = hashlib.sha256(f"{self._records}\n".encode() + b"\n".join(self._keys))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def parts(self) -> dict[str, str]:
        """See `Images`."""
        with self._transaction(buffers=True) as transaction:
            sizes = [len(transaction.get(key)) for key in self._keys]
            return {self._path.name: sampled_digest(sizes, lambda number: transaction.get(self._keys[number]))}
