"""Codebooks made for ATC's compressor against those of least error, and what its sizes cost in time.

    python studies/bench/atc.py --seed 0

A convolution of 512 x 512 x 3 x 3 random weights is quantized per channel. For codebooks of least error with k levels:
ATC's ratio, and what codebooks of at most so many levels that are made for it save at an error that is not larger.
Then the time of exact size, compressed data and estimate for 25 MB of weights, in units of `np.copy` of the same.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np

from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.atc.compressor import compress, compressed_bytes
from autonuq.quant.codebook import Codebook, build_codebook, build_codebooks, code_histogram

SHAPE = (512, 512, 3, 3)
TARGETS = [(32, (32, 36)), (16, (16, 22, 32, 36)), (12, (16, 32)), (8, (16, 32)), (6, (16, 32))]
SLOPES = 96
TIMED_BYTES = 25 << 20
CODES = np.arange(-128.0, 128.0)


def quantized(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=SHAPE) if kind == "Gauss" else rng.laplace(size=SHAPE)
    return np.rint(weights * 127 / np.abs(weights).max(axis=(1, 2, 3), keepdims=True)).astype(np.int8)


def distortion(codebook: Codebook, histogram: np.ndarray) -> float:
    return float(np.dot(histogram, (CODES - codebook.table) ** 2))


def designed(codes: np.ndarray, histogram: np.ndarray, plain: Codebook, limit: int) -> tuple[float, float, int]:
    """Return ratio, error by the plain codebook's, and levels of the smallest that is as good as the plain one."""
    codec = AscendCodec(codes.shape)
    allowed = distortion(plain, histogram)
    slopes = np.geomspace(0.2, 2, SLOPES) * allowed / codes.size
    found = codec.build_codebooks(histogram, slopes, max_levels=limit)
    books = [plain, *(book for book in found if distortion(book, histogram) <= allowed)]
    best = min(books, key=lambda book: codec.estimate_bytes(histogram_of(book, histogram)))
    size = codec.size_bytes(best.apply(codes))
    return size / codec.device_bytes, distortion(best, histogram) / allowed, len(best.levels)


def histogram_of(codebook: Codebook, histogram: np.ndarray) -> np.ndarray:
    return np.bincount(codebook.table.astype(np.int64) + 128, weights=histogram, minlength=256).astype(np.int64)


def print_savings(seed: int) -> None:
    print(
        f"{'weights':8} {'k-means':>8} {'ratio':>7} {'allowed':>8} {'levels':>7} {'ratio':>7} {'error':>6} {'saved':>7}"
    )
    for kind in ("Gauss", "Laplace"):
        codes = quantized(kind, seed)
        codec, histogram = AscendCodec(codes.shape), code_histogram(codes)
        family = build_codebooks(histogram, max_levels=32)
        for levels, limits in TARGETS:
            plain = family.codebook(levels)
            size = codec.size_bytes(plain.apply(codes)) / codec.device_bytes
            for limit in limits:
                ratio, error, kept = designed(codes, histogram, plain, limit)
                saved = 1 - ratio / size
                print(f"{kind:8} {levels:8} {size:7.4f} {limit:8} {kept:7} {ratio:7.4f} {error:6.3f} {saved:7.1%}")


def timed(work: Callable[[], object], times: int) -> float:
    """Return the least of several durations, in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def print_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print(f"\n{'25 MB of':24} {'work':>12} {'seconds':>9} {'np.copy':>8}")
    for levels in (16, 32, 256):
        codes = np.clip(np.rint(rng.standard_normal(TIMED_BYTES, np.float32) * 33), -128, 127).astype(np.int8)
        histogram = code_histogram(codes)
        codes = build_codebook(histogram, levels).apply(codes)
        codec, coarse = AscendCodec((TIMED_BYTES // 512, 512)), code_histogram(codes)
        copy_s = timed(lambda data=codes: np.copy(data), 5)
        works = {
            "exact size": (lambda data=codes: compressed_bytes(data, fractal_bytes=32768), 3),
            "compress": (lambda data=codes: compress(data, fractal_bytes=32768), 1),
            "estimate": (lambda counts=coarse, codec=codec: codec.estimate_bytes(counts), 20),
        }
        for name, (work, times) in works.items():
            spent_s = timed(work, times)
            print(f"{f'{levels} Gaussian levels':24} {name:>12} {spent_s:9.5f} {spent_s / copy_s:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, seed {seed}\n")
    print_savings(seed)
    print_times(seed)


if __name__ == "__main__":
    main()
