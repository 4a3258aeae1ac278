"""Values of Co-DETR's training parts that a renaming is not enough for."""

import torch
from detrex.layers import get_sine_pos_embed

from co_detr.modeling.eva02 import MapRotaryEmbedding
from detrkit.weights import all_formats
from detrkit.weights.co_detr import BOX_ORDER, GLOBAL_POSITIONS, HeadRows
from detrkit.weights.tables import Trace


def test_positive_queries_of_co_dino_embed_boxes_in_our_order():
    """Their projection of x, y, w, h gives the same as ours of y, x, w, h; the inverse gives theirs back."""
    torch.manual_seed(0)
    name = "query_head.transformer.aux_pos_trans.1.weight"
    theirs, boxes = torch.randn(8, 16), torch.rand(1, 5, 4)
    ours = BOX_ORDER.forward({name: theirs}, Trace())[name]
    expected = get_sine_pos_embed(boxes, 4, exchange_xy=False) @ theirs.T
    torch.testing.assert_close(get_sine_pos_embed(boxes, 4) @ ours.T, expected)
    assert torch.equal(BOX_ORDER.backward({name: ours})[name], theirs)


def test_the_order_is_part_of_co_dinos_formats():
    """Co-Deformable-DETR has their order already."""
    steps = {name: BOX_ORDER in known.steps for name, known in all_formats().items()}
    assert {name for name, has_it in steps.items() if has_it} == {"mmdet_co_dino", "sensex_co_dino"}


def test_rows_of_heads_become_vectors():
    """One row per head, in their order; and back."""
    step = HeadRows("whole", ["first", "second"])
    state = {"whole": torch.tensor([[1.0], [2.0]]), "other": torch.ones(3)}
    trace = Trace()
    ours = step.forward(state, trace)
    assert ours.keys() == {"first", "second", "other"} and trace.added.keys() == {"first", "second"}
    assert ours["first"].tolist() == [1] and ours["second"].tolist() == [2]
    back = step.backward(ours)
    assert back.keys() == state.keys() and torch.equal(back["whole"], state["whole"])
    assert step.forward({"x": torch.ones(1)}, Trace()).keys() == {"x"} == step.backward({"x": torch.ones(1)}).keys()


def test_tables_of_a_vit_for_one_size_are_computed_here():
    """Files of squares of 1536 pixels have positions of 96 x 96 patches for the global blocks: those used here."""
    cells, window = 96 * 96, 16 * 16
    state = {f"backbone.rope_{n}.freqs_cos": torch.ones(c, 64) for n, c in (("win", window), ("glb", cells))}
    state |= {f"backbone.blocks.{n}.attn.rope.freqs_cos": torch.ones(c, 64) for n, c in ((1, window), (2, cells))}
    trace = Trace()
    ours = GLOBAL_POSITIONS.forward(state, trace)
    assert ours.keys() == {"backbone.rope_win.freqs_cos", "backbone.blocks.1.attn.rope.freqs_cos"}
    assert trace.dropped.keys() == state.keys() - ours.keys()

    rope = MapRotaryEmbedding(32, 16)
    x = torch.randn(1, 1, cells, 64)
    place = torch.stack(torch.meshgrid(torch.arange(96) / 6, torch.arange(96) / 6, indexing="ij"), dim=-1).flatten(0, 1)
    frequency = 10000 ** (-torch.arange(0, 32, 2) / 32)
    angle = (place[..., None] * frequency).flatten(1).repeat_interleave(2, dim=1)  # a table as in the file
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    torch.testing.assert_close(rope(x, (96, 96)), x * angle.cos() + turned * angle.sin(), rtol=1e-4, atol=1e-4)
