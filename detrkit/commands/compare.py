"""Train detectors with Align-DETR's supervision and with their own, several seeds each, and tell gains from noise.

    align-detr compare [--pairs CONFIG:BASELINE ...] [--seeds 1 2 3] [--max-iter N] [--jobs N] [--output FOLDER] \\
        [key=value ...]

A pair is two configs that differ in the supervision; several may have one baseline. `key=value` goes for all runs.
After each training, align-detr analyze looks at all decoder layers of the model.

Every run is an `align-detr train` in a folder of its own. Interrupted or failed, the same command goes on where it
was: finished runs are kept, others resume from their last checkpoint. Writes results.json, table.md and comparison.png.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from detrkit.commands.command_line import finish
from detrkit.config.catalogue import find_config
from detrkit.config.load import load_config
from detrkit.experiments import seeds
from detrkit.experiments.runs import (
    METRIC,
    METRICS,
    Run,
    Setting,
    add_options,
    carry_out,
    check_counts,
    make_run,
    parse_words,
    relative,
)

PAIRS = ("align_detr_tiny:dino_tiny", "align_h_deformable_detr_tiny:h_deformable_detr_tiny")

Pair = tuple[Path, Path]


def parse_pairs(words: Sequence[str]) -> list[Pair]:
    """Each `CONFIG:BASELINE`, paths or names.

    Raises:
        ValueError: a word is of another form, or two configs have one name, and so one folder.
        FileNotFoundError: no such config.
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
    return [(find_config(config), find_config(baseline)) for config, baseline in pairs]


def plan(args: argparse.Namespace, pairs: Sequence[Pair]) -> list[Run]:
    """All runs, seed by seed, so that every config has a run early; finished ones with their results.

    Raises:
        ValueError: a folder holds a run of another config.
    """
    configs = list(dict.fromkeys(itertools.chain(*pairs)))
    return [
        make_run(args.output, Setting(config.stem, config), seed, args.opts, args.max_iter, analyze=True)
        for seed, config in itertools.product(args.seeds, configs)
    ]


def summarize(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[dict]:
    """`seeds.summarize` of each baseline with the configs that are compared with it, the baseline first; the deviation
    is pooled over them."""
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
    """Markdown, with what one needs to know to read it."""
    rows = [row for family in families for row in family["settings"]]
    titles = [f"{row['name']}, {row['max_iter']} iterations" for row in rows]
    text = (
        "Mean ± standard deviation over n seeds, of the last evaluation; AP in %. The last column has the difference "
        f"of mean AP from the detector's own supervision and its {seeds.CONFIDENCE:.0%} interval (Student's t); "
        "within noise: the interval contains 0. Boxes per object: predictions that score 0.3 or more. BR in top N: the "
        "share of objects whose best box is among an image's N highest scores. Pearson, Spearman: correlation of score "
        "and IoU of the matched predictions. Same query: the share of objects matched to one query in a decoder layer "
        "and the next."
    )
    missing = sum(planned - row["n"] for row in rows)
    if missing:
        text = f"**{missing} of {planned * len(rows)} runs are still to come, or failed.** {text}"
    return f"{seeds.table(rows, titles, METRICS, 'AP − baseline')}\n\n{text}\n"


def draw(families: Sequence[Mapping]) -> Figure:
    rows = [row for family in families for row in family["settings"]]
    return seeds.draw_rows(rows, [row["name"] for row in rows], METRIC, "box AP (%)", "Own supervision and ours")


def compare(args: argparse.Namespace) -> bool:
    """Trains and reports; returns whether all runs succeeded."""
    check_counts(args.seeds, args.jobs, args.max_iter)
    pairs = parse_pairs(args.pairs or PAIRS)
    runs = plan(args, pairs)
    device = load_config(str(pairs[0][0]), args.opts).train.device

    def report() -> tuple[dict, str]:
        families = summarize(runs, pairs)
        return {"families": families}, make_table(families, len(args.seeds))

    return carry_out(
        args,
        runs,
        f"{len(runs)} runs",
        {"device": str(device)},
        report,
        lambda: draw(summarize(runs, pairs)),
        "comparison.png",
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", nargs="+", metavar="CONFIG:BASELINE", help="(default: the tiny DINO, H-DETR and DAB-DETR)"
    )
    add_options(parser, [1, 2, 3], "output/detectors")
    return parse_words(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    finish(lambda: compare(args), "the same command goes on from here")
