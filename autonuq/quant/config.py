"""What a quantization run is asked to do, as plain frozen data.

Native study files and AMCT's ``config.json`` both end up here; the numbers and their allowed ranges have
this one owner (AMCT manual-tuning pages: `settings/config_json.py` says how each maps to a JSON key).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ActivationSettings:
    """How the range of one layer's input is found.

    Attributes
    ----------
    algorithm : {"ifmr", "hfmg"}
    max_percentile, min_percentile : float in (0.5, 1]
        IFMR: which order statistics bound the range before the search.
    search_start, search_end, search_step : float
        IFMR: factors on the upper bound that are tried.
    num_of_bins : {1024, 2048, 4096, 8192}
        HFMG: histogram resolution.
    asymmetric : bool or None
        Overrides `QuantizationConfig.activation_offset` for this layer when not None.
    """

    algorithm: Literal["ifmr", "hfmg"] = "ifmr"
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_start: float = 0.7
    search_end: float = 1.3
    search_step: float = 0.01
    num_of_bins: int = 4096
    asymmetric: bool | None = None


AMCT_LEVELS = (32, 16)
"""What AMCT's NUQ can keep of the 256 steps."""


@dataclass(frozen=True)
class WeightSettings:
    """How one layer's weights become int8 codes.

    Attributes
    ----------
    algorithm : {"arq", "nuq"}
        Uniform int8 steps, or a codebook chosen among them.
    channel_wise : bool
        One scale per output channel (Convolution, Deconvolution) or one for the layer.
    num_steps : {16, 32}
        NUQ: AMCT's number of levels. A search chooses its own unless it is limited to AMCT's.
    num_of_iteration : int in 0..5
        NUQ: AMCT's number of refinement rounds.
    """

    algorithm: Literal["arq", "nuq"] = "arq"
    channel_wise: bool = True
    num_steps: int = 32
    num_of_iteration: int = 1


@dataclass(frozen=True)
class LayerSettings:
    """Settings of one quantized layer."""

    activation: ActivationSettings = field(default_factory=ActivationSettings)
    weights: WeightSettings = field(default_factory=WeightSettings)


@dataclass(frozen=True)
class Target:
    """Where the weights will lie, as far as somebody said so: what their bytes are counted with.

    Attributes
    ----------
    codec : str
        Out of `quant.codecs.CODEC_NAMES`; empty: see `codec_name`.
    chip : str
        Key of `quant.atc.chips.DDR_RATES`; empty without one.
    marks : str
        Out of `quant.atc.chips.MARKS`: which layers the chip's compiler compresses; empty: see `marking`.
    marked : tuple of str or None
        Layers that the compiler marks, from a file that it wrote; None: they are predicted.
    """

    codec: str = ""
    chip: str = ""
    marks: str = ""
    marked: tuple[str, ...] | None = None

    @property
    def codec_name(self) -> str:
        """The codec: what the chip reads, `entropy` without one, unless it is named."""
        return self.codec or ("ascend" if self.chip else "entropy")

    @property
    def marking(self) -> str:
        """Which layers are compressed: those that the compiler marks, unless it is said.

        AMCT, too, gives codebooks to marked layers only. With a list of layers (`--compress_weight_conf`) the published
        compiler sets its attribute on any layer there, but whether the part that is not published then compresses one
        without a mark is unknown; such a layer's weights load faster than they are used, so nothing would run faster.
        """
        return self.marks or "compiler"

    def over(self, other: Target) -> Target:
        """Return what is said here, and for the rest what is said there; marks of one chip are not another's."""
        shared = other.marked if self.chip in ("", other.chip) else None
        return Target(
            self.codec or other.codec,
            self.chip or other.chip,
            self.marks or other.marks,
            shared if self.marked is None else self.marked,
        )

    def say(self) -> str:
        """Put it into words, the same for the same bytes."""
        return f"{self.codec_name} on {self.chip}, {self.say_marks()}" if self.chip else self.codec_name

    def say_marks(self) -> str:
        """Say which layers the chip's compiler compresses."""
        if self.marking == "all":
            return "its compiler compresses all layers"
        return f"its compiler compresses the layers that {'it' if self.marked is None else 'a file of its own'} marks"


NO_TARGET = Target()
"""Nobody said anything."""


@dataclass(frozen=True)
class QuantizationConfig:
    """Settings of a whole network.

    Attributes
    ----------
    layers : mapping of str to LayerSettings
        Layers that are quantized, by name, in network order; every other layer stays float.
    batch_num : int > 0
        Forward passes of the calibration.
    activation_offset : bool
        True: asymmetric activations (an offset); False: symmetric.
    joint_quant : bool
        Layers whose outputs meet in one Eltwise share their activation scale.
    do_fusion : bool
        Fold BatchNorm and Scale into the layer before them.
    skip_fusion_layers : tuple of str
        Layers that are left unfolded.
    amct_levels : bool
        True: a search gives a layer AMCT's numbers of levels, or leaves it uniform; False: any number.
    target : Target
        What bytes are counted with.
    """

    layers: Mapping[str, LayerSettings]
    batch_num: int = 1
    activation_offset: bool = True
    joint_quant: bool = False
    do_fusion: bool = True
    skip_fusion_layers: tuple[str, ...] = ()
    amct_levels: bool = False
    target: Target = NO_TARGET
