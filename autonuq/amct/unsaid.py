"""What AMCT's public pages leave unsaid, and what autonuq does there.

An interface can be rebuilt from its documents only as far as they go. Where they stop, a choice had to be
made; each is listed in `CHOICES` with its grounds, so that a user can tell documented behaviour from ours,
and so that a better source can replace a choice in one place. Two kinds of ground occur: *inferred* (a sample
file, a shipped script or published code of a sister tool points that way) and *free* (nothing points
anywhere).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Choice:
    """One point that is not documented.

    Attributes
    ----------
    ground : {"inferred", "free"}
        Whether something public points to the choice.
    chosen : str
        What autonuq does.
    because : str
        Why.
    """

    ground: Literal["inferred", "free"]
    chosen: str
    because: str


CHOICES: Mapping[str, Choice] = MappingProxyType(
    {
        "meaning of num_of_iteration": Choice(
            "free",
            "Static NUQ keeps num_steps levels; num_of_iteration is checked and changes nothing, because each "
            "codebook is optimal without iterating. auto_nuq is not bound by either: the search chooses every "
            "layer's number of levels; with amct_levels=True among 32, 16 and uniform steps.",
            "The search algorithm is not published, and its aim is the smallest network that satisfies.",
        ),
        "search for the codebook": Choice(
            "free",
            "An exact dynamic program over the 256 int8 steps.",
            "Only the aim is published: keep num_steps of the 256 steps at the least loss.",
        ),
        "scale granularity under NUQ": Choice(
            "inferred",
            "As ARQ has it: one scale per output channel for Convolution, one for InnerProduct; one "
            "codebook per layer, in int8 steps.",
            "NUQ starts from the uniform int8 weights, and the deploy model must keep its dequantization layers.",
        ),
        "order of codebook and calibration in static NUQ": Choice(
            "inferred",
            "quantize_model restricts the weights of the modified model by the weights alone, as AMCT must. Where our "
            "runtime does the forward passes, it also leaves the second moments of those layers' inputs in a folder "
            "beside the record file, and save_model chooses the levels anew and rounds with error feedback; where "
            "another Caffe does them, save_model writes the modified model's weights. convert_model has a cluster at "
            "most, and moves each weight to the nearest of its steps.",
            "Weights are quantized before any data is seen; feedback makes the same file size lose far less.",
        ),
        "cluster in the record": Choice(
            "free",
            "A field of our own number, 20, for the kept int8 steps in ascending order, filled up to 16 or 32 with "
            "the unused steps nearest to 0. The record file that a user names never has it, because a strict reader of "
            "the public record refuses an unknown field; static NUQ writes a second one, <prefix>_cluster_record.txt, "
            "which convert_model takes.",
            "The public record has no such field; sister code reads 16 or 32 int8 values, in no stated order.",
        ),
        "files of save_model": Choice(
            "free",
            "Static quantization writes _nuq_layer_record.txt, too, empty where no layer has a codebook.",
            "ATC wants the list whichever way the codebooks were made.",
        ),
        "nuq_config without a mapping file": Choice(
            "free",
            "The field chip of our own stands in its place: the marks are predicted from shapes by ATC's published "
            "rule. With both, the file counts and the differences are shown.",
            "A mapping file needs a uniformly quantized deploy model, ATC and its chip first.",
        ),
        "unmarked layers in --compress_weight_conf": Choice(
            "inferred",
            "A study for a chip counts int8 for layers that its compiler does not mark, and does not search them, by "
            'default or with marks = "compiler"; with "all" every layer without groups counts as compressed, as with '
            "--enable_compress_weight. The layer list names what is to be compressed.",
            "AMCT gives codebooks to marked layers only. The published compiler takes any layer of the list; whether "
            "the part that is not published compresses one without a mark is unknown, and it would run no faster: it "
            "loads sooner than it is used.",
        ),
        "nuq_quantize on an unmarked layer": Choice(
            "inferred",
            "Static calls give it a codebook and list it; a study for a chip leaves it int8, and says why.",
            "The list is of NUQ layers, and a study counts what the chip loads.",
        ),
        "fully connected layers in the prediction": Choice(
            "inferred",
            "nuq_config.chip marks convolutions only; override_layer_configs adds others.",
            "The published mapping file leaves fc1000 unmarked, although its 2,048,000 bytes are above the limit; "
            "newer compilers mark every fully connected layer.",
        ),
        "folding of BatchNorm and Scale": Choice(
            "free",
            "Beside Convolution and Deconvolution with both behind them: either alone; behind InnerProduct; and, where "
            "no layer before takes them, before a Convolution, Deconvolution or InnerProduct. There only what leaves "
            "every output as it was: a padded Convolution and a Deconvolution take a Scale without bias. convert_model "
            "folds alike; a record that was made without it says skip_fusion for the layer.",
            "The pages name the two chains and stop there; each fold saves an operator, and none changes an output.",
        ),
        "use_global_stats": Choice(
            "inferred",
            "init, convert_model and accuracy_based_auto_calibration refuse a BatchNorm that does not say true; "
            "auto_nuq and the native commands take a missing one as Caffe does, true in phase TEST.",
            "The pages demand the field; Caffe has a default.",
        ),
        "ranking of accuracy_based_auto_calibration": Choice(
            "inferred",
            "Each quantized layer alone, float against fake-quantized, on the first 8 images of the calibration's "
            "first pass, which our runtime keeps while it calibrates all layers.",
            "Sister code compares single layers; the evaluator has no method that would run a network for it.",
        ),
        "files of accuracy_based_auto_calibration": Choice(
            "inferred",
            "The history is one JSON list. Where every layer must stay float, no network is written, with a warning.",
            "Sister code writes one object after the other, which is no JSON, and deletes its models then.",
        ),
        "zero": Choice(
            "inferred",
            "0 stays a level wherever the layer holds zeros.",
            "ATC's weight coder spends fewest bits on runs of the commonest byte.",
        ),
        "schema of _quant.json": Choice(
            "free",
            "Our own: the inserted quantization layers and, per layer, what was folded into it.",
            "Only the purpose is published; AMCT's accuracy comparison is the one reader.",
        ),
        "search space of auto_nuq": Choice(
            "free",
            "One number of levels for each layer whose wts_algo is nuq_quantize in config.json; where no "
            "layer asks for it, for every layer that can carry a codebook, with a warning.",
            "Only the aim is published: more compression while is_satisfied holds; a call that changes "
            "nothing would help nobody.",
        ),
        "order and end of auto_nuq's trials": Choice(
            "free",
            "The original is scored first, then plans as the Optuna study proposes them, each in the light of what "
            "the earlier ones scored; as many as n_trials says. An interrupted call goes on where it stopped.",
            "Neither order nor stopping rule is published.",
        ),
        "auto_nuq called again": Choice(
            "free",
            "The outputs are overwritten, the study never: an unfinished one goes on. Of a finished one nothing is "
            "searched again, its outputs are written again, if network, configuration, evaluator, the verdicts on its "
            "trials and the score of the original network are what they were. Otherwise its folder is kept as "
            "<save_dir>_study_1, _2, ..., with a warning of what is another now, and a new study is begun.",
            "Only that the outputs are overwritten is documented. A search costs hours, and the same search finds the "
            "same; the limit may be an argument and the data a file, which no digest of the evaluator's code sees.",
        ),
        "calibration in auto_nuq": Choice(
            "inferred",
            "eval_model also feeds the calibration, with config.json's batch_num; its number is then "
            "discarded. Scoring uses the evaluator's evaluate_batch_num.",
            "auto_nuq gets no other callable that could feed data, and eval_model takes batch_num as an argument.",
        ),
        "unreachable target of auto_nuq": Choice(
            "free",
            "If no plan satisfies, nothing is written and StudyError is raised.",
            "A model that breaks the user's bound must not look like a success.",
        ),
        "empty NUQ layer list": Choice(
            "inferred",
            "The list file is written empty.",
            "A script that hands the file on to ATC finds one.",
        ),
        "NUQ for a layer that cannot have it": Choice(
            "free",
            "It keeps arq_quantize and is named, with the reason, in a warning.",
            "The mapping file is ATC's view and may mark what NUQ's restrictions exclude.",
        ),
        "field numbers of the .cfg": Choice(
            "inferred",
            "Those of the published PyTorch twin; free ones for joint_quant, nuq_config, NuqConfig, "
            "NUQuantize, CalibrationConfig.nuq_quantize and the two deprecated blocks.",
            "Only text is exchanged, so no number is ever seen.",
        ),
        "rank of nuq_config": Choice(
            "inferred",
            "It sets the weights of the marked layers over common_config and override_layer_types; a "
            "layer that override_layer_configs names is left to that entry.",
            "AOE's pages leave layers alone that override_layer_configs forces.",
        ),
        "overriding blocks": Choice(
            "inferred",
            "The most specific block counts whole; what it leaves out takes the default, not the value "
            "of a less specific block.",
            "The sample repeats all IFMR values for Pooling; published sister code reads blocks this way.",
        ),
        "deprecated blocks of the .cfg": Choice(
            "inferred",
            "conv_ and fc_calibration_config count unless common_config or override_layer_types is "
            "there; override_layer_configs goes beside them.",
            "They are described as meant for layers that are not overridden; sister code agrees.",
        ),
        "channel_wise in common_config": Choice(
            "free",
            "true reaches the types that have channels and is dropped for the others; in an override "
            "for InnerProduct or Pooling it is an error.",
            "A block for all layers cannot mean a setting that some types forbid.",
        ),
        "a field given twice in the .cfg": Choice(
            "inferred",
            "The last one counts, as for exclusive algorithms.",
            "It is how protobuf merges text.",
        ),
        "layers skipped and overridden": Choice(
            "free",
            "The layer stays float, with a warning.",
            "Skipping is the safer reading of a contradiction.",
        ),
        "base of mapping_file": Choice(
            "inferred",
            "The working directory of the process, then the folder of the .cfg.",
            "The sample's path only works from the sample's root; beside the .cfg is where people put it.",
        ),
        "weights of AVE Pooling": Choice(
            "free",
            "The window's constant 1/(kh*kw) is quantized by ARQ like a weight, which gives the layer one"
            " scale_w; no bytes, no codebook.",
            "Pooling carries weight_quant_params in config.json but stores no weights.",
        ),
        "skipped layers in config.json": Choice(
            "inferred",
            "They are left out.",
            "A missing layer is documented as not quantized, and sister code writes only quantized layers.",
        ),
        "NUQ with num_bits": Choice(
            "free",
            "Accepted if it is 8, not written.",
            "It is documented for ARQ only, and says nothing that NUQ contradicts.",
        ),
        "joint_quant": Choice(
            "free",
            "Quantized layers whose outputs an Eltwise reads directly, after folding, get one range over all their "
            "inputs: one calibration layer with a bottom and an object_layer for each, before the last of them. Groups "
            "with a layer in common are one. Different activation settings in a group are an error.",
            "One line of the pages and a calibration layer with several inputs are all that is public.",
        ),
        "calibration layers of HFMG": Choice(
            "free",
            "A layer type HFMG with a parameter message of our own.",
            "The patched Caffe that is public knows IFMR only.",
        ),
        "quantize_preprocess": Choice(
            "inferred",
            "Not offered; asking for it says so, as for retraining and tensor decomposition.",
            "No Caffe page mentions it; it belongs to the PyTorch tool.",
        ),
        "Python and NumPy of the samples": Choice(
            "inferred",
            "A script of `python -m autonuq.amct` and an evaluator of `amct_caffe calibration` get the names of Python "
            "3.7, NumPy 1.16 and the Pillow of that time that are gone since, `old_names` lists them, and the binary "
            "np.fromstring. A process that merely calls autonuq.amct.install() does not: it may hold other code.",
            "AMCT is bound to Python 3.7, and its samples read LMDB by np.fromstring.",
        ),
        "evaluator's file of the command line": Choice(
            "inferred",
            "The object customize_evaluator; elsewhere the one object with a method calibration, or an object of the "
            "one class that has one. A file's data and --evaluator exclude each other.",
            "The samples of three front ends call it that; the pages only speak of an evaluator in the file.",
        ),
        "data of the command line": Choice(
            "inferred",
            "One file is one batch, in the order of the names, batch_num of them; hidden files and folders are passed "
            "over. Several inputs are separated by semicolons. Config and record are not kept.",
            "Sister code reads a folder so, and the sample's result lists no other files.",
        ),
        "compression and accuracy figures": Choice(
            "free",
            "Ours are measured by ourselves and say so.",
            "No figure for NUQ is public.",
        ),
    }
)
