"""Train detectors with Align-DETR's supervision and with their own, and compare the pairs."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from detrkit.config.catalogue import find_config
from detrkit.config.load import load_config
from detrkit.training.folder import (
    BASE_CONFIG,
    CPU_CONFIG,
    default_config,
    print_conversion,
    write_compared_configs,
)

from . import seeds
from .experiment import Options, Report, run_experiment
from .runs import METRIC, METRICS, Run, Setting, make_run, relative

PAIRS = ("align_detr_tiny:dino_tiny", "align_h_deformable_detr_tiny:h_deformable_detr_tiny")

BASELINES = {BASE_CONFIG: "dino_r50_4scale_12ep", CPU_CONFIG: "dino_lite0_4scale"}  # of the configs for a folder

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Folder:
    """A folder of annotated images to compare on.

    Attributes:
        path, format, classes, epochs: as `detrkit.training.folder.write_folder_config` takes them.
    """

    path: Path
    format: str | None = None
    classes: Sequence[str] | None = None
    epochs: int | None = None


def run_comparison(pairs: Sequence[str], options: Options, data: Folder | None = None) -> bool:
    """Train and report the comparison in `options.output`.

    Args:
        pairs: each `CONFIG:BASELINE`, names or paths; empty for `PAIRS`, or for the config that a folder is trained
            with and the same detector's own supervision.
        data: trained on instead of the configs' own datasets.

    Returns:
        Whether all trainings succeeded.

    Raises:
        ValueError: a pair has another form, two configs have the same name, the data cannot be used, or a folder holds
            another training.
        FileNotFoundError: no such config, or folder of images.
    """
    with tempfile.TemporaryDirectory() as scratch:  # a dry run writes nothing
        place = Path(scratch) if options.dry_run else options.output
        paths = write_pairs(data, pairs, options, place) if data else parse_pairs(pairs or PAIRS)
        return _run_pairs(paths, options)


def _run_pairs(paths: Sequence[Pair], options: Options) -> bool:
    """Train and report the pairs; return whether all trainings succeeded."""
    runs = plan(options, paths)
    device = load_config(str(paths[0][0]), options.overrides).train.device

    def summary_and_table() -> tuple[dict, str]:
        families = summarize(runs, paths)
        return {"families": families}, make_table(families, len(options.seeds))

    report = Report(summary_and_table, lambda: draw(summarize(runs, paths)), "comparison.png", {"device": str(device)})
    return run_experiment(runs, report, options, f"{len(runs)} runs")


def write_pairs(data: Folder, words: Sequence[str], options: Options, output: Path) -> list[Pair]:
    """Write a config of a training on a folder for each config of the pairs, and print what the folder holds.

    Args:
        words: the pairs, as for `run_comparison`.
        output: folder of the written configs.

    Returns:
        The pairs of written configs.

    Raises:
        ValueError, FileNotFoundError: as `run_comparison`.
    """
    if not words:
        config = default_config(options.overrides)
        if config not in BASELINES:
            raise ValueError(f"{config} has no baseline by default: name both by --pairs {config}:BASELINE")
        words = [f"{config}:{BASELINES[config]}"]
    names = split_pairs(words)
    configs = list(dict.fromkeys(itertools.chain(*names)))
    overrides = [*options.overrides, *([] if options.max_iter is None else [f"train.max_iter={options.max_iter}"])]
    files, conversion = write_compared_configs(
        data.path,
        configs,
        output,
        overrides,
        format=data.format,
        keep_classes=data.classes,
        epochs=data.epochs,
    )
    print_conversion(conversion)
    file_of = dict(zip(configs, files, strict=True))
    return [(file_of[config], file_of[baseline]) for config, baseline in names]


def parse_pairs(words: Sequence[str]) -> list[Pair]:
    """Each `CONFIG:BASELINE`, paths or names.

    Raises:
        ValueError: a word has another form, or two configs have the same name, which is also their folder's.
        FileNotFoundError: no such config.
    """
    return [(find_config(config), find_config(baseline)) for config, baseline in split_pairs(words)]


def split_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The two words of each `CONFIG:BASELINE`.

    Raises:
        ValueError: as `parse_pairs`.
    """
    pairs = []
    for word in words:
        config, colon, baseline = word.partition(":")
        if not (config and colon and baseline):
            raise ValueError(f"--pairs takes CONFIG:BASELINE, not {word}")
        pairs.append((config, baseline))
    configs = set(itertools.chain(*pairs))
    if len({Path(config).stem for config in configs}) < len(configs):
        raise ValueError("--pairs has two configs of one name")
    return pairs


def plan(options: Options, pairs: Sequence[Pair]) -> list[Run]:
    """All runs, ordered by seed, so that every config has a result early; finished runs have their results.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    configs = list(dict.fromkeys(itertools.chain(*pairs)))
    return [
        make_run(options.output, Setting(config.stem, config), seed, options.overrides, options.max_iter, analyze=True)
        for seed, config in itertools.product(options.seeds, configs)
    ]


def summarize(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[dict]:
    """`seeds.summarize` of each baseline, which comes first, with the configs that are compared with it.

    The deviation is pooled over these configs.
    """
    families = []
    for baseline in dict.fromkeys(baseline for _, baseline in pairs):
        configs = [baseline, *(config for config, its in pairs if its == baseline)]
        members = {c.stem: [run.result for run in runs if run.setting.config == c and run.result] for c in configs}
        family = seeds.summarize(members, baseline.stem, list(METRICS), METRIC)
        for row, config in zip(family["settings"], configs, strict=True):
            row["config"] = relative(config)
            row["max_iter"] = next(run.max_iter for run in runs if run.setting.config == config)
        families.append(family)
    return families


def make_table(families: Sequence[Mapping], planned: int) -> str:
    """The table in Markdown, with a note that explains it; `planned` is the number of seeds."""
    rows = [row for family in families for row in family["settings"]]
    titles = [f"{row['name']}, {row['max_iter']} iterations" for row in rows]
    text = (
        "Mean ± standard deviation over n seeds, of the last evaluation; AP in %. The last column has the difference "
        f"of mean AP from the detector's own supervision and its {seeds.CONFIDENCE:.0%} interval (Student's t); "
        "within noise: the interval contains 0. Boxes per object: predictions that score 0.3 or more. Best boxes in "
        "top N: the share of objects whose best box is among the N highest scores of an image with N objects. Pearson, "
        "Spearman: correlation of score and IoU of the matched predictions. Same query: the share of objects matched "
        "to one query in a decoder layer and the next."
    )
    missing = sum(planned - row["n"] for row in rows)
    if missing:
        text = f"**{missing} of {planned * len(rows)} runs are still to come, or failed.** {text}"
    return f"{seeds.table(rows, titles, METRICS, 'AP − baseline')}\n\n{text}\n"


def draw(families: Sequence[Mapping]) -> Figure:
    """AP of each config."""
    rows = [row for family in families for row in family["settings"]]
    return seeds.draw_rows(rows, [row["name"] for row in rows], METRIC, "box AP (%)", "Own supervision and ours")
