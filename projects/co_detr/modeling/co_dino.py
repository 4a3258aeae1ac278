"""DINO with collaborative hybrid assignments."""

from projects.dino.modeling import DINO

from .collaborative import CollaborativeDetector


class CoDINO(CollaborativeDetector, DINO):
    """DINO whose encoder and decoder also learn from auxiliary heads in training. Inference is DINO's.

    All additional parameters are in the module `collaboration`. For the arguments see `CollaborativeDetector` and
    `DINO`; the criterion is a `CoDINOCriterion`.
    """
