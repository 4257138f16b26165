"""Features of both domains brought to two dimensions, and two numbers that say what the picture only suggests."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsada_hpc.observe.wording import streams

MAX_POINTS = 1500
MIN_TSNE_POINTS = 10
NEIGHBOURS = 10


class UnusableFeaturesError(Exception):
    """Why the features of a run cannot be shown, in words for the page."""


@dataclass(frozen=True)
class Embedding:
    """Points of one features file.

    xy           (N, 2)
    domain       (N,) 0 source, 1 target
    label        (N,) class index
    how          the method, e.g. "t-SNE, perplexity 30"
    clips        number of clips in the file, N or more
    mixing       mean share, in percent, of a clip's nearest neighbours that come from the other domain
    full_mixing  the same if the domains could not be told apart
    transfer     percent of target clips whose nearest source clip has the same class; None without both domains
    """

    xy: NDArray[np.float64]
    domain: NDArray[np.int64]
    label: NDArray[np.int64]
    how: str
    clips: int
    mixing: float | None
    full_mixing: float | None
    transfer: float | None


def _load(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = streams((key for key in arrays if key not in ("domain", "label")), "")
            parts = [np.asarray(arrays[key], dtype=np.float64) for key in names]
            domain, label = np.asarray(arrays["domain"], np.int64), np.asarray(arrays["label"], np.int64)
    except FileNotFoundError as error:
        raise UnusableFeaturesError(f"no {path.parent.name}/{path.name}") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UnusableFeaturesError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not parts or any(part.ndim != 2 or len(part) != len(domain) for part in parts):
        raise UnusableFeaturesError(f"{path.parent.name}/{path.name} does not hold streams' features of (clips, width)")
    features = np.concatenate(parts, axis=1)
    if len(domain) < 3 or len(label) != len(domain):
        raise UnusableFeaturesError(f"{path.parent.name}/{path.name} holds {len(domain)} clips, too few to show")
    if not np.isfinite(features).all():
        raise UnusableFeaturesError(f"{path.parent.name}/{path.name} holds values that are not finite")
    return features, domain, label


def _project(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """(N, D) -> (N, 2). A fixed seed and a PCA start: the same features give the same picture."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    clips, width = features.shape
    if clips < MIN_TSNE_POINTS or width < 2 or not features.std(axis=0).any():
        centred = features - features.mean(axis=0)
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
        xy = np.pad(left * scale, ((0, 0), (0, 2)))[:, :2]
        return xy, "PCA, too few clips for t-SNE" if clips < MIN_TSNE_POINTS else "PCA, features that do not vary"
    perplexity = min(30.0, (clips - 1) / 3)
    reduced = PCA(n_components=min(50, clips, width), svd_solver="full").fit_transform(features)
    xy = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=0).fit_transform(reduced)
    return np.asarray(xy, np.float64), f"t-SNE, perplexity {perplexity:.0f}"


def _mixing(features: NDArray[np.float64], domain: NDArray[np.int64]) -> tuple[float, float]:
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(domain) - 1)
    # one more is asked for: the nearest neighbour of a clip is itself, and is left out by its row number
    found = NearestNeighbors(n_neighbors=count + 1).fit(features).kneighbors(features, return_distance=False)
    shares = []
    for row, neighbours in enumerate(found):
        others = neighbours[neighbours != row][:count]
        shares.append(np.mean(domain[others] != domain[row]))
    other_domain = np.where(domain == 0, np.sum(domain == 1), np.sum(domain == 0))
    return 100 * float(np.mean(shares)), 100 * float(np.mean(other_domain / (len(domain) - 1)))


def _transfer(features: NDArray[np.float64], domain: NDArray[np.int64], label: NDArray[np.int64]) -> float:
    from sklearn.neighbors import NearestNeighbors

    source, target = domain == 0, domain == 1
    nearest = NearestNeighbors(n_neighbors=1).fit(features[source]).kneighbors(features[target], return_distance=False)
    return 100 * float(np.mean(label[source][nearest[:, 0]] == label[target]))


def embed(path: Path, *, most: int = MAX_POINTS) -> Embedding:
    """Embeds one features file, all streams side by side; of more than `most` clips a fixed choice of so many.

    Raises UnusableFeaturesError, with the reason, when it cannot.
    """
    features, domain, label = _load(path)
    clips = len(domain)
    if clips > most:
        chosen = np.sort(np.random.RandomState(0).permutation(clips)[:most])
        features, domain, label = features[chosen], domain[chosen], label[chosen]
    xy, how = _project(features)
    both = bool((domain == 0).any() and (domain == 1).any())
    mixing, full_mixing = _mixing(features, domain) if both else (None, None)
    transfer = _transfer(features, domain, label) if both else None
    return Embedding(xy, domain, label, how, clips, mixing, full_mixing, transfer)
