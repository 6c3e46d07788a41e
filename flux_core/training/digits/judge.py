"""The quality of generated digits: the accuracy of a classifier on them, and the Fréchet distance to real digits.

The classifier is a small convolutional network, trained on digits that are not used to train the generator. Accuracy
alone favours blurred averages, which are easy to classify; for those the distance of the features (Heusel et al. 2017,
with this network's features in place of Inception's) is large. Both are reported together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...io.saving import replace
from ..flow import rng_of
from .data import Digits

STEPS, BATCH, RATE = 700, 64, 2e-3
FEATURES = 128
LEARNED = 0.6  # of the digits that the generator does not use; the others test the classifier and are the reference
TURN, GROW, MOVE = 0.2, 0.15, 0.15  # radians, share, share of half a picture


class Classifier(nn.Module):
    """Pictures [B, 1, 28, 28] in 0..1 -> 128 features -> ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 64, 3, padding=1)
        self.gather = nn.Linear(64 * 9, FEATURES)
        self.score = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """[B, 128]."""
        for layer in (self.first, self.second, self.third):
            x = F.max_pool2d(F.relu(layer(x)), 2)
        return F.relu(self.gather(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.score(self.features(x))
        return out


@dataclass(frozen=True)
class Judged:
    """accuracy: share of right digits. distance: Fréchet's, of the features, to digits that are in no training."""

    accuracy: float
    distance: float


class Judge:
    """A trained classifier and the digits that it was not trained on."""

    def __init__(self, classifier: Classifier, held_out: Digits) -> None:
        self.classifier, self.held_out = classifier.eval(), held_out
        self.real = self._features(_of(held_out))

    @classmethod
    def trained(cls, others: Digits, path: Path, steps: int = STEPS) -> Judge:
        """others: digits that are not used to train the generator. path: the file of the trained classifier."""
        cut = int(len(others) * LEARNED)
        classifier, learned = Classifier(), others[:cut]
        if path.is_file():
            classifier.load_state_dict(torch.load(path, weights_only=True))
            return cls(classifier, others[cut:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            classifier = Classifier()
        engine = torch.optim.AdamW(classifier.parameters(), lr=RATE)
        pictures, labels = _of(learned), torch.from_numpy(learned.labels.astype(np.int64))
        for step in range(steps):
            rng = rng_of(0, "judge", step)
            chosen = torch.from_numpy(rng.integers(len(learned), size=BATCH))
            for group in engine.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            loss = F.cross_entropy(classifier(_varied(pictures[chosen], rng)), labels[chosen])
            loss.backward()
            engine.step()
            engine.zero_grad(set_to_none=True)
        fresh = path.with_suffix(".new")
        torch.save(classifier.state_dict(), fresh)
        replace(fresh, path)
        return cls(classifier, others[cut:])

    @torch.no_grad()
    def own_accuracy(self) -> float:
        """The classifier's accuracy on the digits that were held out."""
        return self._accuracy(_of(self.held_out), torch.from_numpy(self.held_out.labels.astype(np.int64)))

    @torch.no_grad()
    def judge(self, pictures: Tensor, asked: list[int]) -> Judged:
        """pictures [N, 1 or 3, H, W] in -1..1, 28 x 28 pixels or with a border. asked: the digits of the prompts."""
        seen = _middle(pictures)
        return Judged(self._accuracy(seen, torch.tensor(asked)), frechet(self._features(seen), self.real))

    def read(self, pictures: Tensor) -> list[int]:
        """The digit of each picture."""
        with torch.no_grad():
            found: list[int] = self.classifier(_middle(pictures)).argmax(1).tolist()
        return found

    def _accuracy(self, pictures: Tensor, labels: Tensor) -> float:
        right = [(self.classifier(part).argmax(1) == label) for part, label in zip(
            pictures.split(500), labels.split(500), strict=True)]  # fmt: skip
        return float(torch.cat(right).float().mean())

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.classifier.features(part) for part in pictures.split(500)])


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two normal distributions with the means and covariances of features [N, D] and [M, D]."""
    one, other = one.double(), other.double()
    first, second = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (one.mean(0) - other.mean(0)).square().sum()
    return float(apart + first.trace() + second.trace() - 2 * between)


def _of(digits: Digits) -> Tensor:
    return torch.from_numpy(digits.images.astype(np.float32))[:, None] / 255


def _middle(pictures: Tensor) -> Tensor:
    """The 28 x 28 in the middle, in 0..1, the brightest colour of each pixel."""
    edge = (pictures.shape[-1] - 28) // 2
    grey = pictures.amax(dim=1, keepdim=True)[..., edge : edge + 28, edge : edge + 28]
    return ((grey.float() + 1) / 2).clamp(0, 1)


def _varied(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """The images, rotated, scaled and moved by small random amounts."""
    count = len(pictures)
    turn, grow = rng.uniform(-TURN, TURN, count), 1 + rng.uniform(-GROW, GROW, count)
    move = rng.uniform(-MOVE, MOVE, (2, count))
    rows = np.array([[grow * np.cos(turn), -grow * np.sin(turn), move[0]],
                     [grow * np.sin(turn), grow * np.cos(turn), move[1]]])  # fmt: skip
    grid = F.affine_grid(torch.from_numpy(rows.transpose(2, 0, 1).astype(np.float32)), list(pictures.shape), False)
    return F.grid_sample(pictures, grid, align_corners=False)
