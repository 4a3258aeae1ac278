"""Co-DINO on LVIS: 1203 classes, 300 detections, repeat-factor sampling.

To train with a federated loss, set `model.criterion.federated`; the published models were trained without it.
"""

from detrkit.config.load import get_config

from .co_dino_r50_5scale_12ep import lr_multiplier, model, optimizer, train

dataloader = get_config("common/data/lvis.py").dataloader

model.num_classes = 1203
model.select_box_nums_for_evaluation = 300

train.output_dir = "./output/co_dino_r50_5scale_12ep_lvis"
