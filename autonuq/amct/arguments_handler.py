"""`amct_caffe.common.cmd_line_utils.arguments_handler`: how the command line writes shapes and folders."""

from __future__ import annotations

from pathlib import Path


def process_data_shape(values: str) -> dict[str, list[int]]:
    """Read the shapes of inputs.

    Parameters
    ----------
    values : str
        `name:n,c,h,w`, several separated by `;`; a name may hold colons.

    Raises
    ------
    ValueError
        It reads otherwise, or a length is not a positive number.

    Examples
    --------
    >>> process_data_shape("data:1,3,224,224;rois:8,5")
    {'data': [1, 3, 224, 224], 'rois': [8, 5]}
    """
    shapes = {}
    for item in values.strip(";").split(";"):
        name, _, lengths = item.rpartition(":")
        dims = [int(length) if length.strip().isdecimal() else 0 for length in lengths.split(",")]
        if not name or min(dims) < 1:
            raise ValueError(f"the shape of an input must read name:n,c,h,w in positive numbers. Got '{item}' instead.")
        shapes[name.strip()] = dims
    return shapes


def process_multi_data_path(values: str) -> list[str]:
    """Return the absolute folders of a list that is separated by `;`."""
    return [str(Path(folder.strip()).resolve()) for folder in values.strip(";").split(";")]
