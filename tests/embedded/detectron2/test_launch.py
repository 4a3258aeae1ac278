"""Starting processes, and what they say to each other, on the CPU."""

import os
import textwrap
from pathlib import Path

import pytest
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from torch import nn

EMBEDDED = Path(__file__).resolve().parents[3] / "embedded"

SCRIPT = """
    import sys

    import torch
    import torch.distributed as dist
    from detectron2.engine import SimpleTrainer, create_ddp_model, launch
    from detectron2.utils import comm
    from torch import nn


    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)
            nn.init.ones_(self.layer.weight)

        def forward(self, batch):
            return {"loss": self.layer(batch).mean()}


    def talk(word):
        rank = comm.get_rank()
        assert (word, comm.get_world_size(), comm.get_local_rank()) == ("hello", 2, rank)
        assert comm.is_main_process() == (rank == 0)
        assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert comm.gather("ab"[rank]) == (["a", "b"] if rank == 0 else [])
        assert comm.gather("ab"[rank], dst=1) == (["a", "b"] if rank == 1 else [])
        assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
        comm.synchronize()

        model = Loss()
        ddp = create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=False)
        batches = [torch.full((3, 2), rank + 1.0)]
        trainer = SimpleTrainer(ddp, batches, torch.optim.SGD(model.parameters(), lr=1.0))
        trainer.train(0, 1)
        assert torch.equal(model.layer.weight, torch.full((1, 2), 1 - 1.5)), "the mean gradient of both"
        assert trainer.storage.latest()["total_loss"][0] == 3.0, "the mean loss of both"

        bad = [torch.full((3, 2), float("nan") if rank == 1 else 1.0)]
        try:
            SimpleTrainer(ddp, bad, trainer.optimizer).train(0, 1)
        except FloatingPointError:
            print(f"rank {rank} stopped\\n", end="", flush=True)  # in one piece

        if rank == 1:
            raise ValueError("only here")
        comm.synchronize()


    if __name__ == "__main__":
        launch(talk, 2, dist_url="auto", args=("hello",))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def test_two_processes_work_together_and_end_together(script, run_python):
    """Collectives, the mean gradient, a loss that is bad on one rank stopping both; and an error on one ending all."""
    result = run_python(script, PYTHONPATH=str(EMBEDDED))
    assert sorted(result.stdout.split("\n")) == ["", "rank 0 stopped", "rank 1 stopped"], result.stderr
    assert result.returncode == 1 and "ValueError: only here" in result.stderr
    assert "2 processes share its CPU" in result.stderr or torch.cuda.is_available()


def test_one_process_is_this_one():
    """No process group, no pickling: a debugger works."""
    calls = []
    launch(lambda *args: calls.append((args, os.getpid())), 1, args=(1, 2))
    assert calls == [((1, 2), os.getpid())]
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.gather(3) == comm.all_gather(3) == [3]
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(num_gpus_per_machine=2, num_machines=2), "--dist-url"),
        (dict(num_gpus_per_machine=1, num_machines=2, machine_rank=2), "--machine-rank 2"),
        (dict(num_gpus_per_machine=0), "--num-gpus 0"),
    ],
)
def test_impossible_launches_are_refused(arguments, said):
    """In one line that names the option to change."""
    with pytest.raises(ValueError, match=said):
        launch(print, **arguments)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--num-gpus 4, but this machine has 2"):
        launch(print, 4)
