"""Register datasets in COCO's format. A config may be loaded several times, so they may be registered again."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .annotations import UnmatchedClasses, class_key, same_classes, shortened
from .normalised import AnnotationFile, normalised_file

logger = logging.getLogger(__name__)

TINY_COCO_ROOT, TINY_COCO = "TINY_COCO_ROOT", "datasets/tiny_coco"
BCCD_ROOT, BCCD = "BCCD_ROOT", "datasets/bccd"
NEU_DET_ROOT, NEU_DET = "NEU_DET_ROOT", "datasets/neu_det"
OURS = ("tiny_coco_train", "tiny_coco_val", "bccd_train", "bccd_val", "neu_det_train", "neu_det_val")
BUILT_IN = frozenset([*DatasetCatalog.list(), *OURS])
# Built-in datasets of detectron2, also where that is not installed, without "_train" and "_val".
DETECTRON2 = ("ade20k_sem_seg", "cityscapes_fine_instance_seg", "cityscapes_fine_sem_seg", "coco_2014", "coco_2017")
DETECTRON2 += ("keypoints_coco_2014", "keypoints_coco_2017", "lvis_v0.5", "lvis_v1", "voc_2007", "voc_2012")
# Of metadata: what a dataset's own file says, and what depends on it.
SOURCE = "source_file"
FROM_FILE = ("name", "json_file", "image_root", "evaluator_type", "thing_classes", "thing_dataset_id_to_contiguous_id")
_orders: dict[str, Sequence[str]] = {}  # of the classes of datasets, by name, as they were registered
_stamps: dict[str, tuple[str, int | None]] = {}  # by name, the annotation file and when it was changed


class Registration(NamedTuple):
    """A dataset as it was registered.

    Attributes:
        source: the user's annotation file; `json_file` of the metadata may be a normalised copy.
        image_root: the folder of its images.
        metadata: further arguments of the registration.
    """

    source: str
    image_root: str
    metadata: Mapping[str, Any]


def register_coco(name: str, json_file: str | Path, image_root: str | Path, **metadata: Any) -> None:
    """Register a dataset in COCO's format for use in a config, which some tools load more than once.

    If the file has ids that pycocotools misunderstands, or lacks areas, boxes or sizes, a normalised copy is used: see
    `normalise` in `detrkit.datasets.annotations`. A file with a mistake that cannot be corrected is registered
    unchanged; loading it raises an error.

    `train.json` and `val.json` may number the same classes differently: datasets with the same classes get the order of
    the first one registered.

    Args:
        name: what `dataloader.….dataset.names` calls it. A dataset of that name is replaced, if it is another one.
        json_file: annotations in COCO's format.
        image_root: the folder that their file names are relative to.
        metadata: further entries of `MetadataCatalog.get(name)`.
    """
    source, image_root = os.fspath(json_file), os.fspath(image_root)
    if name in BUILT_IN:
        logger.warning("%s is also the name of a built-in dataset, which %s replaces", name, source)
    found = None
    try:
        found = normalised_file(source, image_root)
        if not same_classes(found.classes, order := _shared_order(name, found.classes)):
            found = normalised_file(source, image_root, order)
        _orders[name] = order
    except FileNotFoundError:  # it may be written later; loading it raises if it is missing
        pass
    except (ValueError, OSError) as error:
        logger.info("%s: %s", name, error)
    _register(name, Registration(source, image_root, metadata), found)


def own_prefix(prefix: str) -> str:
    """Prefix for the names of a user's datasets: `prefix`; `own_<prefix>` if built-in datasets use it."""
    taken = {*DETECTRON2, *(name.rpartition("_")[0] for name in BUILT_IN)}
    return f"own_{prefix}" if prefix in taken else prefix


