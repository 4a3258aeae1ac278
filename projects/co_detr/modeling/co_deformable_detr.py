"""Two-stage Deformable DETR with collaborative hybrid assignments."""

from projects.h_deformable_detr.modeling import HDeformableDETR

from .collaboration import Collaboration
from .collaborative import CollaborativeDetector


class CoDeformableDETR(CollaborativeDetector, HDeformableDETR):
    """Two-stage Deformable DETR whose encoder and decoder also learn from auxiliary heads in training.

    The detector is H-Deformable-DETR without its second set of queries. Inference is the detector's. All additional
    parameters are in the module `collaboration`.

    Args:
        collaboration: see `CollaborativeDetector`; its `content` is `ContentAndPosition`.
        options: options of `HDeformableDETR`, with `k_one2many=0`; the criterion is a `CoDeformableCriterion`.

    Raises:
        ValueError: `k_one2many` is not 0.
    """

    def __init__(self, collaboration: Collaboration | None, **options):
        if options.get("k_one2many") != 0:
            raise ValueError(
                f"k_one2many={options.get('k_one2many')}: Co-Deformable-DETR has one set of queries; "
                "set k_one2many=0 and num_queries_one2many=0"
            )
        super().__init__(collaboration, **options)
