"""SD-DETR's detector, transformer and criterion."""

from .criterion import SDSetCriterion
from .decoder import SDDetrTransformerDecoder
from .detector import SDDETR
from .task_queries import TaskQueries
from .transformer import SDDetrTransformer

__all__ = ["SDDETR", "SDDetrTransformer", "SDDetrTransformerDecoder", "SDSetCriterion", "TaskQueries"]
