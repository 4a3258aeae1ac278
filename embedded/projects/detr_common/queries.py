"""Numbers of queries, for configs."""


def all_queries(one2one: int, one2many: int) -> int:
    """Total queries of both branches of H-Deformable-DETR: the number of proposals of its transformer in training."""
    return one2one + one2many
