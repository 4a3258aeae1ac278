"""The values that options take, for help and completion. The library has them too, but importing it takes seconds.

`tests/detrkit/commands/test_commands.py` compares them with the library's.
"""

LAYOUTS = ("coco", "voc", "yolo", "labelme", "cvat", "via", "tensorflow-csv", "open-images", "kitti")
DIFFICULT = ("ignore", "keep", "drop")
WEIGHT_FAMILIES = ("detrex", "detrex-torchvision", "huggingface", "mmdet", "original", "sensex")
WEIGHT_FORMATS = (
    *WEIGHT_FAMILIES,
    *("detrex_conditional_detr", "detrex_dab_detr", "h_detr"),
    *("hf_conditional_detr", "hf_dab_detr", "hf_deformable_detr"),
    *("mmdet_co_dino", "mmdet_conditional_detr", "mmdet_dab_detr", "mmdet_dino"),
    *("original_dab_detr", "original_dino", "sensex_co_deformable_detr", "sensex_co_dino"),
)
RUNTIMES = ("onnxruntime", "openvino")
RUNTIME_FILES = (".onnx", ".xml")
RUNTIME_TYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("float32", "float64", "float16", "int8")
