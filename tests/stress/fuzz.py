#!/usr/bin/env python
"""Feeds the tools mutated annotation files, configs, override strings and images, and counts what becomes of them.

    python tests/stress/fuzz.py --cases 10000 [--seed 0] [--only annotations]

Each case either works or ends in one line of error. Anything else (a traceback, more than 20 seconds) is told with its
kind and number, and makes the exit status 1. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARES = {"annotations": 0.4, "images": 0.1, "yaml": 0.15, "python": 0.1, "overrides": 0.25}
SECONDS = 20
ODD = [None, True, -1, 0, 1, 10**30, -(10**18), 1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd", "<b>"]
ODD += ["\x00", "é" * 300, [], {}, [[]], {"a": {}}, [1, 2], "1", 0.5, b"".decode(), 2**63, -0.0]
VALUES = ["1", "-1", "1e400", "[1,2", "{a: 1}", "null", "${x}", "'", "a,b", "inf", "True", "\x00", "é", ""]
TEXTS = [b":", b"!!python/name:os.system", b"&a *a", b"{", b"]", b"\n  ", b"\t", b"${..x}"]


def mutate(value, draw: random.Random, times: int):
    """A copy of JSON-like data with a few places changed, dropped, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(times):
        node, parent, key = value, None, None
        while isinstance(node, dict | list) and node and (parent is None or draw.random() < 0.8):
            parent = node
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            node = node[key]
        if parent is None:
            return draw.choice(ODD)
        what = draw.randrange(4)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[draw.randrange(len(parent))]))
        elif what == 2 and isinstance(node, int | float) and not isinstance(node, bool):
            parent[key] = draw.choice([-node, node + 1, node * 1000, str(node), node / 3, [node]])
        else:
            parent[key] = copy.deepcopy(draw.choice(ODD))
    return value


def mutate_text(text: bytes, draw: random.Random) -> bytes:
    """A few bytes, or lines, changed, dropped or doubled."""
    text = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        if not text:
            break
        at, length = draw.randrange(len(text)), draw.randint(1, 12)
        what = draw.randrange(5)
        if what == 0:
            text[at] = draw.randrange(256)
        elif what == 1:
            del text[at : at + length]
        elif what == 2:
            text[at:at] = text[at : at + length]
        elif what == 3:
            text[at:at] = draw.choice(TEXTS)
        else:
            lines = bytes(text).splitlines(keepends=True)
            draw.shuffle(lines[: draw.randint(1, 5)])
            del lines[draw.randrange(len(lines))]
            text = bytearray(b"".join(lines))
    return bytes(text)


class Cases:
    """Makes a case of each kind, and does with it what the tools do."""

    def __init__(self, folder: Path):
        import mixed_data
        from detectron2.config import LazyConfig
        from PIL import Image

        from detrkit.config.load import load_config

        self.folder, self.load_config = folder, load_config
        mixed_data.write(folder / "data", train=4, val=2)
        os.environ["MIXED_DATA"] = str(folder / "data")
        self.config = str(HERE.parent / "detrkit" / "commands" / "mixed_config.py")
        cfg = self.load_config(self.config, [])
        tiny = HERE.parents[1] / "projects" / "align_detr" / "configs" / "align_detr_tiny.py"
        LazyConfig.save(self.load_config(str(tiny), []), str(folder / "config.yaml"))
        self.yaml = (folder / "config.yaml").read_bytes()
        self.python = (HERE.parents[1] / "configs" / "common" / "train.py").read_bytes()
        self.json = json.loads((folder / "data" / "annotations" / "val.json").read_text())
        self.keys = [f"{a}.{b}" for a in ("train", "model", "optimizer", "dataloader.train") for b in cfg_keys(cfg, a)]
        paths = sorted((folder / "data" / "val").glob("*.png"))
        self.pngs = [(path.read_bytes(), Image.open(path).size) for path in paths]

    def annotations(self, draw: random.Random) -> None:
        from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
        from detectron2.evaluation import COCOEvaluator

        from detrkit.datasets import register_coco
        from detrkit.datasets.annotations import annotations_explained

        path = self.folder / "mutated.json"
        content = mutate(self.json, draw, draw.randint(1, 4))
        text = json.dumps(content).encode()
        path.write_bytes(mutate_text(text, draw) if draw.random() < 0.2 else text)
        if "mutated" in DatasetCatalog.list():
            DatasetCatalog.remove("mutated")
            MetadataCatalog.remove("mutated")
        register_coco("mutated", path, self.folder / "data" / "val")
        with annotations_explained("mutated"):
            images = get_detection_dataset_dicts("mutated", filter_empty=draw.random() < 0.5)
            mapped = [train_mapper()(image) for image in images[:2]]
            evaluator = COCOEvaluator("mutated", output_dir=None)
            evaluator.reset()
            evaluator.process(images[:2], [{"instances": detections(item["image"])} for item in mapped])
            evaluator.evaluate()

    def images(self, draw: random.Random) -> None:
        from detectron2.data import detection_utils

        path = self.folder / "mutated.png"
        content, (width, height) = draw.choice(self.pngs)
        if draw.random() < 0.3:
            content = content[: draw.randrange(len(content))]
        path.write_bytes(mutate_text(content, draw))
        image = detection_utils.read_image(str(path), "RGB")
        detection_utils.check_image_size({"file_name": str(path), "width": width, "height": height}, image)

    def yaml_(self, draw: random.Random) -> None:
        path = self.folder / "mutated.yaml"
        path.write_bytes(mutate_text(self.yaml, draw))
        self.load_config(str(path), ["train.max_iter=3"])

    def python_(self, draw: random.Random) -> None:
        path = self.folder / "mutated.py"
        path.write_bytes(mutate_text(self.python, draw))
        self.load_config(str(path), ["train.max_iter=3"])

    def overrides(self, draw: random.Random) -> None:
        value = draw.choice(VALUES)
        sign, equals = draw.choice(["", "", "+", "~", "++"]), draw.choice(["=", "=", "", "==", ".0="])
        text = f"{sign}{draw.choice(self.keys)}{equals}{value}"
        if draw.random() < 0.6:
            text = mutate_text(text.encode(), draw).decode(errors="replace")
        self.load_config(self.config, [text])