def saved_registrations(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Annotation file and image folder of a user's datasets by name, with whole paths, for a config in YAML.

    Built-in datasets are not among them: they are found by environment variables, on other machines too.
    """
    found = {name: registration_of(name) for name in names}
    return {
        name: {"json_file": os.path.abspath(of.source), "image_root": os.path.abspath(of.image_root)}
        for name, of in found.items()
        if of is not None and "root_env" not in of.metadata and (name not in BUILT_IN or SOURCE in _metadata(name))
    }


def register_saved(registrations: Mapping[str, Mapping[str, str]]) -> None:
    """Register datasets as `saved_registrations` returned them, without reading their files.

    Raises:
        ValueError: it has another form.
    """
    for name, paths in registrations.items():
        json_file, image_root = (paths.get(key) for key in ("json_file", "image_root"))
        if not (isinstance(json_file, str) and isinstance(image_root, str)):
            raise ValueError(f"datasets.{name} has no json_file and image_root")
        _register(name, Registration(json_file, image_root, {}), None)


def moved_registrations(
    registrations: Mapping[str, Mapping[str, str]], recorded: str, folder: Path
) -> dict[str, dict[str, str]]:
    """What `saved_registrations` returned in a training, after its folder was moved, renamed or copied.

    Annotation files that lay inside the folder are those of the same place inside it now, if they are there. All else
    is unchanged, such as the folders of images.

    Args:
        recorded: the training's `train.output_dir`, which may be a relative path.
        folder: where the training's folder is now.
    """
    folder = folder.absolute()
    return {
        name: {**paths, "json_file": _moved(paths.get("json_file"), recorded, folder)}
        for name, paths in registrations.items()
    }


def _moved(file: Any, recorded: str, folder: Path) -> Any:
    # The folder that a relative path began from is not recorded, so its last parts have to do.
    parts = tuple(part for part in Path(os.path.normpath(recorded)).parts if part != "..")
    if not isinstance(file, str) or not parts:
        return file
    path = Path(os.path.normpath(file))
    former = next((parent for parent in path.parents if parent.parts[-len(parts) :] == parts), None)
    if former is None or path.is_relative_to(folder):
        return file
    here = folder / path.relative_to(former)
    return str(here) if here.is_file() else file


def _shared_order(name: str, classes: Sequence[str]) -> Sequence[str]:
    """The order in which another dataset has these classes, else their own."""
    keys = sorted(map(class_key, classes))
    for other, order in _orders.items():
        if other != name and other in DatasetCatalog.list() and sorted(map(class_key, order)) == keys:
            return order
    return classes


def registration_of(name: str) -> Registration | None:
    """How a dataset with a COCO annotation file was registered, by whomever; None if it has no such file."""
    if name not in DatasetCatalog.list():
        return None
    known = _metadata(name)
    source, image_root = known.get(SOURCE) or known.get("json_file"), known.get("image_root")
    if known.get("evaluator_type") != "coco" or source is None or image_root is None:
        return None
    rest = {key: value for key, value in known.items() if key not in (*FROM_FILE, SOURCE)}
    return Registration(os.fspath(source), os.fspath(image_root), rest)


def _metadata(name: str) -> dict[str, Any]:
    return MetadataCatalog.get(name).as_dict()


def annotation_file_of(name: str, classes: Sequence[str] | None = None) -> AnnotationFile | None:
    """The normalised annotation file of a dataset; None for a dataset of another kind, or a file that is not local.

    Args:
        classes: see `normalise`.

    Raises:
        UnmatchedClasses: it has objects of other classes.
        ValueError: it has a mistake that cannot be corrected.
    """
    registration = registration_of(name)
    if registration is None or not Path(registration.source).is_file():
        return None
    return normalised_file(registration.source, registration.image_root, classes)


def number_classes(name: str, classes: Sequence[str]) -> AnnotationFile | None:
    """Register a dataset again, with its classes in this order, and a normalised annotation file.

    Args:
        classes: names of a model's outputs. The dataset may lack some of them.

    Returns:
        The annotation file; None for a dataset that cannot be changed, whose classes are in this order.

    Raises:
        UnmatchedClasses: it has objects of other classes; or its classes are in another order, and it cannot be
            changed.
        ValueError: its annotation file has a mistake that cannot be corrected.
    """
    declared = MetadataCatalog.get(name).get("thing_classes")
    is_declared = declared is not None and same_classes(declared, classes)
    if name in BUILT_IN and is_declared:
        return None
    found = annotation_file_of(name, classes)
    if found is None:
        if declared is not None and not is_declared:
            raise UnmatchedClasses(
                f"the dataset {name} has the classes {shortened(declared)}, but the model's are {shortened(classes)}; "
                "if only their order differs, register it by detrkit.datasets.register_coco"
            )
        return None
    _register(name, registration_of(name), found)
    return found


def _register(name: str, registration: Registration, found: AnnotationFile | None) -> None:
    """Register a dataset with the annotation file that was found for it, unless it is registered so already."""
    source, image_root, metadata = registration
    path = found.path if found and found.changes else source
    stamp = (path, _modified(path))
    if name in DatasetCatalog.list():
        if _stamps.get(name) == stamp and registration_of(name) == registration:
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # Evaluators map classes by these two, which are otherwise not there until the dataset has been loaded.
    numbers = {id_: number for number, id_ in enumerate(found.ids)} if found else {}
    classes = {"thing_classes": list(found.classes), "thing_dataset_id_to_contiguous_id": numbers} if found else {}
    register_coco_instances(name, {SOURCE: source, **classes, **metadata}, path, image_root)
    _stamps[name] = stamp


def _modified(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return None


def register_tiny_coco() -> None:
    """Register the dataset that `align-detr make-data` writes, in the folder $TINY_COCO_ROOT names, as
    `tiny_coco_train` and `tiny_coco_val`. The variable is read on each call."""
    root = Path(os.environ.get(TINY_COCO_ROOT, TINY_COCO)).expanduser()
    for split in ("train", "val"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        _register_own(f"tiny_coco_{split}", annotations, root / f"{split}2017", TINY_COCO_ROOT)


def register_bccd() -> None:
    """Register photographs of blood cells, github.com/Shenggan/BCCD_Dataset (MIT licence), in the folder $BCCD_ROOT
    names, as `bccd_train` and `bccd_val`: `train.json` and `val.json` in COCO's format beside its `JPEGImages`. The
    variable is read on each call."""
    root = Path(os.environ.get(BCCD_ROOT, BCCD)).expanduser()
    for split in ("train", "val"):
        _register_own(f"bccd_{split}", root / f"{split}.json", root / "JPEGImages", BCCD_ROOT)


def register_neu_det() -> None:
    """Register photographs of defects of hot-rolled steel, the NEU surface defect database of Northeastern University
    (for research), in the folder $NEU_DET_ROOT names, as `neu_det_train` and `neu_det_val`: `train.json` and `val.json`
    in COCO's format beside its `images`. The variable is read on each call."""
    root = Path(os.environ.get(NEU_DET_ROOT, NEU_DET)).expanduser()
    for split in ("train", "val"):
        _register_own(f"neu_det_{split}", root / f"{split}.json", root / "images", NEU_DET_ROOT)


def register_own_datasets() -> None:
    """Register the datasets of this project's configs. Python configs do so themselves; saved YAML configs cannot."""
    register_tiny_coco()
    register_bccd()
    register_neu_det()


def _register_own(name: str, json_file: Path, image_root: Path, root_variable: str) -> None:
    """Register without opening the files, as every config does this for all datasets of the project."""
    _register(name, Registration(str(json_file), str(image_root), {"root_env": root_variable}), None)
