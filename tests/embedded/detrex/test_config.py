"""Loading the shared configs of the repository."""

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detrex.config import get_config, try_get_key
from omegaconf import OmegaConf


def test_get_config_reads_the_repositorys_configs_afresh():
    """Shared configs load from any folder; changing a loaded config does not change later loads."""
    first = get_config("common/data/coco_detr.py").dataloader
    first.train.total_batch_size = 2
    assert get_config("common/data/coco_detr.py").dataloader.train.total_batch_size == 16


def test_get_config_names_what_there_is():
    """The error for a mistyped shared config lists the existing ones."""
    with pytest.raises(FileNotFoundError, match=r"'common/data/coco.py' in .*configs; .*common/data/coco_detr.py"):
        get_config("common/data/coco.py")


def test_try_get_key():
    """Returns the first existing key; a key with the value None exists."""
    cfg = OmegaConf.create({"train": {"new": 1, "none": None}})
    assert try_get_key(cfg, "train.old", "train.new") == 1
    assert try_get_key(cfg, "train.old", default=3) == 3
    assert try_get_key(cfg, "train.none", default=3) is None


def test_coco_config_is_detrs_recipe():
    """The published augmentation: 480 to 800 pixels by 32 with sides up to 1333, and the crop branch."""
    cfg = get_config("common/data/coco_detr.py").dataloader
    mapper = instantiate(cfg.train.mapper)
    flip, resize = mapper.augmentation.augs
    assert (flip.prob, resize.short_edge_length, resize.max_size) == (0.5, tuple(range(480, 801, 32)), 1333)
    _, first, crop, second = mapper.augmentation_with_crop.augs
    assert (first.short_edge_length, crop.crop_type, crop.crop_size) == ((400, 500, 600), "absolute_range", (384, 600))
    assert (second.short_edge_length, second.max_size) == (resize.short_edge_length, 1333)
    (test_resize,) = instantiate(cfg.test.mapper).augmentation.augs
    assert (test_resize.short_edge_length, test_resize.max_size) == ((800, 800), 1333)
    assert not cfg.test.dataset.filter_empty
    assert cfg.evaluator.dataset_name == cfg.test.dataset.names == "coco_2017_val"


def test_one_override_sets_the_scale_of_both_branches():
    """One override changes the training sizes everywhere."""
    cfg = get_config("common/data/coco_detr.py")
    LazyConfig.apply_overrides(cfg, ["dataloader.train.mapper.augmentation.1.short_edge_length=[64,96]"])
    mapper = instantiate(cfg.dataloader.train.mapper)
    assert mapper.augmentation.augs[1].short_edge_length == (64, 96)
    assert mapper.augmentation_with_crop.augs[3].short_edge_length == (64, 96)


def test_tiny_coco_follows_its_variable(monkeypatch, tmp_path):
    """Each load reads the variable, also if another folder was registered before."""
    for root in (tmp_path / "one", tmp_path / "one", tmp_path / "two"):
        monkeypatch.setenv("TINY_COCO_ROOT", str(root))
        get_config("common/data/tiny_coco.py")
        with pytest.raises(FileNotFoundError, match="TINY_COCO_ROOT") as caught:
            DatasetCatalog.get("tiny_coco_train")
        assert str(root / "annotations" / "instances_train2017.json") in str(caught.value)
        assert MetadataCatalog.get("tiny_coco_val").image_root == str(root / "val2017")
