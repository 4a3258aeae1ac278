"""The page about a GPU: here on a CPU, where it has the same sections and says what it is of."""

import json

import pytest
import torch

from detrkit.benchmark import gpu_report as tool
from detrkit.commands import gpu_report as command

pytestmark = pytest.mark.engine("the kernels are the engine's")


@pytest.fixture
def quick(monkeypatch):
    """One precision, no compiler, and no processes for the memory."""
    monkeypatch.setattr(tool, "STEPS", {name: tool.STEPS[name] for name in ("plain, float32", "float32")})
    monkeypatch.setattr(tool, "INFERENCES", tool.STEPS)
    monkeypatch.setattr(tool, "peak_bytes", lambda workload, plain, device: 2_000_000_000)


def test_every_section_is_written(quick, tmp_path, capsys):
    """Kernels that are right in three types, times beside the plain formulation's, and the hours that follow."""
    command.main(
        [
            *("--config-file", "align_detr_tiny", "--output", str(tmp_path / "gpu"), "--image-size", "64x64"),
            *("--batch-sizes", "1", "--inference-batch-sizes", "1", "--repeats", "1", "train.device=cpu"),
        ]
    )
    page = (tmp_path / "gpu/gpu.md").read_text()
    records = json.loads((tmp_path / "gpu/gpu.json").read_text())
    assert page.startswith("# On a GPU\n\ncpu") and capsys.readouterr().out.strip() in page
    parts = [record["part"] for record in records]
    assert [parts.count(part) for part in ("correctness", "attention", "step", "inference")] == [6, 4, 2, 2]
    assert all(record["within rounding"] == "yes" for record in records if record["part"] == "correctness")
    (ours,) = (r for r in records if r["part"] == "step" and r["variant"] == "float32")
    (schedule,) = (record for record in records if record["part"] == "schedule")
    assert schedule["hours"] == pytest.approx(12 * 118287 / ours["images_per_s"] / 3600)


def test_a_wrong_kernel_is_told(monkeypatch):
    """An error of a hundredth in one gradient is more than the rounding of float32, and less than bfloat16's."""
    right = tool.reference().deform_attn

    def wrong(value, shapes, locations, weights):
        output = right(value.float(), shapes, locations, weights.float()).to(value.dtype)
        return output + 0.01 * (weights - weights.detach()).sum()

    monkeypatch.setattr(tool.attention, tool.ATTENTION, wrong)
    torch.manual_seed(0)
    value, weights = torch.randn(1, 12, 2, 8), torch.rand(1, 5, 2, 1, 4)
    inputs = value, [(3, 4)], torch.rand(1, 5, 2, 1, 4, 2), weights
    assert tool.errors(inputs, torch.float32)["within rounding"] != "yes"
    assert tool.errors(inputs, torch.bfloat16)["within rounding"] == "yes"


def steps(monkeypatch, fits):
    """The rows of training steps, where those fit into memory for which `fits(workload, plain)`."""

    def prepare(self, plain, real=tool.Step.prepare):
        if not fits(self, plain):
            raise torch.cuda.OutOfMemoryError("no")
        return real(self, plain)

    monkeypatch.setattr(tool.Step, "prepare", prepare)
    options = tool.GpuReportOptions("align_detr_tiny", ["train.device=cpu"], (64, 64), [1], repeats=1)
    rows, _ = tool.GpuReport(options).step()
    return rows


def test_what_does_not_fit_is_a_line(quick, monkeypatch):
    """Out of memory in one setting: the others are measured, and the page says which it was."""
    plain, ours = steps(monkeypatch, lambda workload, plain: not plain)
    assert plain["images/s"] == "out of memory" and ours["images/s"] > 0 and ours["as fast as plain"] is None


def test_a_precision_is_compared_with_its_own_plain_formulation(quick, monkeypatch):
    """If that does not fit into memory, there is nothing to compare with: not the one of the precision before."""
    monkeypatch.setattr(tool, "STEPS", {**tool.STEPS, **{f"{name}, again": it for name, it in tool.STEPS.items()}})
    calls = []

    def fits(workload, plain):
        calls.append(plain)
        return calls.count(True) < 2 or not plain

    _, first, plain, second = steps(monkeypatch, fits)
    assert plain["images/s"] == "out of memory"
    assert first["as fast as plain"] > 0 and second["images/s"] > 0 and second["as fast as plain"] is None
