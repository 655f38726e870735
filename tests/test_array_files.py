"""Files of arrays are read where they are honest; none makes memory that it does not fill, and none runs anything."""

import io
import re
import struct
import zipfile

import numpy as np
import pytest

from autonuq.array_files import load_array, load_arrays
from autonuq.errors import EvaluatorError

GOOD = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def npy(array, **header):
    """Return an `.npy` with something else in its header."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    data = file.getvalue()
    (length,) = struct.unpack_from("<H", data, 8)
    text = data[10 : 10 + length].decode("latin1")
    for key, value in header.items():
        text = re.sub(rf"'{key}': (\([^)]*\)|'[^']*'|\w+)", f"'{key}': {value}", text)
    return data[:8] + struct.pack("<H", len(text)) + text.encode("latin1") + data[10 + length :]


def zipped(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


HEADERS = {
    "huge": {"shape": "(4294967296,)"},
    "huge in all": {"shape": "(65536, 65536, 65536)"},
    "negative": {"shape": "(-1,)"},
    "beyond 64 bits": {"shape": f"(2, {2**63})"},
    "no shape": {"shape": "None"},
    "nested": {"shape": "(" * 500},
    "huge items": {"descr": "'<U99999999'"},
    "unknown items": {"descr": "'x'"},
    "objects": {"descr": "'|O'"},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused_in_both_kinds_of_file(tmp_path, header):
    alone, packed = tmp_path / "a.npy", zipped(tmp_path / "a.npz", m=npy(GOOD, **header))
    alone.write_bytes(npy(GOOD, **header))
    with pytest.raises(EvaluatorError, match=r"a\.npy: mean file cannot be read: it is no \.npy of plain arrays: "):
        load_array(alone, EvaluatorError, what="mean file")
    with pytest.raises(EvaluatorError, match=r"a\.npz: cannot be read: it is no \.npz of plain arrays: "):
        load_arrays(packed, ["m"], EvaluatorError)


@pytest.mark.parametrize("array", [GOOD, np.asfortranarray(GOOD), np.zeros((0, 3)), np.float64(1), GOOD.astype(">f4")])
def test_good_arrays_come_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", m=array, other=GOOD)
    for found in (
        load_array(tmp_path / "a.npy", EvaluatorError),
        load_arrays(tmp_path / "a.npz", ["m"], EvaluatorError)["m"],
    ):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_nothing_is_unpickled(tmp_path):
    ran = []

    class Evil:
        def __reduce__(self):
            return ran.append, (1,)

    np.savez(tmp_path / "a.npz", m=np.array([Evil(), 1], object))
    with pytest.raises(EvaluatorError, match="Python objects"):
        load_arrays(tmp_path / "a.npz", ["m"], EvaluatorError)
    assert not ran


def test_a_member_that_unpacks_to_a_thousand_times_is_a_bomb_and_a_stored_one_is_none(tmp_path):
    zeros = np.zeros(80 << 20, np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", m=zeros)
    with pytest.raises(EvaluatorError, match=r"unpacks to 83,886,\d\d\d bytes .* numpy\.savez"):
        load_arrays(tmp_path / "bomb.npz", ["m"], EvaluatorError)
    np.savez(tmp_path / "stored.npz", m=zeros)
    assert load_arrays(tmp_path / "stored.npz", ["m"], EvaluatorError)["m"].nbytes == zeros.nbytes
    np.savez_compressed(tmp_path / "small.npz", m=zeros[: 1 << 20])
    assert load_arrays(tmp_path / "small.npz", ["m"], EvaluatorError)["m"].nbytes == 1 << 20


def changed_directory(data, offset, value):
    place = data.rindex(b"PK\1\2") + offset
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


@pytest.mark.parametrize(
    ("offset", "value"),
    [(8, 1), (10, 99), (10, 12), (24, 2**31), (16, 0), (42, 2**31)],
    ids=["encrypted", "unknown method", "bzip2", "size", "checksum", "place"],
)
def test_a_directory_that_lies_is_refused(tmp_path, offset, value):
    path = zipped(tmp_path / "a.npz", m=npy(GOOD))
    path.write_bytes(changed_directory(path.read_bytes(), offset, value))
    with pytest.raises(EvaluatorError, match=r"a\.npz: cannot be read: "):
        load_arrays(path, ["m"], EvaluatorError)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_any_amount_at_a_time_are_refused(tmp_path, method):
    with pytest.raises(EvaluatorError, match="a method that NumPy does not use"):
        load_arrays(zipped(tmp_path / "a.npz", method, m=npy(GOOD)), ["m"], EvaluatorError)


def test_cuts_and_flipped_bytes_are_refused_or_read(tmp_path):
    path = zipped(tmp_path / "a.npz", m=npy(GOOD))
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        for data in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            path.write_bytes(data)
            try:
                load_arrays(path, ["m"], EvaluatorError)
            except EvaluatorError as error:
                assert "a.npz" in str(error)
                assert len(error.message) < 500


def test_a_missing_array_and_a_missing_file_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", m=GOOD)
    with pytest.raises(EvaluatorError, match=r"a\.npz: has no array 'x' \(it has: m\)"):
        load_arrays(tmp_path / "a.npz", ["x"], EvaluatorError)
    with pytest.raises(EvaluatorError, match=r"b\.npz: cannot be read: No such file"):
        load_arrays(tmp_path / "b.npz", ["x"], EvaluatorError)
    with pytest.raises(EvaluatorError, match=r"b\.npy: cannot be read: No such file"):
        load_array(tmp_path / "b.npy", EvaluatorError)


def test_a_header_that_promises_to_be_long_gets_no_memory(tmp_path):
    data = b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + npy(GOOD)[10:]
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(EvaluatorError, match="EOF: reading array header, expected 4294967295 bytes got"):
        load_array(tmp_path / "a.npy", EvaluatorError)
