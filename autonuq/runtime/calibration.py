"""What the calibration layers of a modified model do: watch their bottoms, then write a range to the record file.

Source: AMCT's IFMR layer (no tops; `batch_num` passes are collected, then one calibration; later passes do nothing).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autonuq.errors import QuantizationError
from autonuq.graph.model import Array, Layer
from autonuq.graph.record import Factors, load_record, write_record
from autonuq.quant.activation import ActivationRange, HfmgHistogram
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream
from autonuq.runtime.moments import MomentObserver, are_requested, is_observable, moments_file
from autonuq.runtime.samples import samples_folder, store_sample

_log = logging.getLogger("autonuq.calibration")

OBSERVER_TYPES = frozenset({"IFMR", "HFMG"})


class Observer:
    """State of one calibration layer over the forward passes.

    Parameters
    ----------
    layer : Layer
        Of type IFMR or HFMG. Neither keeps the values of its passes: memory does not grow with them.
    layers : mapping of str to Layer
        The network's, by name: where somebody asked for them, the second moments of the object layers' inputs are
        collected too, and samples of them.
    """

    def __init__(self, layer: Layer, layers: Mapping[str, Layer]) -> None:
        self.layer = layer
        self._parameters = layer.message.ifmr_param if layer.type == "IFMR" else layer.message.hfmg_param
        self._seen = _nothing_seen(layer)
        self._shapes: list[tuple[int, ...]] = []
        self._passes = 0
        self._moments: list[MomentObserver | None] = [None] * len(layer.bottoms)
        for index, name in enumerate(self._parameters.object_layer):
            if are_requested(self.record_file, name) and name in layers and is_observable(layers[name]):
                path = moments_file(self.record_file, name)
                self._moments[index] = MomentObserver(layers[name], path, self._parameters.batch_num)

    @property
    def finished(self) -> bool:
        """The range was found; nothing is observed any more."""
        return self._passes >= self._parameters.batch_num

    @property
    def record_file(self) -> Path:
        """Where the range goes."""
        return Path(self._parameters.record_file_path)

    def observe(self, bottoms: Sequence[Array]) -> dict[str, Factors] | None:
        """Take in one pass; on the last one return the input factors of each object layer.

        Raises
        ------
        QuantizationError
            The values are not finite, or there is not enough memory for what is kept of them.
        """
        self._passes += 1
        if self._passes == 1 and samples_folder(self.record_file).is_dir():
            for name, bottom in zip(self._parameters.object_layer, bottoms, strict=True):
                store_sample(self.record_file, name, bottom)
        self._shapes = [bottom.shape for bottom in bottoms]
        names = ", ".join(self._parameters.object_layer)
        try:
            for bottom, moments in zip(bottoms, self._moments, strict=True):
                self._seen.update(bottom)
                if moments is not None:
                    moments.observe(bottom)
            _log.debug("layer '%s': %d of %d passes are seen", names, self._passes, self._parameters.batch_num)
            if not self.finished:
                return None
            found = self._range()
        except MemoryError as error:
            rule = f"there is no memory to calibrate on inputs of shape {bottoms[0].shape}; use smaller batches"
            raise QuantizationError(rule, layer=names) from error
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=names) from error
        self._seen = _nothing_seen(self.layer)
        _log.info("layer '%s': calibrated, scale_d %g, offset_d %d", names, found.scale, found.offset)
        return {
            name: _input_factors(found, shape)
            for name, shape in zip(self._parameters.object_layer, self._shapes, strict=True)
        }

    def _range(self) -> ActivationRange:
        if isinstance(self._seen, HfmgHistogram):
            return self._seen.range(self._parameters.with_offset)
        message = self.layer.message.ifmr_param
        settings = ActivationSettings(
            max_percentile=message.max_percentile,
            min_percentile=message.min_percentile,
            search_start=message.search_range_start,
            search_end=message.search_range_end,
            search_step=message.search_step,
        )
        return ifmr(self._seen, settings=settings, with_offset=message.with_offset)


def _nothing_seen(layer: Layer) -> ValueStream | HfmgHistogram:
    return HfmgHistogram(layer.message.hfmg_param.num_of_bins) if layer.type == "HFMG" else ValueStream()


def _input_factors(found: ActivationRange, shape: tuple[int, ...]) -> Factors:
    channels, height, width = (*shape[1:], 1, 1, 1)[:3]
    return Factors(scale_d=found.scale, offset_d=found.offset, channels=channels, height=height, width=width)


def update_record(path: Path, found: Mapping[str, Factors]) -> None:
    """Put input factors into a record file, keeping what it holds about the weights; entries are added if absent."""
    records = load_record(path) if path.exists() else {}
    for name, factors in found.items():
        records[name] = replace(
            records.get(name, Factors()),
            scale_d=factors.scale_d,
            offset_d=factors.offset_d,
            channels=factors.channels,
            height=factors.height,
            width=factors.width,
        )
    write_record(path, records, clusters=True)
