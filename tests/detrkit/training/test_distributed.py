"""Two processes on halves of a batch train like one process on the whole; run as a script, this is the worker."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
DETECTORS = {  # config, and what takes its noise away
    "align_detr": ("projects/align_detr/configs/align_detr_tiny.py", ["model.dn_number=0"]),
    "sd_detr": (
        "projects/sd_detr/configs/sd_detr_tiny.py",
        [
            f"model.transformer.{part}.{kind}_dropout=0"
            for part in ("encoder", "decoder")
            for kind in ("attn", "ffn")
        ],
    ),
}
OBJECTS = {"even": [2, 3, 1, 4], "empty_rank": [0, 0, 3, 2], "empty": [0, 0, 0, 0]}


def build(detector):
    """A small detector without batch statistics or noise, so that halves of a batch can add up to the whole."""
    sys.path.insert(0, str(ROOT / "projects"))
    import align_detr  # noqa: F401  # isort: skip  (makes the next one importable)
    from detectron2.config import LazyConfig, instantiate

    config, quiet = DETECTORS[detector]
    cfg = LazyConfig.load(str(ROOT / config))
    LazyConfig.apply_overrides(
        cfg,
        ["train.device=cpu", *quiet, "model.num_queries=20", "model.backbone.stem.norm=FrozenBN"]
        + [f"model.backbone.stages.{i}.norm=FrozenBN" for i in range(len(cfg.model.backbone.stages))],
    )
    torch.manual_seed(0)
    return instantiate(cfg.model).train()


def images(objects):
    from detectron2.structures import Boxes, Instances

    g = torch.Generator().manual_seed(1)
    batch = []
    for n in objects:
        instances = Instances((64, 64))
        corner = torch.rand(n, 2, generator=g) * 30
        instances.gt_boxes = Boxes(torch.cat([corner, corner + 10 + 20 * torch.rand(n, 2, generator=g)], 1))
        instances.gt_classes = torch.randint(3, (n,), generator=g)
        image = torch.rand(3, 64, 64, generator=g) * 255
        batch.append({"image": image, "instances": instances, "height": 64, "width": 64})
    return batch


def gradients(detector, rank, world_size):
    """Per case the total loss of this rank and the gradients after averaging over ranks."""
    model = build(detector)
    if world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    results = {}
    for case, objects in OBJECTS.items():
        share = len(objects) // world_size
        model.zero_grad()
        loss = sum(model(images(objects)[rank * share : (rank + 1) * share]).values())
        loss.backward()
        named = getattr(model, "module", model).named_parameters()
        grads = {name: p.grad.clone() for name, p in named if p.requires_grad}
        results[case] = {"loss": loss.detach(), "grads": grads}
    return results


def run_two_processes(run_python, script, folder, *words):
    """Run a script twice at a time, as `SCRIPT FOLDER RANK WORDS`; it calls `join(FOLDER, RANK)`."""
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda rank: run_python(script, folder, rank, *words), range(2)):
            assert done.returncode == 0, done.stderr


def join(folder, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=2)


@pytest.mark.parametrize("detector", ["align_detr", pytest.param("sd_detr", marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, run_python, detector):
    """Protects the loss normaliser and the gradients under DDP, ranks without any object, and that all of them evaluate
    one model, the one in the checkpoint."""
    run_two_processes(run_python, __file__, tmp_path, detector)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert ranks[0]["evaluated_mean"].tolist() == ranks[1]["evaluated_mean"].tolist() == [1.0, 1.0]
    for case, expected in gradients(detector, 0, 1).items():
        for name, grad in expected["grads"].items():
            shared = ranks[0][case]["grads"][name]
            assert torch.isfinite(shared).all() and torch.equal(shared, ranks[1][case]["grads"][name]), (case, name)
            if case != "empty":  # there the normaliser is 1 for the half and for the whole
                torch.testing.assert_close(shared, grad, rtol=1e-5, atol=1e-5, msg=f"{case}: {name}")
        if case != "empty":
            mean_loss = (ranks[0][case]["loss"] + ranks[1][case]["loss"]) / 2
            torch.testing.assert_close(mean_loss, expected["loss"], rtol=1e-5, atol=1e-5)


def evaluated_mean(rank):
    """The mean that a batch norm has in an evaluation, having seen other images in each process."""
    from detrkit.training.evaluation import share_buffers

    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean += rank + 1
    share_buffers(norm)
    return norm.running_mean


if __name__ == "__main__":
    folder, this_rank, name = sys.argv[1:]
    join(folder, this_rank)
    results = gradients(name, int(this_rank), 2)
    results["evaluated_mean"] = evaluated_mean(int(this_rank))
    torch.save(results, Path(folder) / f"{this_rank}.pt")
    torch.distributed.destroy_process_group()
