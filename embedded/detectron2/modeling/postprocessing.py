"""From the image that the model saw to the image that the user has."""

from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Detections of a resized image in the pixels of an output image of another size.

    Args:
        results: detections with `pred_boxes` in pixels of `results.image_size`; not changed.
        output_height, output_width: size of the output image in pixels.
        mask_threshold: part of detectron2's signature; the detectors here predict boxes alone.

    Returns:
        The detections whose boxes, clipped to the output image, still have an area.
    """
    height, width = results.image_size
    scaled = Instances((output_height, output_width), **results.get_fields())
    scaled.pred_boxes = results.pred_boxes.clone()
    scaled.pred_boxes.scale(output_width / width, output_height / height)
    scaled.pred_boxes.clip(scaled.image_size)
    return scaled[scaled.pred_boxes.nonempty()]