def cfg_keys(cfg, group: str) -> list[str]:
    from omegaconf import OmegaConf

    return [str(key) for key in OmegaConf.select(cfg, group)]


def train_mapper():
    from detectron2.data import transforms as T
    from detrex.data import DetrDatasetMapper

    return DetrDatasetMapper([T.RandomFlip()], None)


def detections(image):
    import torch
    from detectron2.structures import Boxes, Instances

    found = Instances(tuple(image.shape[1:]))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    return found


def outcome(case: Callable[[random.Random], None], draw: random.Random) -> str:
    """"works", "one line", or what went wrong."""
    from detrkit.commands import command_line

    def too_long(signum, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with command_line.errors_in_one_line():
                case(draw)
        return "works"
    except SystemExit as stop:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        is_clear = stop.code == 1 and len(lines) == 1 and len(lines[0]) > len("error: ")
        return "one line" if is_clear and "TimeoutError" not in lines[0] else f"unclear: {err.getvalue()[-300:]!r}"
    except BaseException:
        return "traceback: " + traceback.format_exc()[-900:]
    finally:
        signal.alarm(0)


def run(cases: int, seed: int = 0, only: str | None = None) -> tuple[dict[str, Counter], list[str]]:
    """({kind: counts}, what went wrong)."""
    logging.disable(logging.CRITICAL)
    try:
        return _run(cases, seed, only)
    finally:
        logging.disable(logging.NOTSET)


def _run(cases: int, seed: int, only: str | None) -> tuple[dict[str, Counter], list[str]]:
    counts: dict[str, Counter] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        kinds = Cases(Path(folder))
        for kind, share in SHARES.items():
            if only not in (None, kind):
                continue
            case = getattr(kinds, f"{kind}_", None) or getattr(kinds, kind)
            counts[kind] = Counter()
            for number in range(round(cases * (share if only is None else 1))):
                result = outcome(case, random.Random(f"{seed} {kind} {number}"))
                counts[kind][result.partition(":")[0]] += 1
                if result not in ("works", "one line"):
                    wrong.append(f"{kind} {number}: {result}")
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SHARES)
    args = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, wrong = run(args.cases, args.seed, args.only)
    for kind, count in counts.items():
        print(f"{kind}: {dict(count)}")
    for text in wrong[:8]:
        print(text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(map(Counter.total, counts.values()))
    print(f"{total} cases, {len(wrong)} wrong; memory {before >> 10} to {peak >> 10} MiB")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent / "detrkit" / "commands"), str(HERE.parents[1] / "tools")]
    import checkout  # noqa: F401  (puts the packages on the path)

    main()
