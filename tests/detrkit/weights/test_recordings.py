"""Detectors of other code bases, converted, give what was recorded of them."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from small_models import config_for, heads_of, inputs_of

from align_detr._platform import is_upstream
from detrkit.weights import Recognised, WeightsFile, apply_settings, convert, recognise

RECORDINGS = [
    "foreign_hf_conditional_detr",
    "foreign_hf_dab_detr",
    "foreign_hf_deformable_detr",
    "foreign_mmdet_align_detr",
    "foreign_mmdet_co_dino",
    "foreign_mmdet_dino",
    "foreign_original_dino",
]
NARROW = pytest.mark.engine("detrex computes the positions of its queries for 256 channels, whatever the config says")
AS_RECORDED = [
    pytest.param("foreign_hf_conditional_detr", marks=NARROW),
    pytest.param("foreign_hf_dab_detr", marks=NARROW),
    pytest.param("foreign_hf_deformable_detr", marks=NARROW),
    *RECORDINGS[3:],
]
TOLERANCE = 1e-4
PIXELS = 1e-3  # of detections: images are up to a few hundred pixels wide, so this is 1e-4 of their size at most


def as_file(case):
    """A recorded state dict as a file of that format."""
    file = WeightsFile(Path(case.name), case.state, {"config": {"two_stage_num_proposals": case.config["num_queries"]}})
    known = recognise(case.state)
    return Recognised(file, known, None, True, known.settings(file))


def converted_model(case):
    """The detector of a recording, built by a config with the settings that belong to the weights."""
    recognised = as_file(case)
    conversion = convert(recognised)
    known = recognised.format
    cfg = config_for(known.detector, conversion.state, heads_of(case.config, known.detector), case.config["detections"])
    if is_upstream():  # written into detrex's code as 1e-3, which no recording depends on
        cfg.train.ignore_checkpoint_settings = [key for key in recognised.settings if key.endswith("_eps")]
    requirements = known.requirements(recognised.file)
    apply_settings(cfg, requirements.settings, case.name, must_be=requirements.must_be)
    model = instantiate(cfg.model).eval()
    found = model.load_state_dict(conversion.state, strict=False)
    assert not found.missing_keys
    assert all(name.startswith("collaboration.") for name in found.unexpected_keys)
    return model, cfg


def detect(model, example):
    """Logits (N, C), boxes (N, 4) and instances of one image."""
    seen = []
    inference = model.inference
    model.inference = lambda logits, boxes, sizes: seen.append((logits[0], boxes[0])) or inference(logits, boxes, sizes)
    try:
        with torch.no_grad():
            instances = model([example])[0]["instances"]
    finally:
        model.inference = inference
    return *seen[0], instances


def clipped(boxes, height, width):
    """Boxes (N, 4) within an image: IDEA-Research and Hugging Face do not clip, and the recordings are theirs."""
    extent = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), extent)


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", AS_RECORDED)
def test_a_converted_detector_gives_the_recorded_outputs(golden, name):
    """Logits, boxes, and detections in their order. A wrong name, order of norms, or position would show here."""
    case = golden(name)
    model, _ = converted_model(case)
    for example, expected in zip(inputs_of(case), case.output, strict=True):
        logits, boxes, instances = detect(model, example)
        close(logits, expected["pred_logits"], TOLERANCE)
        close(boxes, expected["pred_boxes"], TOLERANCE)
        detections = expected["detections"]
        close(instances.scores, detections["scores"], TOLERANCE)
        assert torch.equal(instances.pred_classes, detections["labels"])
        size = example["height"], example["width"]
        close(instances.pred_boxes.tensor, clipped(detections["boxes"], *size), PIXELS)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.engine("detrex's modules cannot be traced")
@pytest.mark.slow
def test_a_converted_detector_gives_the_recorded_detections_through_onnx(golden, name, tmp_path):
    """What is exported is the converted model, with its settings."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from detrkit.inference.graph import Shape, write_onnx

    case = golden(name)
    model, _ = converted_model(case)
    write_onnx(model, tmp_path / "model.onnx", {}, Shape(1, None), (96, 128))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for example, expected in zip(inputs_of(case), case.output, strict=True):
        height, width = example["image"].shape[-2:]
        found = session.run(None, {"images": example["image"][None].float().numpy()})
        boxes, scores, classes = (torch.from_numpy(array)[0] for array in found)
        detections = expected["detections"]
        close(scores, detections["scores"], TOLERANCE)
        assert torch.equal(classes, detections["labels"])
        scale = torch.tensor([example["width"] / width, example["height"] / height]).repeat(2)
        size = example["height"], example["width"]
        close(clipped(boxes * scale, *size), clipped(detections["boxes"], *size), PIXELS)


