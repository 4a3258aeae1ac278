"""The configs of the projects and the baselines: their files, models, schedules and published results."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import align_detr
from align_detr._platform import EMBEDDED_ROOT
from detrkit.config.projects import PROJECT_NAMES

# A wheel has the projects side by side, and this folder inside `align_detr`; a checkout has it beside `projects/`.
PROJECTS = Path(align_detr.__file__).resolve().parents[1]
CONFIGS = EMBEDDED_ROOT.parent / "configs"


class Entry(NamedTuple):
    """A row of `align-detr configs`.

    Attributes:
        schedule: passes over COCO's training images; for a small config, iterations and batch size.
        parameters: millions.
        ap: the paper's box AP on COCO val2017, in %; None if the paper has none. No value was reproduced here.
    """

    model: str
    backbone: str
    schedule: str
    parameters: float
    ap: float | None = None


ENTRIES = {
    "align_conditional_detr_r101_50ep": Entry("Align-DETR on Conditional DETR", "R101", "50 epochs", 62.36),
    "align_conditional_detr_r50_50ep": Entry("Align-DETR on Conditional DETR", "R50", "50 epochs", 43.42),
    "align_conditional_detr_r50_dc5_50ep": Entry("Align-DETR on Conditional DETR", "R50-DC5", "50 epochs", 43.42),
    "align_conditional_detr_tiny": Entry("Align-DETR on Conditional DETR", "small", "8000 x 4 images", 4.64),
    "align_dab_detr_r101_50ep": Entry("Align-DETR on DAB-DETR", "R101", "50 epochs", 62.61),
    "align_dab_detr_r101_dc5_50ep": Entry("Align-DETR on DAB-DETR", "R101-DC5", "50 epochs", 62.61, 49.3),
    "align_dab_detr_r50_50ep": Entry("Align-DETR on DAB-DETR", "R50", "50 epochs", 43.67, 46.0),
    "align_dab_detr_r50_dc5_50ep": Entry("Align-DETR on DAB-DETR", "R50-DC5", "50 epochs", 43.67, 48.3),
    "align_dab_detr_tiny": Entry("Align-DETR on DAB-DETR", "small", "5400 x 4 images", 4.94),
    "align_detr_bccd": Entry("Align-DETR on DINO", "small", "2000 x 4 images", 4.25),
    "align_detr_demo": Entry("Align-DETR on DINO", "small", "700 x 8 images", 3.5),
    "align_detr_lite0_4scale": Entry("Align-DETR on DINO", "Lite0", "12 epochs", 4.89),
    "align_detr_lite0_bccd": Entry("Align-DETR on DINO", "Lite0", "2000 x 8 images", 4.84),
    "align_detr_lite0_neu_det": Entry("Align-DETR on DINO", "Lite0", "6000 x 8 images", 4.84),
    "align_detr_r101_4scale_12ep": Entry("Align-DETR on DINO", "R101", "12 epochs", 66.59),
    "align_detr_r101_4scale_24ep": Entry("Align-DETR on DINO", "R101", "24 epochs", 66.59),
    "align_detr_r50_4scale_12ep": Entry("Align-DETR on DINO", "R50", "12 epochs", 47.65, 50.2),
    "align_detr_r50_4scale_12ep_align_loss": Entry("Align-DETR on DINO", "R50", "12 epochs", 47.65, 50.5),
    "align_detr_r50_4scale_24ep": Entry("Align-DETR on DINO", "R50", "24 epochs", 47.65, 51.3),
    "align_detr_r50_4scale_24ep_align_loss": Entry("Align-DETR on DINO", "R50", "24 epochs", 47.65, 51.7),
    "align_detr_r50_4scale_36ep": Entry("Align-DETR on DINO", "R50", "36 epochs", 47.65),
    "align_detr_swin_base_384_4scale_12ep": Entry("Align-DETR on DINO", "Swin-B", "12 epochs", 108.26),
    "align_detr_swin_large_384_4scale_12ep": Entry("Align-DETR on DINO", "Swin-L", "12 epochs", 217.99),
    "align_detr_swin_large_384_5scale_12ep": Entry("Align-DETR on DINO", "Swin-L", "12 epochs", 218.33),
    "align_detr_swin_large_384_5scale_36ep": Entry("Align-DETR on DINO", "Swin-L", "36 epochs", 218.33),
    "align_detr_swin_small_224_4scale_12ep": Entry("Align-DETR on DINO", "Swin-S", "12 epochs", 69.51),
    "align_detr_swin_tiny_224_4scale_12ep": Entry("Align-DETR on DINO", "Swin-T", "12 epochs", 48.19),
    "align_detr_timm_4scale_12ep": Entry("Align-DETR on DINO", "timm", "12 epochs", 48.49),
    "align_detr_tiny": Entry("Align-DETR on DINO", "small", "2400 x 4 images", 4.23),
    "align_detr_vitdet_base_4scale_12ep": Entry("Align-DETR on DINO", "ViT-B", "12 epochs", 108.15),
    "align_detr_vitdet_base_4scale_50ep": Entry("Align-DETR on DINO", "ViT-B", "50 epochs", 108.15),
    "align_detr_vitdet_large_4scale_12ep": Entry("Align-DETR on DINO", "ViT-L", "12 epochs", 326.78),
    "align_detr_vitdet_large_4scale_50ep": Entry("Align-DETR on DINO", "ViT-L", "50 epochs", 326.78),
    "align_h_deformable_detr_r50_two_stage_12ep": Entry("Align-DETR on H-DETR", "R50", "12 epochs", 47.93, 49.3),
    "align_h_deformable_detr_r50_two_stage_36ep": Entry("Align-DETR on H-DETR", "R50", "36 epochs", 47.93),
    "align_h_deformable_detr_swin_large_two_stage_12ep": Entry("Align-DETR on H-DETR", "Swin-L", "12 epochs", 218.06),
    "align_h_deformable_detr_swin_large_two_stage_36ep": Entry("Align-DETR on H-DETR", "Swin-L", "36 epochs", 218.06),
    "align_h_deformable_detr_swin_tiny_two_stage_12ep": Entry("Align-DETR on H-DETR", "Swin-T", "12 epochs", 48.47),
    "align_h_deformable_detr_swin_tiny_two_stage_36ep": Entry("Align-DETR on H-DETR", "Swin-T", "36 epochs", 48.47),
    "align_h_deformable_detr_tiny": Entry("Align-DETR on H-DETR", "small", "2400 x 4 images", 4.32),
    "co_align_detr_tiny": Entry("Align-DETR on Co-DINO", "small", "2400 x 4 images", 8.51),
    "co_align_detr_tiny_equal_time": Entry("Align-DETR on Co-DINO", "small", "1200 x 4 images", 8.51),
    "co_deformable_detr_r50_12ep": Entry("Co-Deformable-DETR", "R50", "12 epochs", 65.08, 49.5),
    "co_deformable_detr_swin_base_12ep": Entry("Co-Deformable-DETR", "Swin-B", "12 epochs", 125.68, 55.5),
    "co_deformable_detr_swin_base_36ep": Entry("Co-Deformable-DETR", "Swin-B", "36 epochs", 125.68, 57.5),
    "co_deformable_detr_swin_large_12ep": Entry("Co-Deformable-DETR", "Swin-L", "12 epochs", 235.41, 56.9),
    "co_deformable_detr_swin_large_36ep": Entry("Co-Deformable-DETR", "Swin-L", "36 epochs", 235.57, 58.5),
    "co_deformable_detr_swin_small_12ep": Entry("Co-Deformable-DETR", "Swin-S", "12 epochs", 86.94, 53.4),
    "co_deformable_detr_swin_small_36ep": Entry("Co-Deformable-DETR", "Swin-S", "36 epochs", 86.94, 55.3),
    "co_deformable_detr_swin_tiny_12ep": Entry("Co-Deformable-DETR", "Swin-T", "12 epochs", 65.62, 51.7),
    "co_deformable_detr_swin_tiny_36ep": Entry("Co-Deformable-DETR", "Swin-T", "36 epochs", 65.62, 54.1),
    "co_deformable_detr_tiny": Entry("Co-Deformable-DETR", "small", "2400 x 4 images", 8.97),
    "co_dino_lite0_4scale": Entry("Co-DINO", "Lite0", "12 epochs", 7.42),
    "co_dino_r50_4scale_12ep": Entry("Co-DINO", "R50", "12 epochs", 64.79),
    "co_dino_r50_5scale_12ep": Entry("Co-DINO", "R50", "12 epochs", 65.15, 52.1),
    "co_dino_r50_5scale_12ep_lsj": Entry("Co-DINO", "R50", "12 epochs", 65.15, 52.1),
    "co_dino_r50_5scale_12ep_lvis": Entry("Co-DINO on LVIS", "R50", "12 epochs", 75.8),
    "co_dino_r50_5scale_36ep_lsj": Entry("Co-DINO", "R50", "36 epochs", 65.15, 54.8),
    "co_dino_swin_large_5scale_12ep": Entry("Co-DINO", "Swin-L", "12 epochs", 235.47, 58.9),
    "co_dino_swin_large_5scale_12ep_lsj": Entry("Co-DINO", "Swin-L", "12 epochs", 235.47, 59.3),
    "co_dino_swin_large_5scale_16ep_o365": Entry("Co-DINO", "Swin-L", "16 epochs", 235.47, 64.1),
    "co_dino_swin_large_5scale_16ep_o365_lvis": Entry("Co-DINO on LVIS", "Swin-L", "16 epochs", 246.12),
    "co_dino_swin_large_5scale_36ep": Entry("Co-DINO", "Swin-L", "36 epochs", 235.47, 60.0),
    "co_dino_swin_large_5scale_36ep_lsj": Entry("Co-DINO", "Swin-L", "36 epochs", 235.47, 60.7),
    "co_dino_swin_large_5scale_36ep_lsj_lvis": Entry("Co-DINO on LVIS", "Swin-L", "36 epochs", 246.12),
    "co_dino_tiny": Entry("Co-DINO", "small", "2400 x 4 images", 8.51),
    "co_dino_tiny_equal_time": Entry("Co-DINO", "small", "1200 x 4 images", 8.51),
    "co_dino_vit_large_5scale_12ep": Entry("Co-DINO", "ViT-L", "12 epochs", 365.37, 65.9),
    "co_dino_vit_large_5scale_16ep_lvis": Entry("Co-DINO on LVIS", "ViT-L", "16 epochs", 374.88),
    "sd_detr_r101_50ep": Entry("SD-DETR", "R101", "50 epochs", 71.52),
    "sd_detr_r50_50ep": Entry("SD-DETR", "R50", "50 epochs", 52.58, 45.5),
    "sd_detr_r50_dc5_50ep": Entry("SD-DETR", "R50-DC5", "50 epochs", 52.58),
    "sd_detr_tiny": Entry("SD-DETR", "small", "8000 x 4 images", 6.71),
    "conditional_detr_r101_50ep": Entry("Conditional DETR", "R101", "50 epochs", 62.36),
    "conditional_detr_r101_dc5_50ep": Entry("Conditional DETR", "R101-DC5", "50 epochs", 62.36),
    "conditional_detr_r50_50ep": Entry("Conditional DETR", "R50", "50 epochs", 43.42, 41.0),
    "conditional_detr_r50_dc5_50ep": Entry("Conditional DETR", "R50-DC5", "50 epochs", 43.42),
    "conditional_detr_tiny": Entry("Conditional DETR", "small", "8000 x 4 images", 4.64),
    "dab_detr_r101_50ep": Entry("DAB-DETR", "R101", "50 epochs", 62.61),
    "dab_detr_r101_dc5_50ep": Entry("DAB-DETR", "R101-DC5", "50 epochs", 62.61),
    "dab_detr_r50_50ep": Entry("DAB-DETR", "R50", "50 epochs", 43.67, 42.2),
    "dab_detr_r50_dc5_50ep": Entry("DAB-DETR", "R50-DC5", "50 epochs", 43.67),
    "dab_detr_tiny": Entry("DAB-DETR", "small", "5400 x 4 images", 4.94),
    "deformable_detr_r50_two_stage_50ep": Entry("Deformable DETR", "R50", "50 epochs", 41.16),
    "dino_bccd": Entry("DINO", "small", "2000 x 4 images", 4.25),
    "dino_demo": Entry("DINO", "small", "700 x 8 images", 3.5),
    "dino_lite0_4scale": Entry("DINO", "Lite0", "12 epochs", 4.89),
    "dino_lite0_bccd": Entry("DINO", "Lite0", "2000 x 8 images", 4.84),
    "dino_lite0_neu_det": Entry("DINO", "Lite0", "6000 x 8 images", 4.84),
    "dino_r101_4scale_12ep": Entry("DINO", "R101", "12 epochs", 66.59),
    "dino_r50_4scale_12ep": Entry("DINO", "R50", "12 epochs", 47.65),
    "dino_r50_4scale_24ep": Entry("DINO", "R50", "24 epochs", 47.65),
    "dino_r50_4scale_36ep": Entry("DINO", "R50", "36 epochs", 47.65),
    "dino_r50_5scale_12ep": Entry("DINO", "R50", "12 epochs", 48.01),
    "dino_r50_5scale_24ep": Entry("DINO", "R50", "24 epochs", 48.01),
    "dino_r50_5scale_36ep": Entry("DINO", "R50", "36 epochs", 48.01),
    "dino_swin_base_384_4scale_12ep": Entry("DINO", "Swin-B", "12 epochs", 108.26),
    "dino_swin_large_384_4scale_12ep": Entry("DINO", "Swin-L", "12 epochs", 217.99),
    "dino_swin_large_384_5scale_12ep": Entry("DINO", "Swin-L", "12 epochs", 218.33),
    "dino_swin_large_384_5scale_36ep": Entry("DINO", "Swin-L", "36 epochs", 218.33),
    "dino_swin_small_224_4scale_12ep": Entry("DINO", "Swin-S", "12 epochs", 69.51),
    "dino_swin_tiny_224_4scale_12ep": Entry("DINO", "Swin-T", "12 epochs", 48.19),
    "dino_timm_4scale_12ep": Entry("DINO", "timm", "12 epochs", 48.49),
    "dino_tiny": Entry("DINO", "small", "2400 x 4 images", 4.23),
    "dino_vitdet_base_4scale_12ep": Entry("DINO", "ViT-B", "12 epochs", 108.15),
    "dino_vitdet_base_4scale_50ep": Entry("DINO", "ViT-B", "50 epochs", 108.15),
    "dino_vitdet_large_4scale_12ep": Entry("DINO", "ViT-L", "12 epochs", 326.78),
    "dino_vitdet_large_4scale_50ep": Entry("DINO", "ViT-L", "50 epochs", 326.78),
    "h_deformable_detr_r50_two_stage_12ep": Entry("H-DETR", "R50", "12 epochs", 47.93, 48.7),
    "h_deformable_detr_r50_two_stage_36ep": Entry("H-DETR", "R50", "36 epochs", 47.93, 50.0),
    "h_deformable_detr_swin_large_two_stage_12ep": Entry("H-DETR", "Swin-L", "12 epochs", 218.06, 55.9),
    "h_deformable_detr_swin_large_two_stage_36ep": Entry("H-DETR", "Swin-L", "36 epochs", 218.06, 57.1),
    "h_deformable_detr_swin_tiny_two_stage_12ep": Entry("H-DETR", "Swin-T", "12 epochs", 48.47, 50.6),
    "h_deformable_detr_swin_tiny_two_stage_36ep": Entry("H-DETR", "Swin-T", "36 epochs", 48.47, 53.2),
    "h_deformable_detr_tiny": Entry("H-DETR", "small", "2400 x 4 images", 4.32),
}
NOTE = "Parameters in millions. AP: the paper's box AP on COCO val2017, in %; no value was reproduced here."


def _folders() -> list[Path]:
    return [*(PROJECTS / name / "configs" for name in PROJECT_NAMES), CONFIGS / "baselines"]


def config_files() -> dict[str, Path]:
    """Return the config files of all projects and the baselines by name."""
    return {path.stem: path for folder in _folders() for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def is_config(name: str) -> bool:
    """Whether `config_files` has a name; without reading the folders."""
    if name == "__init__" or Path(name).name != name:
        return False
    return any((folder / f"{name}.py").is_file() for folder in _folders())


def find_config(config: str, *, trainings: bool = False) -> Path:
    """Find the file of a config by its path or, if there is no such file, by its name in `config_files`.

    Args:
        trainings: whether the caller also accepts the folder of a training; the message then has such folders too.

    Raises:
        FileNotFoundError: there is neither. The message has similar names and paths.
    """
    path = Path(config)
    if path.is_file():
        return path
    named = config_files()
    if config in named:
        return named[config]
    folders = [file.parent for file in path.parent.glob("*/config.yaml")] if trainings else []
    beside = sorted(map(str, [*path.parent.glob("*.py"), *folders]))
    is_path = path.suffix or len(path.parts) > 1
    near = get_close_matches(config, beside, n=3) or get_close_matches(path.stem, named, n=3)
    lists = "" if is_path else "; `align-detr configs` lists those that have a name"
    hint = f"; did you mean {' or '.join(near)}?" if near else lists
    raise FileNotFoundError(f"no such config: {config}{hint}")
