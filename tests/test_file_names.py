"""One rule says which names become files."""

import pytest

from autonuq.file_names import file_below, file_name_of, is_file_name

GOOD = ["lenet-fashion", "net v2.1", "网络", "größe", ".hidden", "a" * 200, "[bold]", "con1", "nullable", "{x}", "-x"]
BAD = [
    "",
    ".",
    "..",
    "a/b",
    "../../esc",
    "/abs",
    "C:\\x",
    "c:x",
    "a\\b",
    "nul\x00",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a\udc80",
    "a" * 201,
    "é" * 101,
    "x" * 10_000,
    "dot.",
    "space ",
    " space",
    "con",
    "NUL",
    "Com1.txt",
    "lpt¹",
    "aux .x",
    'a"b',
    "a*b",
    "a|b",
    "a<b",
]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_may_be(name):
    assert is_file_name(name)
    assert file_name_of(name) == name


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_names_that_may_not_be_and_what_stands_for_them(name, tmp_path):
    assert not is_file_name(name)
    assert is_file_name(file_name_of(name))
    assert (tmp_path / file_name_of(name)).parent == tmp_path


def test_names_that_stand_for_others_differ():
    assert len({file_name_of(name) for name in BAD}) == len(BAD)


@pytest.mark.parametrize("name", [*BAD, "a//b", "./a", "a/", "a/../../b", "a/./b"], ids=ascii)
def test_no_name_leaves_its_folder(tmp_path, name):
    found = file_below(tmp_path, name)
    assert found is None or found.is_relative_to(tmp_path)
    if name != "a/b":
        assert found is None


def test_a_link_leaves_no_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "in" / "file").symlink_to(tmp_path / "out" / "file")
    assert file_below(tmp_path / "in", "link/x") is None
    assert file_below(tmp_path / "in", "file") is None
    assert file_below(tmp_path / "in", "new/x") == tmp_path / "in" / "new" / "x"
