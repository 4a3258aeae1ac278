"""Postprocessing of detections."""

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections from a resized image to an output image of another size.

    Args:
        results: detections with `pred_boxes` in pixels of `results.image_size`; unchanged.
        output_height, output_width: size of the output image in pixels.
        mask_threshold: unused, kept for detectron2's signature.

    Returns:
        Detections with boxes clipped to the output image; empty boxes are removed.
    """
    height, width = results.image_size
    scaled = Instances((output_height, output_width), **results.get_fields())
    scaled.pred_boxes = results.pred_boxes.clone()
    scaled.pred_boxes.scale(output_width / width, output_height / height)
    scaled.pred_boxes.clip(scaled.image_size)
    return scaled[scaled.pred_boxes.nonempty()]
