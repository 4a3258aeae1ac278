from detectron2.config import LazyCall as L

from align_detr.modeling import MixedMatcher

matcher = L(MixedMatcher)(
    cost_class=2.0,
    cost_bbox=5.0,
    cost_giou=2.0,
    cost_class_type="focal_loss_cost",
    alpha=0.25,
    gamma=2.0,
)

hyperparameters = dict(alpha=0.25, gamma=2.0, tau=1.5, k=2, loss_class_type="ia_bce_loss")
