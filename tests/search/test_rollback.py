"""Roll-back: the ranking's measure, the bisection, and what is tried."""

import numpy as np
import pytest

from autonuq.search.rollback import BinarySearchStrategy, CosineSimilaritySensitivity, requantize, roll_back

RANKING = {f"layer{index}": index / 100 for index in (3, 0, 4, 1, 2)}
ORDER = sorted(RANKING)


def search(needed, count=5):
    """Bisect where at least so many leading layers must stay float."""
    ranking = {name: RANKING[name] for name in list(RANKING)[:count]}
    tried = []

    def probe(quantized):
        floats = sum(not kept for kept in quantized.values())
        tried.append(floats)
        return floats >= needed, float(needed - floats)

    return *roll_back(ranking, BinarySearchStrategy(), (needed == 0, 1.0), probe), tried


@pytest.mark.parametrize("needed", range(1, 6))
def test_fewest_leading_layers_stay_float(needed):
    quantized, probes, tried = search(needed)
    assert [name for name, kept in quantized.items() if not kept] == ORDER[:needed]
    assert len(tried) <= 3
    assert len(tried) == len(set(tried))
    assert 5 not in tried  # the float network is known
    assert [probe.verdict[0] for probe in probes] == [False, *(floats >= needed for floats in tried)]


def test_a_single_layer_needs_no_probe():
    quantized, probes, tried = search(1, count=1)
    assert list(quantized.values()) == [False]
    assert tried == []
    assert len(probes) == 1


def test_another_strategy_may_take_its_place():
    class OneByOne:
        def initialize(self, ranking_info):
            self.kept = dict.fromkeys(sorted(ranking_info, key=ranking_info.get), True)

        def update_quant_config(self, metric_eval):
            if not metric_eval[0]:
                self.kept[next(name for name, kept in self.kept.items() if kept)] = False
            return {"stop_flag": metric_eval[0], "roll_back_config": dict(self.kept)}

    quantized, probes = roll_back(RANKING, OneByOne(), (False, 1.0), lambda kept: (sum(kept.values()) <= 3, 0.0))
    assert [name for name, kept in quantized.items() if not kept] == ORDER[:2]
    assert len(probes) == 3


def test_cosine():
    compare = CosineSimilaritySensitivity().compare
    assert compare(np.array([[3.0, 4.0]]), np.array([[6.0], [8.0]])) == pytest.approx(1, abs=1e-15)
    assert compare(np.array([1.0, 0]), np.array([0, 1.0])) == 0
    assert compare(np.array([1.0]), np.array([-2.0])) == -1
    assert compare(np.zeros(3), np.zeros(3)) == 1
    assert compare(np.zeros(3), np.ones(3)) == 0
    near = np.ones(10**6, np.float32)
    other = near.copy()
    other[0] = 1.01
    assert 0 < 1 - compare(near, other) < 1e-9


@pytest.mark.parametrize("needed", [{"a"}, {"h"}, {"a", "h"}, {"c", "d"}, set("abcdefgh")])
def test_requantize_finds_what_is_needed(needed):
    asked = []

    def accepts(kept):
        asked.append(tuple(kept))
        return needed <= set(kept)

    assert set(requantize("abcdefgh", accepts, 99)) == needed
    assert len(asked) == len(set(asked))
    assert () not in asked and tuple("abcdefgh") not in asked


def test_requantize_asks_no_more_than_it_may():
    asked = []
    assert requantize("abcdefgh", lambda kept: bool(asked.append(kept)), 3) == list("abcdefgh")
    assert len(asked) == 3
