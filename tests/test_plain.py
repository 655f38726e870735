"""Plain data become the dataclass that they were, or are refused by the name of the field."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest

from autonuq.plain import ANY_NUMBER, from_plain, with_digest, without_digest


@dataclass(frozen=True)
class Inner:
    name: str
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    count: int
    share: float | None = None
    free: float = field(default=0.0, metadata=ANY_NUMBER)
    pair: tuple[int, str] = (1, "x")
    named: Mapping[str, bool] = field(default_factory=dict)


GOOD = Outer((Inner("n"), Inner("m", "b")), 3, 0.5, math.inf, (2, "y"), {"k": True})


def test_what_was_made_plain_is_read():
    assert from_plain(Outer, json.loads(json.dumps(asdict(GOOD)))) == GOOD
    assert from_plain(Outer, {"inner": [], "count": 1}) == Outer((), 1)
    assert from_plain(Outer, {"inner": [], "count": 1, "old": 2}, retired=("old",)) == Outer((), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, r"it\.count must be a whole number"),
        ({"count": 10**400}, r"it\.count must be a whole number .* Got a number of 1329 bits"),
        ({"count": 1.0}, r"it\.count must be a whole number"),
        ({"share": math.nan}, r"it\.share must be a finite number"),
        ({"share": 10**400}, r"it\.share must be a finite number"),
        ({"share": "1"}, r"it\.share must be a finite number"),
        ({"inner": {}}, r"it\.inner must be a list"),
        ({"inner": [3]}, r"it\.inner\[0\] must be an object with the fields of Inner"),
        ({"inner": [{"name": "n", "kind": "c"}]}, r"it\.inner\[0\]\.kind must be one of 'a', 'b'"),
        ({"inner": [{}]}, r"it\.inner\[0\] has no field 'name'"),
        ({"pair": [1]}, r"it\.pair must be a list of 2"),
        ({"named": {"k": 1}}, r"it\.named\['k'\] must be true or false"),
        ({"more": 1}, "it has an unknown field 'more'"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_plain(Outer, {**asdict(GOOD), **change})


def test_a_digest_tells_a_change():
    data = with_digest(asdict(GOOD))
    again = json.loads(json.dumps(data))
    assert without_digest(again) == json.loads(json.dumps(asdict(GOOD)))
    with pytest.raises(ValueError, match="is not what was stored"):
        without_digest({**again, "count": 4})
    assert without_digest({"count": 4}) == {"count": 4}
