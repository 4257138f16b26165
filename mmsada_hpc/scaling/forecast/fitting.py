"""Positive parameters that explain measured times best in relative error, and how sure they are (NumPy alone)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array], Sequence[float]]
"""Parameters -> the time of every measurement, seconds."""
_ITERATIONS, _STEP, _LEAST = 300, 1e-5, 1e-30
_MOST = 2.0
"""Of a parameter's logarithm, in one iteration."""
_LOOSE = 1.0
"""Standard deviation of a logarithm that nothing tells; more is not believed of any parameter."""


@dataclass(frozen=True)
class Fit:
    """Parameters, and how sure they are."""

    values: Array
    covariance_PP: Array
    """Of their logarithms."""
    residual: float
    """Standard deviation of log(measured / modelled)."""

    @property
    def spread(self) -> Array:
        """Standard deviation of each parameter, relative."""
        return np.asarray(np.sqrt(np.diag(self.covariance_PP)))

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Other parameters that the same measurements allow, `(count, P)`; all positive."""
        logs = rng.multivariate_normal(np.log(self.values), self.covariance_PP, count, method="eigh")
        return np.asarray(np.exp(logs))


def fit(model: Model, measured: Sequence[float], start: Sequence[float] | Array) -> Fit:
    """Least squares of log(measured / modelled) in the parameters' logarithms (Levenberg and Marquardt).

    A parameter that the measurements do not tell is no more than a guess, and its spread says so.

    Args:
        measured: seconds, positive.
        start: a guess of each parameter, positive.
    """
    seconds = np.asarray(measured, dtype=np.float64)
    logs = np.log(np.asarray(start, dtype=np.float64))
    damping, left = 1e-3, _residuals(model, seconds, logs)
    slopes_NP = _slopes(model, seconds, logs, left)
    for _ in range(_ITERATIONS):
        normal_PP, towards_P = slopes_NP.T @ slopes_NP, slopes_NP.T @ left
        damped = normal_PP + np.diag(damping * np.diag(normal_PP) + 1e-9)
        trial = logs + np.clip(-np.linalg.solve(damped, towards_P), -_MOST, _MOST)
        after = _residuals(model, seconds, trial)
        gain = float(left @ left - after @ after)
        if gain < 0:
            damping *= 10
            if damping > 1e12:
                break
            continue
        enough = gain <= 1e-12 * float(left @ left) + 1e-18
        logs, left, damping = trial, after, max(damping / 10, 1e-12)
        if enough:
            break
        slopes_NP = _slopes(model, seconds, logs, left)
    slopes_NP = _slopes(model, seconds, logs, left)
    variance = float(left @ left) / max(1, len(seconds) - len(logs))
    # A weak prior of one in the logarithm, for what the measurements say nothing of.
    weak = max(variance, 1e-12) / _LOOSE**2
    inverse_PP = np.linalg.inv(slopes_NP.T @ slopes_NP + weak * np.eye(len(logs)))
    covariance_PP = np.asarray(max(variance, 1e-12) * inverse_PP, dtype=np.float64)
    return Fit(np.exp(logs), covariance_PP, math.sqrt(variance))


def _residuals(model: Model, measured: Array, logs: Array) -> Array:
    modelled = np.maximum(np.asarray(model(np.exp(logs)), dtype=np.float64), _LEAST)
    return np.asarray(np.log(modelled / measured))


def _slopes(model: Model, measured: Array, logs: Array, left: Array) -> Array:
    """Derivatives of the residuals, `(N, P)`, by differences."""
    columns = []
    for k in range(len(logs)):
        moved = logs.copy()
        moved[k] += _STEP
        columns.append((_residuals(model, measured, moved) - left) / _STEP)
    return np.stack(columns, axis=1)
