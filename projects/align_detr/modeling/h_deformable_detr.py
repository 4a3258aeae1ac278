"""What the hybrid branch of H-Deformable-DETR needs beyond the criterion."""

from projects.h_deformable_detr.modeling import HDeformableDETR

from .criterion import AlignHDETRCriterion, Losses, Outputs, Targets


class AlignHDeformableDETR(HDeformableDETR):
    """H-Deformable-DETR whose hybrid branch is matched many-to-one instead of seeing repeated targets."""

    def train_hybrid(
        self,
        outputs: Outputs,
        targets: Targets,
        k_one2many: int,
        criterion: AlignHDETRCriterion,
        lambda_one2many: float,
    ) -> Losses:
        """Losses of both branches, as yet without their weights."""
        return criterion(outputs, targets, k_one2many, lambda_one2many)
