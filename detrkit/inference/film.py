"""Detect objects in films: a film with boxes, and a line of JSON for each frame."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detrkit.runtime.text import plural

from .detections import Detections
from .detector import Detector
from .frames import SUFFIX, Film, FilmWriter, FrameFolder
from .pictures import draw_boxes
from .tracking import NO_TRACK, Tracker


@dataclass(frozen=True)
class FilmOptions:
    """What to keep of the detections, and where to write it.

    Attributes:
        output: folder of `NAME.webm` and `NAME.jsonl` for each film.
        draws: whether to write the film with boxes.
        font: file for the labels; None for one that has their letters.
        score_threshold: leave out detections that score less; None for the detector's.
        top: most detections of a frame.
        batch_size: frames at a time.
        track: number the objects.
        rate: frames per second of folders of images.
    """

    output: Path = Path("output/demo")
    draws: bool = True
    font: str | None = None
    score_threshold: float | None = None
    top: int = 100
    batch_size: int = 4
    track: bool = False
    rate: float = 25.0


@dataclass
class FilmOutcome:
    """Result of `detect_film`.

    Attributes:
        name: of the film.
        written: the files.
        frames, detections: their numbers.
        problem: why the film ended early; "" if it did not.
    """

    name: str
    written: list[Path]
    frames: int = 0
    detections: int = 0
    problem: str = ""

    def line(self) -> str:
        """Return a summary."""
        files = " and ".join(map(str, self.written))
        counts = f"{plural(self.detections, 'detection')} in {plural(self.frames, 'frame')}"
        return f"{self.name}: {counts}: {files}"


def output_files(films: Sequence[Path], options: FilmOptions) -> list[list[Path]]:
    """Return the files to write for each film: JSON lines, and the film with boxes unless it is not wanted.

    Raises:
        ValueError: two films have one name, or a film would be overwritten.
    """
    suffixes = (".jsonl", SUFFIX) if options.draws else (".jsonl",)
    names = [film.resolve().stem for film in films]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two films are called {doubled[0]}: choose another output for each of them")
    files = [[options.output / f"{name}{suffix}" for suffix in suffixes] for name in names]
    inputs = {film.resolve() for film in films}
    for file in (file for pair in files for file in pair):
        if file.resolve() in inputs:
            raise ValueError(f"{file} is among the inputs and would be overwritten: choose another output")
    return files


def detect_film(detector: Detector, film: Path, files: Sequence[Path], options: FilmOptions) -> FilmOutcome:
    """Detect objects in the frames of a film, and write them; a few frames are in memory at once.

    If the film is damaged, what was found until there is kept.

    Args:
        film: a file, or a folder of images.
        files: of `output_files`.

    Raises:
        ValueError, OSError: the film cannot be opened, a package is missing, or a file cannot be written.
    """
    frames = FrameFolder(film, options.rate) if film.is_dir() else Film(film)
    threshold = detector.score_threshold if options.score_threshold is None else options.score_threshold
    tracker = Tracker(frames.rate, threshold) if options.track else None
    outcome = FilmOutcome(frames.name, list(files))
    with ExitStack() as stack:
        stack.callback(frames.close)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        lines = stack.enter_context(files[0].open("w", encoding="utf-8", buffering=1))  # a line at a time
        writer = stack.enter_context(FilmWriter(files[1], frames.rate)) if options.draws else None
        progress = stack.enter_context(tqdm(total=frames.total or None, unit="frame", desc=film.name, disable=None))
        lowest = tracker.lowest_score if tracker else threshold
        for found in _until_damaged(detector(frames, lowest, batch_size=options.batch_size), outcome):
            found, tracks = tracker.update(found) if tracker else (found, None)
            found, tracks = found.where(slice(options.top)), None if tracks is None else tracks[: options.top]
            lines.write(json.dumps(_line(outcome.frames, frames.rate, found, tracks), ensure_ascii=False) + "\n")
            if writer:
                writer.write(draw_boxes(found.pixels, found.boxes, *_labels(found, tracks), options.font))
            outcome.frames += 1
            outcome.detections += len(found)
            progress.update()
    outcome.problem = outcome.problem or frames.problem
    return outcome


def _until_damaged(found: Iterator[Detections], outcome: FilmOutcome) -> Iterator[Detections]:
    """Yield detections until an image of a folder cannot be read, and record the reason."""
    try:
        yield from found
    except ValueError as error:
        outcome.problem = str(error)


def _line(frame: int, rate: float, found: Detections, tracks: np.ndarray | None) -> dict:
    entries = found.to_dicts()
    if tracks is not None:
        for entry, track in zip(entries, tracks.tolist(), strict=True):
            entry["track"] = None if track == NO_TRACK else track
    return {"frame": frame, "seconds": round(frame / rate, 4), "detections": entries}


def _labels(found: Detections, tracks: np.ndarray | None) -> tuple[list[str], list[int]]:
    """The label of each box, and the number of its colour: of its class, or of its track."""
    labels = [f"{name} {score:.0%}" for name, score in zip(found.labels, found.scores.tolist(), strict=True)]
    if tracks is None:
        return labels, found.classes.tolist()
    numbers = ["" if track == NO_TRACK else f" #{track}" for track in tracks.tolist()]
    return [f"{label}{number}" for label, number in zip(labels, numbers, strict=True)], (tracks + 1).tolist()


def detect_films(detector: Detector, films: Sequence[Path], options: FilmOptions) -> list[FilmOutcome]:
    """Detect objects in several films; a damaged one is reported on stderr.

    Raises:
        ValueError, OSError: nothing can be written, or a package is missing.
    """
    outcomes = []
    for film, files in zip(films, output_files(films, options), strict=True):
        outcome = detect_film(detector, film, files, options)
        if outcome.problem:
            print(f"error: {outcome.problem}; what was found until there is kept", file=sys.stderr)
        outcomes.append(outcome)
    return outcomes
