"""Make a face detector smaller, scored without labels: by how far its boxes agree with those of the float network.

    python tune.py deploy.prototxt weights.caffemodel PICTURES --out out/faces

for networks of the family Ultra-Light-Fast-Generic-Face-Detector (RFB-320): input `input` 3x240x320, outputs `scores`
(4420 x 2) and `boxes` (4420 x 4, offsets from priors). Pictures are read by OpenCV: `pip install
opencv-python-headless`.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

import autonuq as nuq

HEIGHT, WIDTH = 240, 320
PRIOR_SIZES = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}  # stride in pixels: sides of its boxes
SCORE, OVERLAP, SAME = 0.5, 0.3, 0.5  # a face; overlap of two boxes of one face; two networks mean the same face


def read_picture(path):
    """Return a picture as the network takes it: RGB, (x - 127) / 128, shape (3, 240, 320)."""
    pixels = cv2.resize(cv2.imread(str(path)), (WIDTH, HEIGHT))[:, :, ::-1]
    return (pixels.transpose(2, 0, 1).astype(np.float32) - 127) / 128


def build_priors():
    """Return centre and size of every prior box as shares of the picture, shape (4420, 4)."""
    rows = []
    for stride, sides in PRIOR_SIZES.items():
        down, across = -(-HEIGHT // stride), -(-WIDTH // stride)
        y, x = np.mgrid[0.5:down, 0.5:across]
        for place in zip((x / across).ravel(), (y / down).ravel(), strict=True):
            rows += [(*place, side / WIDTH, side / HEIGHT) for side in sides]
    return np.array(rows)


def decode(scores, offsets, priors):
    """Return the boxes of the faces, (x, y, width, height) as shares of the picture, the overlapping ones dropped."""
    faces = scores[:, 1] > SCORE
    centre = priors[faces, :2] + 0.1 * offsets[faces, :2] * priors[faces, 2:]
    size = priors[faces, 2:] * np.exp(0.2 * offsets[faces, 2:])
    boxes = np.hstack([centre - size / 2, size])
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores[faces, 1].tolist(), SCORE, OVERLAP)
    return boxes[np.asarray(kept, dtype=int).ravel()]


def count_matches(boxes, others):
    """Count the pairs of boxes that overlap by `SAME` (intersection over union), each box in one pair at most."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    common = np.clip(opposite - corner, 0, None).prod(axis=2)
    overlap = common / (boxes[:, None, 2:].prod(axis=2) + others[None, :, 2:].prod(axis=2) - common)
    matches = 0
    while overlap.size and overlap.max() >= SAME:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap = np.delete(np.delete(overlap, row, axis=0), column, axis=1)
        matches += 1
    return matches


class Agreement(nuq.Evaluator):
    """F1 of a network's boxes against those of the float network; one picture is a batch."""

    def __init__(self, model, weights, pictures, loss=0.1):
        super().__init__(evaluate_batch_num=len(pictures))
        self.float_pair, self.loss, self.pictures = (str(model), str(weights)), loss, [str(path) for path in pictures]
        self.wanted = None

    def eval_model(self, model_file, weights_file, batch_num):
        if self.wanted is None:
            self.wanted = self.detect(*self.float_pair, self.pictures)
        found = self.detect(model_file, weights_file, self.pictures[:batch_num])
        wanted = self.wanted[: len(found)]
        matches = sum(count_matches(*pair) for pair in zip(found, wanted, strict=True))
        boxes = sum(map(len, found)) + sum(map(len, wanted))
        return 2 * matches / boxes if boxes else 1.0

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.loss

    def detect(self, model_file, weights_file, pictures):
        """Return the boxes of each picture."""
        net, priors = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST), build_priors()
        outputs = (net.forward(input=read_picture(path)[None]) for path in pictures)
        return [decode(output["scores"][0], output["boxes"][0], priors) for output in outputs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("pictures", type=Path, help="folder of .jpg files")
    parser.add_argument("--count", type=int, default=200, help="pictures that are used at most")
    parser.add_argument("--loss", type=float, default=0.1, help="F1 that may be lost")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/faces"))
    given = parser.parse_args()
    pictures = sorted(given.pictures.glob("*.jpg"))[: given.count]
    evaluator = Agreement(given.model, given.weights, pictures, given.loss)
    study = nuq.tune(
        given.model, given.weights, evaluator, out=given.out, n_trials=given.trials, batch_num=min(20, len(pictures))
    )
    nuq.write_report(study, given.out / "report.html")
    print(f"{sum(map(len, evaluator.wanted))} boxes in {len(pictures)} pictures")
    if study.best is None:
        print("no trial satisfied the constraint")
    else:
        print(f"ratio {study.best.ratio:.2f}x, F1 against the float network {study.best.metric:.4f}")


if __name__ == "__main__":
    main()
