from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AMCTConfig(_message.Message):
    __slots__ = ("batch_num", "activation_offset", "joint_quant", "skip_layers", "skip_layer_types", "nuq_config", "common_config", "override_layer_types", "conv_calibration_config", "fc_calibration_config", "override_layer_configs", "do_fusion", "skip_fusion_layers")
    BATCH_NUM_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_OFFSET_FIELD_NUMBER: _ClassVar[int]
    JOINT_QUANT_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    NUQ_CONFIG_FIELD_NUMBER: _ClassVar[int]
    COMMON_CONFIG_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    CONV_CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    FC_CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_CONFIGS_FIELD_NUMBER: _ClassVar[int]
    DO_FUSION_FIELD_NUMBER: _ClassVar[int]
    SKIP_FUSION_LAYERS_FIELD_NUMBER: _ClassVar[int]
    batch_num: int
    activation_offset: bool
    joint_quant: bool
    skip_layers: _containers.RepeatedScalarFieldContainer[str]
    skip_layer_types: _containers.RepeatedScalarFieldContainer[str]
    nuq_config: NuqConfig
    common_config: CalibrationConfig
    override_layer_types: _containers.RepeatedCompositeFieldContainer[OverrideLayerType]
    conv_calibration_config: CalibrationConfig
    fc_calibration_config: CalibrationConfig
    override_layer_configs: _containers.RepeatedCompositeFieldContainer[OverrideLayer]
    do_fusion: bool
    skip_fusion_layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, batch_num: _Optional[int] = ..., activation_offset: bool = ..., joint_quant: bool = ..., skip_layers: _Optional[_Iterable[str]] = ..., skip_layer_types: _Optional[_Iterable[str]] = ..., nuq_config: _Optional[_Union[NuqConfig, _Mapping]] = ..., common_config: _Optional[_Union[CalibrationConfig, _Mapping]] = ..., override_layer_types: _Optional[_Iterable[_Union[OverrideLayerType, _Mapping]]] = ..., conv_calibration_config: _Optional[_Union[CalibrationConfig, _Mapping]] = ..., fc_calibration_config: _Optional[_Union[CalibrationConfig, _Mapping]] = ..., override_layer_configs: _Optional[_Iterable[_Union[OverrideLayer, _Mapping]]] = ..., do_fusion: bool = ..., skip_fusion_layers: _Optional[_Iterable[str]] = ...) -> None: ...

class NuqConfig(_message.Message):
    __slots__ = ("mapping_file", "nuq_quantize", "chip", "codec", "marks")
    MAPPING_FILE_FIELD_NUMBER: _ClassVar[int]
    NUQ_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    CHIP_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    mapping_file: str
    nuq_quantize: NUQuantize
    chip: str
    codec: str
    marks: str
    def __init__(self, mapping_file: _Optional[str] = ..., nuq_quantize: _Optional[_Union[NUQuantize, _Mapping]] = ..., chip: _Optional[str] = ..., codec: _Optional[str] = ..., marks: _Optional[str] = ...) -> None: ...

class OverrideLayerType(_message.Message):
    __slots__ = ("layer_type", "calibration_config")
    LAYER_TYPE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_type: str
    calibration_config: CalibrationConfig
    def __init__(self, layer_type: _Optional[str] = ..., calibration_config: _Optional[_Union[CalibrationConfig, _Mapping]] = ...) -> None: ...

class OverrideLayer(_message.Message):
    __slots__ = ("layer_name", "calibration_config")
    LAYER_NAME_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_name: str
    calibration_config: CalibrationConfig
    def __init__(self, layer_name: _Optional[str] = ..., calibration_config: _Optional[_Union[CalibrationConfig, _Mapping]] = ...) -> None: ...

class CalibrationConfig(_message.Message):
    __slots__ = ("arq_quantize", "nuq_quantize", "ifmr_quantize", "hfmg_quantize")
    ARQ_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    NUQ_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    IFMR_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    HFMG_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    arq_quantize: ARQuantize
    nuq_quantize: NUQuantize
    ifmr_quantize: FMRQuantize
    hfmg_quantize: HFMGQuantize
    def __init__(self, arq_quantize: _Optional[_Union[ARQuantize, _Mapping]] = ..., nuq_quantize: _Optional[_Union[NUQuantize, _Mapping]] = ..., ifmr_quantize: _Optional[_Union[FMRQuantize, _Mapping]] = ..., hfmg_quantize: _Optional[_Union[HFMGQuantize, _Mapping]] = ...) -> None: ...

class ARQuantize(_message.Message):
    __slots__ = ("channel_wise", "quant_bits")
    CHANNEL_WISE_FIELD_NUMBER: _ClassVar[int]
    QUANT_BITS_FIELD_NUMBER: _ClassVar[int]
    channel_wise: bool
    quant_bits: int
    def __init__(self, channel_wise: bool = ..., quant_bits: _Optional[int] = ...) -> None: ...

class NUQuantize(_message.Message):
    __slots__ = ("num_steps", "num_of_iteration")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_OF_ITERATION_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    num_of_iteration: int
    def __init__(self, num_steps: _Optional[int] = ..., num_of_iteration: _Optional[int] = ...) -> None: ...

class FMRQuantize(_message.Message):
    __slots__ = ("search_range_start", "search_range_end", "search_step", "max_percentile", "min_percentile", "asymmetric")
    SEARCH_RANGE_START_FIELD_NUMBER: _ClassVar[int]
    SEARCH_RANGE_END_FIELD_NUMBER: _ClassVar[int]
    SEARCH_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    MIN_PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ASYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    search_range_start: float
    search_range_end: float
    search_step: float
    max_percentile: float
    min_percentile: float
    asymmetric: bool
    def __init__(self, search_range_start: _Optional[float] = ..., search_range_end: _Optional[float] = ..., search_step: _Optional[float] = ..., max_percentile: _Optional[float] = ..., min_percentile: _Optional[float] = ..., asymmetric: bool = ...) -> None: ...

class HFMGQuantize(_message.Message):
    __slots__ = ("num_of_bins", "asymmetric")
    NUM_OF_BINS_FIELD_NUMBER: _ClassVar[int]
    ASYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    num_of_bins: int
    asymmetric: bool
    def __init__(self, num_of_bins: _Optional[int] = ..., asymmetric: bool = ...) -> None: ...
