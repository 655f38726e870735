"""ATC's weight compressor to the byte: its format, the device's layouts, the chips and what they mark and keep."""

from autonuq.quant.atc.compressor import Compressed, StreamFormat, compress, compressed_bytes, decompress, find_index
from autonuq.quant.atc.layout import device_layout

__all__ = ["Compressed", "StreamFormat", "compress", "compressed_bytes", "decompress", "device_layout", "find_index"]