@pytest.mark.engine("detrex attends to the padding of batched images at inference")
@pytest.mark.parametrize("name", RECORDINGS)
def test_neighbours_in_a_batch_change_nothing(golden, name):
    """Images of odd sizes together, padded, give what was recorded of each alone."""
    case = golden(name)
    model, _ = converted_model(case)
    examples = inputs_of(case)
    assert len({tuple(example["image"].shape) for example in examples}) == len(examples) == 2
    seen = []
    inference = model.inference
    model.inference = lambda logits, boxes, sizes: seen.append((logits, boxes)) or inference(logits, boxes, sizes)
    with torch.no_grad():
        results = model(examples)
    (logits, boxes), found = seen[0], [result["instances"] for result in results]
    for index, (example, expected) in enumerate(zip(examples, case.output, strict=True)):
        close(logits[index], expected["pred_logits"], TOLERANCE)
        close(boxes[index], expected["pred_boxes"], TOLERANCE)
        close(found[index].scores, expected["detections"]["scores"], TOLERANCE)
        assert torch.equal(found[index].pred_classes, expected["detections"]["labels"])
        size = example["height"], example["width"]
        close(found[index].pred_boxes.tensor, clipped(expected["detections"]["boxes"], *size), PIXELS)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.engine("detrex's modules cannot be traced")
@pytest.mark.slow
def test_a_converted_detector_takes_batches_through_onnx(golden, name, tmp_path):
    """Two images at once, of a size that the graph was not traced with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from detrkit.inference.graph import Shape, write_onnx

    case = golden(name)
    model, _ = converted_model(case)
    write_onnx(model, tmp_path / "model.onnx", {}, Shape(None, None), (96, 128))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    image = inputs_of(case)[1]["image"]
    images = torch.stack([image, image.flip(-1)])
    boxes, scores, classes = (
        torch.from_numpy(array) for array in session.run(None, {"images": images.float().numpy()})
    )
    for index, pixels in enumerate(images):
        height, width = pixels.shape[-2:]
        _, _, expected = detect(model, {"image": pixels, "height": height, "width": width})
        close(scores[index], expected.scores, TOLERANCE)
        assert torch.equal(classes[index], expected.pred_classes)
        close(clipped(boxes[index], height, width), expected.pred_boxes.tensor, PIXELS)


@pytest.mark.parametrize("name", ["foreign_mmdet_dino", "foreign_mmdet_co_dino", "foreign_original_dino"])
def test_without_their_settings_the_outputs_are_others(golden, name):
    """The settings are not decoration: detrex's own positions give other logits with the same weights."""
    case = golden(name)
    model, cfg = converted_model(case)
    cfg.model.position_embedding.temperature, cfg.model.position_embedding.offset = 10000, -0.5
    model.position_embedding = instantiate(cfg.model.position_embedding)
    logits, _, _ = detect(model, inputs_of(case)[0])
    assert (logits - case.output[0]["pred_logits"]).abs().max() > 0.1


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_state_dict_comes_back_bit_for_bit(golden, name):
    """Export is the inverse of import: the same names, and the same numbers."""
    case = golden(name)
    known = recognise(case.state)
    back = known.to_theirs(known.to_ours(case.state)[0])
    assert back.keys() == case.state.keys()
    for key, tensor in case.state.items():
        if key == "label_enc.weight" and known.name == "original_dino":  # its last row is padding, written as zeros
            assert torch.equal(back[key][:-1], tensor[:-1]) and not back[key][-1].any()
        else:
            assert torch.equal(back[key], tensor.to(back[key].dtype)), key


def test_one_stage_deformable_detr_is_refused(golden):
    """It has no counterpart here, and says so instead of loading a part of itself."""
    known = recognise(golden("foreign_hf_deformable_detr_one_stage").state)
    with pytest.raises(ValueError, match="one-stage .* no counterpart"):
        known.to_ours(golden("foreign_hf_deformable_detr_one_stage").state)
