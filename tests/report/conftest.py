"""Study records as `study` would leave them: LeNet, nothing yet, and a deep network."""

from dataclasses import replace

import numpy as np
import pytest

from autonuq.records import LayerRecord, LossPart, LossParts, StudyRecord, TrialRecord, encode_levels

LEVELS = (256, 128, 64, 32, 24, 16, 12, 8, 6, 5, 4, 3, 2)


def build_layer(name, kind, weights, treatment="nuq", reason=""):
    """Give a layer a curve with the shape of a real one: rate ~ log2(levels), distortion ~ 1 / levels^2."""
    if treatment == "float":
        return LayerRecord(name, kind, weights, treatment, reason, (4 * weights,), (0.0,), (0,))
    levels = LEVELS if treatment == "nuq" else LEVELS[:1]
    rates = tuple(int(weights * max(0.35, np.log2(k) - 1.4) / 8) + 24 + k for k in levels)
    distortions = tuple(float(weights**0.5 * (1.0 / k**2 + 2e-6)) for k in levels)
    histogram = np.round(weights * np.exp(-0.5 * (np.arange(-128, 128) / 40) ** 2) / 100).astype(int)
    books = tuple(encode_levels(np.round(np.linspace(-110, 110, k)).astype(int)) for k in levels[1:])
    everything = encode_levels(range(-128, 128))
    return LayerRecord(
        name,
        kind,
        weights,
        treatment,
        reason,
        rates,
        distortions,
        levels,
        histogram=tuple(histogram.tolist()),
        codebooks=(everything, *books),
    )


def build_study(layers, trials=40, seed=0, name="lenet-fashion"):
    rng = np.random.default_rng(seed)
    searched = [layer for layer in layers if layer.treatment == "nuq"]
    blank = StudyRecord(name, "entropy", 0.9124, tuple(layers), (), trials)
    records = []
    for number in range(trials):
        centre = min(len(LEVELS) - 1, 4 + number // 5)
        points = {
            layer.name: int(np.clip(round(centre + rng.normal(0, 2.2)), 0, len(LEVELS) - 1)) for layer in searched
        }
        trial = TrialRecord(number, "complete", points=points)
        size = sum(row.size_bytes for row in blank.layer_rows(trial))
        harm = np.mean([layer.distortions[points[layer.name]] / layer.weights**0.5 for layer in searched])
        metric = float(0.9124 - 0.25 * harm + rng.normal(0, 0.0015))
        satisfied = (0.9124 - metric) * 100 < 1
        records.append(
            TrialRecord(
                number,
                "complete",
                ratio=blank.original_bytes / size,
                metric=metric,
                satisfied=satisfied,
                margin=float(np.clip(np.log(max(1e-9, (0.9124 - metric) / 0.01)), -7, 7)),
                predicted=None if number < 6 else float(rng.normal(0, 0.3)),
                size_bytes=size,
                points=points,
                started=f"2025-06-01T10:{number:02d}:00Z",
                duration_s=52.5,
                worker=f"box:{4711 + number % 2}",
            )
        )
    if trials > 10:
        records[7] = TrialRecord(
            7,
            "failed",
            error="EvaluatorError: eval_model returned nan",
            started="2025-06-01T10:07:00Z",
            worker="box:1",
        )
        records[-1] = TrialRecord(trials - 1, "running", started="2025-06-01T10:59:00Z", worker="box:4712")
    provenance = {
        "autonuq": "0.1.0",
        "seed": "0",
        "prototxt sha256": "9f86d081884c7d65" * 4,
        "codec": "entropy",
    }
    study = StudyRecord(name, "entropy", 0.9124, tuple(layers), tuple(records), trials, provenance)
    return replace(study, loss_parts=build_parts(study))


def build_parts(study, loss=0.006):
    """Divide a loss among the searched layers by their distortions, a tenth of it to none."""
    best = study.best
    harms = {
        one.name: one.distortions[best.points.get(one.name, 0)] for one in study.layers if len(one.rates_bytes) > 1
    }
    parts = [LossPart(name, 0.9 * harm / sum(harms.values()), 0.4) for name, harm in harms.items()]
    parts.sort(key=lambda part: -part.share)
    return LossParts(best.number, tuple(parts), LossPart("", 0.1, 0.8), loss, 0.001)


@pytest.fixture
def lenet():
    sizes = {"conv1": 500, "conv2": 25_000, "ip1": 400_000, "ip2": 5_000}
    return build_study(
        [build_layer(name, "Convolution" if "conv" in name else "InnerProduct", n) for name, n in sizes.items()]
    )


@pytest.fixture
def empty():
    return StudyRecord("nothing-yet", "entropy", None, (), (), 40)


@pytest.fixture
def deep():
    """150 layers with inception-like names, some of them not searched."""
    layers = []
    for index in range(150):
        name, weights = f"inception_{index // 6 + 3}{'abcdef'[index % 6]}/3x3_reduce", 2000 + 7919 * index
        if index % 29 == 5:
            layers.append(build_layer(name, "Convolution", weights, "uniform", "group is 2, NUQ needs 1"))
        elif index % 50 == 7:
            layers.append(build_layer(name, "Deconvolution", weights, "float", "listed in skip_layers"))
        else:
            layers.append(build_layer(name, "Convolution", weights))
    return build_study(layers, trials=60, name="googlenet-ish")
