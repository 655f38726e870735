"""Files that stand in for `amct_caffe` and `caffe`, so that `python script.py` finds this package without the runner.

`python -m autonuq.amct --install` writes them where Python looks for packages, and only whoever asks for it has them.
Other ways were worse: a `.pth` file runs at every start of every Python, whether it concerns AMCT or not; files that
`pip install` brings along cannot be had on demand and would hide a real Caffe; a second distribution to install on
demand would have to be published and kept in step with this one, for two files of three lines. A single file is enough
for a package, too: `install` puts the submodules where the import system looks first.

`caffe` is written only where no other one can be found: who built Caffe goes on using it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import cache_from_source
from pathlib import Path

from autonuq.atomic import replace_text

_MARK = "# Written by 'python -m autonuq.amct --install'; '--uninstall' takes it away.\n"
_INSTALLED = {
    "amct_caffe": "from autonuq.amct.imports import install_amct_caffe\n\ninstall_amct_caffe()\n",
    "caffe": "from autonuq.pycaffe import install\n\ninstall()\n",
}


def write_stand_ins(folder: Path, path: Iterable[str] = ()) -> list[str]:
    """Write the files that `_INSTALLED` lists and say, a line each, what was done.

    Parameters
    ----------
    folder : Path
        Made if missing.
    path : iterable of str
        Where else Python looks for packages.

    Raises
    ------
    ValueError
        There is an `amct_caffe` that is not ours.
    """
    places = [str(folder.resolve()), *path]
    if other := _foreign("amct_caffe", places):
        raise ValueError(f"there is another amct_caffe, {other}; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    other = _foreign("caffe", places)
    _write(folder, {name: text for name, text in _INSTALLED.items() if name != "caffe" or not other})
    if not other:
        return [f"wrote {file}" for file in _own_files(folder)]
    _remove(folder / "caffe.py")  # of a time when there was no other
    return [*(f"wrote {file}" for file in _own_files(folder)), f"left caffe to {other}, which scripts go on using"]


def remove_stand_ins(folder: Path) -> list[str]:
    """Take away what `write_stand_ins` wrote and say, a line each, what that was.

    Raises
    ------
    ValueError
        Nothing of it is there.
    """
    files = list(_own_files(folder))
    if not files:
        raise ValueError(f"in {folder} there is nothing that 'python -m autonuq.amct --install' wrote")
    for file in files:
        _remove(file)
    return [f"removed {file}" for file in files]


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        replace_text(folder / f"{name}.py", _MARK + text)


def _remove(file: Path) -> None:
    if _is_own(file):
        file.unlink()
        Path(cache_from_source(str(file))).unlink(missing_ok=True)


def _own_files(folder: Path) -> Iterator[Path]:
    return filter(_is_own, (folder / f"{name}.py" for name in _INSTALLED))


def _is_own(file: Path) -> bool:
    return file.is_file() and file.read_bytes().startswith(_MARK.encode())


def _foreign(name: str, places: Iterable[str]) -> str:
    """Return where a module of this name is that is not ours, nothing where there is none."""
    invalidate_caches()
    for place in places:
        spec = PathFinder.find_spec(name, [place])
        if spec is not None and _is_loadable(spec) and not _is_own(Path(str(spec.origin))):
            return str(spec.origin)
    return ""


def _is_loadable(spec: ModuleSpec) -> bool:
    """Say no of a mere folder of that name, such as a checkout of Caffe, which Python takes for a namespace."""
    return spec.has_location


def search_path() -> list[str]:
    """Return where Python looks for packages from any folder: the working directory, which `-m` adds, is left out."""
    return sys.path if sys.flags.safe_path else sys.path[1:]
