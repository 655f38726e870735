"""The order in which ATC's compressor ranks byte values: by count, ties as its unstable sort leaves them.

The ranking decides every code, and values that never occur are written into the headers in that order, so the sort
itself has to be reproduced. It is the introsort that GNU's C++ library uses: quicksort with the median of three moved
to the front, heap sort where the recursion gets too deep, ranges of up to 16 left to one insertion sort at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES = 256

_SHORT = 16  # ranges that the final insertion sort is left with


def rank_bytes(counts: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the byte values from the most frequent to the rarest.

    Parameters
    ----------
    counts : ndarray of int, shape (256,)
        Count of each unsigned byte value.

    Returns
    -------
    ndarray of uint8, shape (256,)

    Notes
    -----
    **Cost**: a millisecond, some 3,000 comparisons in Python, whatever was counted.
    **Source**: Musser, Software: Practice and Experience 27(8), 1997 (introsort); the order of swaps as observed.
    """
    items = [(int(count), value) for value, count in enumerate(counts)]
    _introsort(items, 0, len(items), 2 * (len(items).bit_length() - 1))
    _insertion_sort(items)
    return np.array([value for _, value in items], dtype=np.uint8)


_Items = list[tuple[int, int]]


def _introsort(items: _Items, first: int, last: int, depth: int) -> None:
    while last - first > _SHORT:
        if depth == 0:
            _heap_sort(items, first, last)
            return
        depth -= 1
        middle = _median(items, first + 1, first + (last - first) // 2, last - 1)
        items[first], items[middle] = items[middle], items[first]
        cut = _partition(items, first, last)
        _introsort(items, cut, last, depth)
        last = cut


def _median(items: _Items, x: int, y: int, z: int) -> int:
    """Return the index of the middle one of three."""
    a, b, c = items[x][0], items[y][0], items[z][0]
    if a > b:
        return y if b > c else z if a > c else x
    return x if a > c else z if b > c else y


def _partition(items: _Items, first: int, last: int) -> int:
    """Split what follows the pivot in `first`; the median of three keeps both ends from running away."""
    pivot = items[first][0]
    low, high = first + 1, last - 1
    while True:
        while items[low][0] > pivot:
            low += 1
        while pivot > items[high][0]:
            high -= 1
        if low >= high:
            return low
        items[low], items[high] = items[high], items[low]
        low += 1
        high -= 1


def _heap_sort(items: _Items, first: int, last: int) -> None:
    """Sort a range by way of a heap with the rarest at the top."""
    heap = items[first:last]
    for parent in range(len(heap) // 2 - 1, -1, -1):
        _sift(heap, parent, len(heap), heap[parent])
    for size in range(len(heap) - 1, 0, -1):
        value = heap[size]
        heap[size] = heap[0]
        _sift(heap, 0, size, value)
    items[first:last] = heap


def _sift(heap: _Items, hole: int, size: int, value: tuple[int, int]) -> None:
    """Let a hole sink to a leaf along the rarer children, then the value rise from there."""
    top = hole
    while (child := 2 * hole + 2) < size:
        if heap[child][0] > heap[child - 1][0]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if child == size:  # a last parent with one child
        heap[hole] = heap[child - 1]
        hole = child - 1
    while hole > top and heap[parent := (hole - 1) // 2][0] > value[0]:
        heap[hole] = heap[parent]
        hole = parent
    heap[hole] = value


def _insertion_sort(items: _Items) -> None:
    for place in range(1, len(items)):
        value = items[place]
        if place < _SHORT and value[0] > items[0][0]:
            items[: place + 1] = [value, *items[:place]]
            continue
        while value[0] > items[place - 1][0]:
            items[place] = items[place - 1]
            place -= 1
        items[place] = value
