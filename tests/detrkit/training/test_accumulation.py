"""Several batches of one step train like one batch; run as a script, this is the worker of two processes."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
H_DETR = ["model.num_queries_one2one=20", "model.num_queries_one2many=20"]
H_DETR += ["model.transformer.two_stage_num_proposals=40"]
CONFIGS = {  # with criteria of this project, and of detrex's detectors, which divide by the number of objects inside
    "align_detr": ("projects/align_detr/configs/align_detr_tiny.py", ["model.dn_number=0", "model.num_queries=20"]),
    "dino": ("configs/baselines/dino_tiny.py", ["model.dn_number=0", "model.num_queries=20"]),
    "h_detr": ("configs/baselines/h_deformable_detr_tiny.py", H_DETR),
    "dab_detr": ("configs/baselines/dab_detr_tiny.py", ["model.num_queries=20"]),
}
OBJECTS = {"even": [2, 3, 1, 4, 1, 1, 2, 5], "empty_batches": [0, 0, 3, 2, 0, 0, 1, 0], "empty": [0] * 8}


spec = importlib.util.spec_from_file_location("distributed", Path(__file__).with_name("test_distributed.py"))
distributed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(distributed)
images = distributed.images


def trainer_of(detector, batches, accumulate):
    """A trainer of a small detector without batch statistics and noise, by plain SGD."""
    from detectron2.config import LazyConfig, instantiate

    from detrkit.training.trainer import Trainer

    config, overrides = CONFIGS[detector]
    cfg = LazyConfig.load(str(ROOT / config))
    LazyConfig.apply_overrides(cfg, ["train.device=cpu", *overrides])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    if torch.distributed.is_initialized():
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    trainer = Trainer(model, itertools.cycle(batches), optimizer, accumulate=accumulate)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.Dropout):
            module.eval()
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return trainer


def step(detector, batches, accumulate):
    """Losses and weights after one step."""
    trainer = trainer_of(detector, batches, accumulate)
    trainer.train(0, 1)
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "time" not in name}
    return {"losses": losses, "weights": dict(getattr(trainer.model, "module", trainer.model).named_parameters())}


def compare(found, expected):
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=name)


SLOW = ("h_detr", "dab_detr")


@pytest.mark.parametrize(
    "detector", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONFIGS]
)
def test_four_batches_of_two_are_one_of_eight(detector):
    """Protects the normaliser of every criterion: losses, gradient norm and weights after the step."""
    for case, objects in OBJECTS.items():
        if (detector, case) == ("h_detr", "empty_batches"):
            continue  # its hybrid branch counts objects several times, but divides by 1 too if there are none
        batch = images(objects)
        parts = [batch[start : start + 2] for start in range(0, 8, 2)]
        compare(step(detector, parts, 4), step(detector, [batch], 1))


def test_two_processes_with_two_batches_each(tmp_path, run_python):
    """Each process has two batches of two images: together the batch of eight, with one exchange of gradients."""
    distributed.run_two_processes(run_python, __file__, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, objects in OBJECTS.items():
        for name, weight in ranks[0][case]["weights"].items():
            assert torch.equal(weight, ranks[1][case]["weights"][name])
        if case != "empty":  # there each process divides by 1 instead of by a half of it
            compare(ranks[0][case], step("dino", [images(objects)], 1))


def test_batches_without_known_objects_have_equal_weights():
    from detrkit.training.trainer import accumulation_weights

    assert accumulation_weights([torch.ones(2)]) == [1]
    assert accumulation_weights([torch.ones(2)] * 4) == [0.25] * 4
    with_objects = images([2]), images([0]), images([6])
    assert accumulation_weights(with_objects) == [2 / 8, 1 / 8, 6 / 8]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "projects"), str(ROOT)]
    import align_detr  # noqa: F401  (makes detectron2 importable)

    folder, rank = sys.argv[1], int(sys.argv[2])
    distributed.join(folder, rank)
    results = {}
    for case, objects in OBJECTS.items():
        batch = images(objects)
        results[case] = step("dino", [batch[rank * 2 : rank * 2 + 2], batch[4 + rank * 2 : 6 + rank * 2]], 2)
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
