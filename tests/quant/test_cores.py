"""Work side by side: the results, their order and the errors are those of one thread, and memory is bounded."""

import threading
import time

import numpy as np
import pytest
from rounding import costs_of, inputs, moments_of
from threadpoolctl import threadpool_info, threadpool_limits

from autonuq.quant import cores
from autonuq.quant.codec import CODECS
from autonuq.quant.cores import available_cores, check_wanted, one_blas_thread, side_by_side
from autonuq.quant.points import Tuning, build_points
from autonuq.quant.uniform import quantize_weights


@pytest.fixture(params=[1, 3], ids="{}-cores".format)
def machine(request, monkeypatch):
    """Work as on a machine with so many cores."""
    monkeypatch.setattr(cores, "available_cores", lambda: request.param)
    return request.param


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 3)


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


class Crowd:
    """Counts who is inside, and remembers the most."""

    def __init__(self):
        self.lock, self.inside, self.most = threading.Lock(), 0, 0

    def __enter__(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1


def crowded(items, seconds=0.02, **options):
    """Return the results of some work and how many threads were at it at a time."""
    crowd = Crowd()

    def work(item):
        with crowd:
            time.sleep(seconds)
        return item

    return side_by_side(work, items, **options), crowd.most


def test_results_come_in_the_order_of_the_items(machine):
    def work(item):
        time.sleep(0.002 * (20 - item))  # the later ones are done first
        return item**2

    assert side_by_side(work, range(20)) == [item**2 for item in range(20)]
    assert side_by_side(work, []) == []


def test_as_many_threads_work_as_there_are_cores(machine):
    assert crowded(range(12)) == (list(range(12)), machine)


@pytest.mark.usefixtures("three_cores")
def test_work_within_work_shares_the_same_cores():
    crowd = Crowd()

    def inner(item):
        with crowd:
            time.sleep(0.01)
        return item

    def outer(item):
        return side_by_side(inner, [item, item, item, item])

    assert side_by_side(outer, range(2)) == [[0] * 4, [1] * 4]
    assert crowd.most == 3
    assert crowded(range(6))[1] == 3  # what was lent came back


@pytest.mark.usefixtures("three_cores")
def test_no_more_work_beside_than_fits_the_memory():
    half = cores.BESIDE_BYTES / 2
    assert crowded(range(6), each_bytes=half)[1] == 3
    assert crowded(range(6), each_bytes=1.5 * half)[1] == 2
    assert crowded(range(6), each_bytes=3 * half) == (list(range(6)), 1)


@pytest.mark.usefixtures("three_cores")
def test_memory_is_bounded_over_all_work_of_the_process():
    most = []

    def outer(item):
        most.append(crowded(range(6), each_bytes=0.6 * cores.BESIDE_BYTES)[1])

    side_by_side(outer, range(2), each_bytes=0.6 * cores.BESIDE_BYTES)
    assert max(most) == 1


def test_the_first_error_in_order_is_seen_and_nothing_after_it_is_begun(machine):
    begun = []

    def work(item):
        begun.append(item)
        if item == 2:
            time.sleep(0.05)
            raise ValueError("two")
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="two"):
        side_by_side(work, range(50))
    assert set(begun) <= set(range(4))
    assert threading.active_count() == 1 or not any(one.name == "autonuq core" for one in threading.enumerate())


@pytest.mark.usefixtures("three_cores")
def test_an_error_ends_what_runs_behind_it_at_once():
    ended = threading.Event()

    def work(item):
        if item == 0:
            time.sleep(0.05)
            raise ValueError("none")
        try:
            while True:
                check_wanted()
                time.sleep(0.001)
        finally:
            ended.set()

    with pytest.raises(ValueError, match="none"):
        side_by_side(work, range(2))
    assert ended.is_set()


@pytest.mark.usefixtures("three_cores")
def test_an_interruption_ends_the_others_and_what_runs_within_them():
    others = []

    def endless(_):
        while True:
            check_wanted()
            time.sleep(0.001)

    def work(item):
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.05)
            raise KeyboardInterrupt
        others.append(item)
        side_by_side(endless, range(2))

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(2))
    assert len(others) == 1
    assert not any(one.name == "autonuq core" for one in threading.enumerate())
    check_wanted()
    assert crowded(range(6))[1] == 3


@pytest.mark.usefixtures("three_cores")
def test_an_error_within_is_the_one_that_is_seen():
    def inner(item):
        if item:
            raise KeyError(item)

    with pytest.raises(KeyError, match="1"):
        side_by_side(lambda item: side_by_side(inner, [0, item]), range(4))


def test_what_ends_another_thread_is_told():
    run = cores._Run(lambda item: [].missing if item else exec("raise SystemExit(3)"), [0, 1])
    run.take_beside()
    with pytest.raises(SystemExit):
        run.results()


@pytest.mark.usefixtures("three_cores")
def test_numpys_settings_are_those_of_the_caller():
    with np.errstate(divide="ignore"):
        found = side_by_side(lambda _: np.geterr()["divide"], range(6))
    assert set(found) == {"ignore"}


def test_blas_has_one_thread_meanwhile_and_what_it_had_afterwards():
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            pass
        assert blas_threads() == {1}
        assert set(side_by_side(lambda _: frozenset(blas_threads()), range(3))) == {frozenset({1})}
        assert blas_threads() == {1}
        assert available_cores() >= 1
    assert blas_threads() == before


def test_one_core_for_blas_is_one_core_for_all(monkeypatch):
    monkeypatch.setattr(cores, "_allowed_threads", lambda: 1)
    assert available_cores() == 1
    with one_blas_thread():
        assert available_cores() == 1


def test_no_more_cores_than_the_process_may_use(monkeypatch):
    monkeypatch.setattr(cores, "_allowed_threads", lambda: 64)
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    with one_blas_thread():
        assert available_cores() == 5


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(4)
    weights = rng.laplace(size=(120, 700)).astype(np.float32)
    given = {"inputs": (moments_of(inputs(2000, 700)),), "costs": costs_of(120), "has_bias": True}
    return weights, quantize_weights(weights, channel_axis=0), given


def points_as_bytes(layer, codec):
    weights, uniform, given = layer
    points = build_points("fc", weights, uniform, CODECS[codec], tuning=Tuning(steps=10), **given)
    arrays = points.codes, points.curve.rates_bytes, points.curve.distortions, points.bias, points.scale, points.prices
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@pytest.mark.parametrize("codec", CODECS)
def test_points_are_the_same_on_any_number_of_cores(layer, codec, monkeypatch):
    found = []
    for count in (1, 3):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        found.append(points_as_bytes(layer, codec))
    assert found[0] == found[1]


def test_points_are_the_same_on_any_number_of_blas_threads(layer):
    found = []
    for count in (1, 2):
        with threadpool_limits(limits=count, user_api="blas"):
            found.append(points_as_bytes(layer, "entropy"))
    assert found[0] == found[1]
