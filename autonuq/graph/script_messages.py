"""Caffe's messages as scripts know them: `caffe.proto.caffe_pb2`.

Our own schema declares the arrays of BlobProto as bytes, so that no number becomes a Python object. Scripts expect
lists; the wire format is the same, so these classes are made from our schema with those fields put back, and with
the messages that only scripts know (`script.proto`).
"""

from __future__ import annotations

from types import ModuleType

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from autonuq.graph import caffe_pb2, script_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_ARRAYS = {
    "data": _Field.TYPE_FLOAT,
    "diff": _Field.TYPE_FLOAT,
    "double_data": _Field.TYPE_DOUBLE,
    "double_diff": _Field.TYPE_DOUBLE,
    "int32_data": _Field.TYPE_INT32,
    "uint64_data": _Field.TYPE_UINT64,
}


def build_messages() -> ModuleType:
    """Make the module: every message and every enum of the schema, under Caffe's names."""
    file = _joined()
    blob = next(message for message in file.message_type if message.name == "BlobProto")
    for field in blob.field:
        if field.name in _ARRAYS:
            field.type, field.label = _ARRAYS[field.name], _Field.LABEL_REPEATED
            field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name)
    module = ModuleType("caffe.proto.caffe_pb2", "Caffe's messages.")
    for name, message in found.message_types_by_name.items():
        setattr(module, name, message_factory.GetMessageClass(message))
    for name, enum in found.enum_types_by_name.items():
        wrapper = EnumTypeWrapper(enum)
        setattr(module, name, wrapper)
        vars(module).update(wrapper.items())
    module.DESCRIPTOR = found  # type: ignore[attr-defined]
    return module


def _joined() -> descriptor_pb2.FileDescriptorProto:
    """Return one file with the messages of both schemas, and the fields of both where both have a message."""
    file, more = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    caffe_pb2.DESCRIPTOR.CopyToProto(file)
    script_pb2.DESCRIPTOR.CopyToProto(more)
    known = {message.name: message for message in file.message_type}
    for message in more.message_type:
        if message.name in known:
            fields = {field.name for field in known[message.name].field}
            known[message.name].field.extend(field for field in message.field if field.name not in fields)
        else:
            file.message_type.append(message)
    for message in file.message_type:
        for field in message.field:
            if field.type_name.startswith(f".{more.package}."):
                field.type_name = field.type_name.replace(more.package, file.package, 1)
    return file
