"""Messages that scripts read and write: label maps, annotations, solvers."""

import pytest
from google.protobuf import text_format

from autonuq.graph import caffe_pb2 as schema
from autonuq.graph import script_pb2
from autonuq.pycaffe import NetSpec
from autonuq.pycaffe import layers as L
from autonuq.pycaffe import params as P
from autonuq.pycaffe.io import caffe_pb2


def test_a_label_map_is_read_from_text():
    text = """
    item { name: "none_of_the_above" label: 0 display_name: "background" }
    item { name: "n01503061" label: 1 display_name: "bird" }
    """
    labels = caffe_pb2.LabelMap()
    text_format.Merge(text, labels)
    assert {item.label: item.display_name for item in labels.item} == {0: "background", 1: "bird"}


def test_what_a_detectors_script_makes():
    box = caffe_pb2.NormalizedBBox(xmin=0.25, ymin=0.5, xmax=0.75, ymax=1, label=3, difficult=True)
    datum = caffe_pb2.AnnotatedDatum(type=caffe_pb2.AnnotatedDatum.BBOX)
    datum.datum.data = b"jpeg"
    datum.annotation_group.add(group_label=3).annotation.add(instance_id=0).bbox.CopyFrom(box)
    again = caffe_pb2.AnnotatedDatum.FromString(datum.SerializeToString())
    assert again.annotation_group[0].annotation[0].bbox.xmax == 0.75
    sampler = caffe_pb2.BatchSampler(max_sample=1, sampler=caffe_pb2.Sampler(min_scale=0.3))
    sampler.sample_constraint.min_jaccard_overlap = 0.7
    assert (sampler.use_original_image, sampler.max_trials) == (True, 100)
    constraint = caffe_pb2.EmitConstraint(emit_type=caffe_pb2.EmitConstraint.MIN_OVERLAP)
    assert constraint.emit_type == 1
    loss = caffe_pb2.MultiBoxLossParameter(mining_type=caffe_pb2.MultiBoxLossParameter.HARD_EXAMPLE)
    assert loss.code_type == caffe_pb2.PriorBoxParameter.CORNER
    output = caffe_pb2.DetectionOutputParameter()
    output.save_output_param.label_map_file = "labels.prototxt"
    output.save_output_param.resize_param.height = 300
    assert output.nms_param.nms_threshold == pytest.approx(0.3)


def test_a_training_network_of_a_detector_is_read_and_made():
    text = """
    layer { name: "data" type: "AnnotatedData" top: "data" top: "label"
            transform_param { resize_param { height: 300 width: 300 interp_mode: LINEAR }
                              emit_constraint { emit_type: CENTER }
                              distort_param { hue_prob: 0.5 } expand_param { max_expand_ratio: 4 } }
            annotated_data_param { batch_sampler { max_sample: 1 } label_map_file: "labels.prototxt" } }
    layer { name: "mbox_loss" type: "MultiBoxLoss" bottom: "data" bottom: "label" top: "mbox_loss"
            multibox_loss_param { num_classes: 21 code_type: CENTER_SIZE } }
    """
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    n = NetSpec()
    n.data, n.label = L.AnnotatedData(
        annotated_data_param=dict(label_map_file="labels.prototxt", batch_sampler=[dict(max_sample=1)]),
        transform_param=dict(
            resize_param=dict(height=300, width=300, interp_mode=[P.Resize.LINEAR]),
            emit_constraint=dict(emit_type=caffe_pb2.EmitConstraint.CENTER),
            distort_param=dict(hue_prob=0.5),
            expand_param=dict(max_expand_ratio=4),
        ),
        ntop=2,
    )
    n.mbox_loss = L.MultiBoxLoss(n.data, n.label, num_classes=21, code_type=P.PriorBox.CENTER_SIZE)
    assert n.to_proto() == net


def test_a_solver_is_read_and_written():
    solver = caffe_pb2.SolverParameter()
    text_format.Merge('net: "n.prototxt" base_lr: 0.1 stepvalue: 5 stepvalue: 9 solver_mode: CPU', solver)
    assert (list(solver.stepvalue), solver.solver_mode) == ([5, 9], caffe_pb2.SolverParameter.CPU)
    solver.net_param.layer.add(name="x")
    assert caffe_pb2.SolverParameter.FromString(solver.SerializeToString()) == solver


def test_every_message_of_both_schemas_is_there_once():
    names = [message.name for message in caffe_pb2.DESCRIPTOR.message_types_by_name.values()]
    assert len(names) == len(set(names))
    both = {*schema.DESCRIPTOR.message_types_by_name, *script_pb2.DESCRIPTOR.message_types_by_name}
    assert set(names) == both
    assert all(hasattr(caffe_pb2, name) for name in both)
