"""Numbers for the objects of a film, by ByteTrack (arXiv 2110.06864) of the package trackers."""

from __future__ import annotations

import numpy as np

from detrkit.runtime.extras import pip_install

from .detections import Detections

EXTRA = pip_install("track")
LOW_SCORES = 0.5  # factor of the threshold: detections that score less cannot continue a track
NO_TRACK = -1


class Tracker:
    """Follow objects from frame to frame.

    Args:
        rate: frames per second.
        score_threshold: detections that score at least this begin tracks.

    Attributes:
        lowest_score: detections that score at least this continue tracks.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, rate: float, score_threshold: float):
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ValueError(f"--track needs a package, trackers: {EXTRA}") from error
        self._threshold = score_threshold
        self.lowest_score = LOW_SCORES * score_threshold
        self._tracker = ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=score_threshold, high_conf_det_threshold=score_threshold
        )

    def update(self, found: Detections) -> tuple[Detections, np.ndarray]:
        """Match the detections of the next frame to the tracks.

        Args:
            found: those that score `lowest_score` or more.

        Returns:
            The detections that have a track or score `score_threshold` or more, best first, and the numbers (N,) of
            their tracks, from 0; NO_TRACK for an object that only this frame has shown.
        """
        plain = found.to_supervision()
        plain.data["row"] = np.arange(len(found))
        tracked = self._tracker.update(plain)
        tracks = np.full(len(found), NO_TRACK)
        if len(tracked):
            tracks[tracked.data["row"]] = tracked.tracker_id
        keep = (tracks != NO_TRACK) | (found.scores >= self._threshold)
        return found.where(keep), tracks[keep]
