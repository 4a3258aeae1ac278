"""H-Deformable-DETR with a mixed-matching hybrid branch."""

from projects.h_deformable_detr.modeling import HDeformableDETR

from .criterion import AlignHDETRCriterion, Losses, Outputs, Targets


class AlignHDeformableDETR(HDeformableDETR):
    """H-Deformable-DETR whose hybrid branch uses mixed matching in place of repeated targets."""

    def train_hybrid(
        self,
        outputs: Outputs,
        targets: Targets,
        k_one2many: int,
        criterion: AlignHDETRCriterion,
        lambda_one2many: float,
    ) -> Losses:
        """Losses of both branches, before weighting."""
        return criterion(outputs, targets, k_one2many, lambda_one2many)
