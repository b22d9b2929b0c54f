"""Counter-based randomness: a draw is a pure function of (seed, name, patient, counter); there is no generator state.

Adding patients, reordering draws or splitting the work into blocks changes no draw. The mixing function is the
finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators").
"""

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ODD_3 = np.uint64(0xD6E8FEB86659FD93)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


class Draws:
    """Random draws for n cells, each a (patient, counter) pair, e.g. a visit by its patient and week.

    `name` tells streams apart: the same name gives the same draws again.
    """

    def __init__(self, seed: int, patients: np.ndarray, counters: np.ndarray):
        patients = np.atleast_1d(patients).astype(np.uint64)
        start = np.array([seed], np.int64).view(np.uint64)
        self.keys = _mix(
            _mix(_mix(start + _GOLDEN) + patients * _GOLDEN) + np.asarray(counters).astype(np.uint64) * _ODD_3
        )

    def take(self, rows: np.ndarray) -> "Draws":
        """The same draws for some of the cells only."""
        part = Draws.__new__(Draws)
        part.keys = self.keys[rows]
        return part

    def bits(self, name: str) -> np.ndarray:
        """uint64 [n]."""
        return _mix(self.keys + np.array([zlib.crc32(name.encode())], np.uint64) * _GOLDEN)

    def uniform(self, name: str) -> np.ndarray:
        """float32 [n] in [0, 1): multiples of 2**-24, so never rounded up to 1."""
        return (self.bits(name) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def normal(self, name: str) -> np.ndarray:
        """float32 [n], standard normal by the Box-Muller transform of two halves of the bits."""
        bits = self.bits(name)
        first = ((bits >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
        second = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
        return np.sqrt(-2.0 * np.log(first)) * np.cos(np.float32(2.0 * np.pi) * second)
