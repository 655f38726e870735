"""The wire format, coded both ways and against the protobuf library."""

import numpy as np
import pytest
from google.protobuf.internal import decoder, encoder
from hypothesis import given
from hypothesis import strategies as st

from autonuq.graph import caffe_pb2
from autonuq.graph.wire import (
    DELIMITED,
    Change,
    WireError,
    decode_varints,
    delimited,
    encode_varints,
    fixed_run,
    read_field,
    read_fields,
    read_varint,
    signed,
    splice,
    varint,
)

UNSIGNED = st.integers(0, 2**64 - 1)
SIGNED = st.integers(-(2**63), 2**63 - 1)


@given(UNSIGNED)
def test_a_varint_comes_back(value):
    data = memoryview(varint(value))
    assert read_varint(data, 0, len(data)) == (value, len(data))
    assert decoder._DecodeVarint(data, 0) == (value, len(data))


@given(st.lists(UNSIGNED, max_size=50))
def test_unsigned_varints_come_back(values):
    coded = encode_varints(np.array(values, np.uint64))
    assert coded == b"".join(map(varint, values))
    assert decode_varints(memoryview(coded)).tolist() == values


@given(st.lists(SIGNED, max_size=50))
def test_signed_varints_are_protobufs(values):
    coded = encode_varints(np.array(values, np.int64))
    parts = []
    for value in values:
        encoder._SignedVarintEncoder()(parts.append, value)
    assert coded == b"".join(parts)
    assert decode_varints(memoryview(coded)).astype(np.int64).tolist() == values
    assert caffe_pb2.BlobShape.FromString(b"".join(delimited(1, [coded]))).dim == values


@given(SIGNED)
def test_signed_undoes_twos_complement(value):
    assert signed(value % 2**64) == value


def test_many_varints_are_decoded_across_blocks():
    values = np.random.default_rng(0).integers(0, 2**63, 50_000) >> np.arange(50_000) % 63
    assert (decode_varints(memoryview(encode_varints(values))) == values.astype(np.uint64)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80", "end in the middle"),
        (b"\xff" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x80" * 70_000 + b"\x01", "more than 10 bytes"),
    ],
)
def test_damaged_packed_numbers(data, message):
    with pytest.raises(WireError, match=message):
        decode_varints(memoryview(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "data end inside a number"),
        (b"\x08" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x00\x01", "field number 0"),
        (varint(2**29 << 3) + b"\x01", "field number 536870912"),
        (b"\x0b\x0c", "group"),
        (b"\x0c", "group"),
        (b"\x0e\x01", "wire type 6"),
        (b"\x0a\x05abc", "field 1 at byte 0 promises 2 bytes more"),
        (b"\x0a" + varint(2**63) + b"abc", "promises"),
        (b"\x0d\x00\x00", "field 1 at byte 0 promises 2 bytes more"),
    ],
)
def test_damaged_fields(data, message):
    with pytest.raises(WireError, match=message):
        list(read_fields(memoryview(data)))


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_an_error(data):
    try:
        fields = list(read_fields(memoryview(data)))
    except WireError:
        return
    assert [field.key for field in fields[1:]] + [len(data)] == [field.end for field in fields] or not data


@pytest.mark.parametrize("key", [b"\x2d", b"\xad\x00"], ids=["short key", "long key"])
def test_a_run_of_unpacked_numbers_is_one_view(key):
    values = np.arange(1000, dtype="<f4")
    data = b"".join(key + value.tobytes() for value in values) + b"\x08\x01"
    rows, end = fixed_run(memoryview(data), read_field(memoryview(data), 0, len(data)), len(data))
    assert end == len(data) - 2
    assert (np.ascontiguousarray(rows).view("<f4")[:, 0] == values).all()
    assert np.shares_memory(rows, np.frombuffer(data, np.uint8))


def test_a_run_ends_before_its_message_does():
    data = memoryview(b"\x2dabcd" * 3 + b"\x2dab")
    rows, end = fixed_run(data, read_field(data, 0, 15), 15)
    assert (len(rows), end) == (3, 15)


def test_splice_copies_nothing_that_stays():
    data = memoryview(b"0123456789")
    chunks = splice(data, 1, 9, [Change(5, 6, [b"five"]), Change(2, 3, [])])
    assert b"".join(chunks) == b"134five678"
    assert [chunk.obj for chunk in chunks if isinstance(chunk, memoryview)] == [data.obj] * 3


def test_delimited_is_protobufs_field():
    data = memoryview(b"".join(delimited(7, [b"ab", memoryview(b"cd")])))
    field = read_field(data, 0, len(data))
    assert (field.number, field.wire_type, bytes(data[field.start : field.end])) == (7, DELIMITED, b"abcd")
