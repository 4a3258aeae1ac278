"""What became of a file of weights: one line for the log, all of it for `align-detr weights inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tabulate import tabulate

from detrkit.runtime.text import plural

from .classes import as_classes
from .conversion import Recognised
from .tables import Trace


@dataclass(frozen=True)
class Report:
    """What happened to the tensors of a file on the way to detrex's names.

    Attributes:
        recognised: the file and its format.
        trace: its tensors.
    """

    recognised: Recognised
    trace: Trace

    def line(self) -> str:
        """For the log."""
        trace = self.trace
        parts = [f"{len(trace.renamed)} renamed"]
        reasons = Counter(trace.dropped.values())
        if reasons:
            details = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            parts.append(f"{len(trace.dropped)} dropped ({details})")
        if trace.unknown:
            parts.append(f"{len(trace.unknown)} unknown ({', '.join(trace.unknown[:3])}, ...)")
        return f"{self.recognised.source}: {plural(len(self.recognised.file.state), 'tensor')}: {'; '.join(parts)}"

    def lines(self) -> Iterator[str]:
        """All of it."""
        recognised, trace = self.recognised, self.trace
        yield f"file       {recognised.file.path}"
        known = recognised.format
        yield f"format     {known.title if known else 'this project, detrex or detectron2'}"
        if known:
            yield f"detector   {known.detector}" if known.detector else f"backbone   {known.backbone}"
        yield f"tensors    {len(recognised.file.state)}"
        if recognised.classes:
            classes = as_classes(recognised.classes)
            named = [name for name, is_used in zip(classes.names, classes.used, strict=True) if is_used]
            origin = ", assumed" if recognised.assumed else ""
            examples = ", ".join(named[:5])
            yield f"classes    {len(classes.names)} rows, {len(named)} of them named{origin}: {examples}, ..."
        yield from self._table("settings", ["config key", "value"], list(recognised.settings.items()))
        if known:
            requirements = known.requirements(recognised.file)
            yield from self._table("required", ["config key", "value"], list(requirements.must_be.items()))
            for note in requirements.notes:
                yield f"note: {note}"
        renamed = [(theirs, ours) for theirs, ours in trace.renamed.items() if theirs != ours]
        yield from self._table("renamed", ["in the file", "here"], renamed)
        if unchanged := len(trace.renamed) - len(renamed):
            yield f"\nunchanged names: {unchanged}"
        yield from self._table("added", ["here", "origin"], list(trace.added.items()))
        yield from self._table("dropped", ["in the file", "reason"], list(trace.dropped.items()))
        yield from self._table("unknown", ["in the file"], [[name] for name in trace.unknown])

    @staticmethod
    def _table(title: str, heads: list[str], rows: list) -> Iterator[str]:
        if rows:
            yield f"\n{title}: {len(rows)}"
            yield tabulate(rows, heads, disable_numparse=True)
