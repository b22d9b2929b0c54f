"""Note vectors to standard deviations from the mean of the train rows.

Vectors of a language model share most of their length, whatever is said: without that mean, and on a scale of their
own, what differs between patients would be small beside it.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

_MAX_SCALED = 10.0


@dataclass(frozen=True, eq=False)
class NoteScaler:
    """Mean and inverse standard deviation (0 where constant) of each entry, over the train rows that have notes."""

    mean: Float[np.ndarray, "D"]
    inverse_std: Float[np.ndarray, "D"]

    @classmethod
    def fit(cls, vectors: Float[np.ndarray, "N D"], has_notes: Bool[np.ndarray, "N"]) -> "NoteScaler":
        """From train rows. Where none of them has notes every vector scales to zeros."""
        width = vectors.shape[1]
        if not has_notes.any():
            return cls(np.zeros(width, np.float32), np.zeros(width, np.float32))
        seen = vectors[has_notes]
        mean, std = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
        is_constant = std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
        inverse_std = np.where(is_constant, 0, 1 / np.where(is_constant, 1, std))
        return cls(mean.astype(np.float32), inverse_std.astype(np.float32))

    def scale(self, vectors: Float[np.ndarray, "N D"], has_notes: Bool[np.ndarray, "N"]) -> Float[np.ndarray, "N D"]:
        """In standard deviations from the train mean, at most 10; zeros without notes. ValueError for another width."""
        if vectors.shape[1] != len(self.mean):
            raise ValueError(
                f"note vectors have width {vectors.shape[1]}, those that the scaler was fitted on {len(self.mean)}: "
                "fit it on the train rows with these vectors."
            )
        scaled = np.clip((vectors - self.mean) * self.inverse_std, -_MAX_SCALED, _MAX_SCALED)
        return np.where(has_notes[:, None], scaled, np.float32(0))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NoteScaler)
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.inverse_std, other.inverse_std)
        )

    def save(self, path: str | Path) -> None:
        """Write as .npz."""
        with Path(path).open("wb") as file:
            np.savez(file, mean=self.mean, inverse_std=self.inverse_std)

    @classmethod
    def load(cls, path: str | Path) -> "NoteScaler":
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the file."""
        try:
            # Opened here, since np.load leaves a broken archive open.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["mean"], arrays["inverse_std"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: is not a saved scaler of notes ({error}): fit it again.") from error
