"""Numbers of queries, for configs."""


def all_queries(one2one: int, one2many: int) -> int:
    """Queries of both branches of H-Deformable-DETR, whose transformer is to propose as many boxes in training."""
    return one2one + one2many
