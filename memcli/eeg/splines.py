"""Interpolation of channels over the head by spherical splines.

Source: F. Perrin, J. Pernier, O. Bertrand, J. F. Echallier, Spherical splines for scalp potential
and current density mapping, Electroencephalography and Clinical Neurophysiology 72 (1989), with
order 4, 50 terms and the smoothing 1e-5, as MNE chooses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_ORDER = 4
_TERMS = 50
_SMOOTHING = 1e-5


def sphere_centre(points: Floats) -> Floats:
    """Centre of the sphere that lies closest to `points` [n, 3] (algebraic least squares)."""
    import numpy as np

    system = np.column_stack([2 * points, np.ones(len(points))])
    solution = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0]
    centre: Floats = solution[:3]
    return centre


def spline_weights(known: Floats, wanted: Floats, centre: Floats) -> Floats:
    """Weights [wanted, known] that make values at `wanted` of values at `known`.

    Places are [n, 3] in any unit; only their directions from `centre` count.
    """
    import numpy as np

    source, target = (_directions(points - centre) for points in (known, wanted))
    count = len(source)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = _kernel(source @ source.T) + _SMOOTHING * np.eye(count)
    system[count, count] = 0
    values = np.column_stack([_kernel(target @ source.T), np.ones(len(target))])
    weights: Floats = values @ np.linalg.pinv(system)[:, :count]
    return weights


def _directions(points: Floats) -> Floats:
    import numpy as np

    result: Floats = points / np.linalg.norm(points, axis=1, keepdims=True)
    return result


def _kernel(cosines: Floats) -> Floats:
    import numpy as np

    n = np.arange(1, _TERMS + 1, dtype=np.float64)
    factors = (2 * n + 1) / (n**_ORDER * (n + 1) ** _ORDER * 4 * np.pi)
    result: Floats = np.polynomial.legendre.legval(cosines, np.concatenate([[0.0], factors]))
    return result
