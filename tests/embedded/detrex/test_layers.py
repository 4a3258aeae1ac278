"""Position embeddings, boxes, attention and transformer layers."""

import math

import pytest
import torch
from detrex.layers import (
    FFN,
    MLP,
    BaseTransformerLayer,
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    ConvNormAct,
    MultiheadAttention,
    PositionEmbeddingLearned,
    PositionEmbeddingSine,
    TransformerLayerSequence,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    get_sine_pos_embed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

unit = st.floats(0, 1, width=32)
box_lists = st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["position_embedding_sine_0", "position_embedding_sine_1"])
def test_position_embedding_sine_matches_recording(golden, name):
    """Padded maps, with and without the half-position offset."""
    case = golden(name)
    torch.testing.assert_close(
        PositionEmbeddingSine(**case.config)(case.input["mask"]), case.output["pos"], rtol=2e-4, atol=2e-4
    )


def test_position_embedding_sine_ignores_padding():
    """The embedding of an image is the same alone and in the corner of a padded batch."""
    embed = PositionEmbeddingSine(num_pos_feats=8, normalize=True)
    mask = torch.ones(1, 9, 12, dtype=torch.bool)
    mask[:, :5, :7] = False
    torch.testing.assert_close(embed(mask)[..., :5, :7], embed(torch.zeros(1, 5, 7, dtype=torch.bool)))


@pytest.mark.parametrize("num_pos_feats", [1, 5, 48, 192])
def test_sinusoids_of_any_width(num_pos_feats):
    """Channel c of both embeddings is sin or cos of position / temperature^(2⌊c/2⌋/width)."""
    points = torch.rand(3, 2, dtype=torch.float64)
    ours = get_sine_pos_embed(points, num_pos_feats, temperature=20, exchange_xy=False)
    for n, point in enumerate(points.tolist()):
        expected = [
            (math.cos if c % 2 else math.sin)(x * 2 * math.pi / 20 ** (2 * (c // 2) / num_pos_feats))
            for x in point
            for c in range(num_pos_feats)
        ]
        assert ours[n].tolist() == pytest.approx(expected, abs=1e-9)

    rows = PositionEmbeddingSine(num_pos_feats, temperature=20)(torch.zeros(1, 3, 4, dtype=torch.bool))
    assert rows.shape == (1, 2 * num_pos_feats, 3, 4)
    expected = [
        (math.cos if c % 2 else math.sin)(3 / 20 ** (2 * (c // 2) / num_pos_feats)) for c in range(num_pos_feats)
    ]
    assert rows[0, :num_pos_feats, 2, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_sine_pos_embed_matches_recording(golden):
    """Four coordinates, y before x."""
    case = golden("sine_pos_embed")
    embed = get_sine_pos_embed(case.input["pos"], **case.config)
    torch.testing.assert_close(embed, case.output["embed"], rtol=2e-4, atol=2e-4)


def test_sine_pos_embed_is_computed_in_float32():
    """bfloat16 input: angles are computed in float32, only the result is rounded."""
    points = torch.rand(7, 4).bfloat16()
    exact = get_sine_pos_embed(points.float(), 16)
    assert (get_sine_pos_embed(points, 16).float() - exact).abs().max() < 0.03


def test_position_embedding_learned():
    """A row vector and a column vector for each position; a map larger than the table is an error."""
    embed = PositionEmbeddingLearned(num_pos_feats=3, row_num_embed=5, col_num_embed=6)
    pos = embed(torch.zeros(2, 4, 6, dtype=torch.bool))
    assert pos.shape == (2, 6, 4, 6)
    torch.testing.assert_close(pos[1, :, 3, 2], torch.cat((embed.col_embed.weight[2], embed.row_embed.weight[3])))
    with pytest.raises(ValueError, match="5 rows.*row_num_embed"):
        embed(torch.zeros(1, 6, 6, dtype=torch.bool))


def test_box_overlaps_match_recording(golden):
    """Pairwise IoU, union and generalised IoU."""
    case = golden("box_iou")
    boxes1, boxes2 = case.input["boxes1"], case.input["boxes2"]
    iou, union = box_iou(boxes1, boxes2)
    torch.testing.assert_close(iou, case.output["iou"], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(union, case.output["union"], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(generalized_box_iou(boxes1, boxes2), case.output["giou"], rtol=2e-4, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(box_lists, box_lists)
def test_box_overlaps_are_bounded_and_symmetric(first, second):
    """Empty and one-pixel boxes included: 0 ≤ IoU ≤ 1, -1 ≤ GIoU ≤ IoU, never NaN; and the conversions invert."""
    a, b = torch.tensor(first), torch.tensor(second)
    torch.testing.assert_close(box_xyxy_to_cxcywh(box_cxcywh_to_xyxy(a)), a, rtol=1e-5, atol=1e-6)
    a, b = box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b)
    iou, giou = box_iou(a, b)[0], generalized_box_iou(a, b)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= -1.001) & (giou <= iou + 1e-3)).all()
    torch.testing.assert_close(giou, generalized_box_iou(b, a).T, rtol=1e-4, atol=1e-5)


def test_box_overlaps_have_gradients_for_boxes_without_area():
    """The GIoU of a box without area has a gradient towards its object."""
    point = torch.tensor([[0.2, 0.2, 0.2, 0.2]], requires_grad=True)
    generalized_box_iou(point, torch.tensor([[0.5, 0.5, 0.9, 0.9]])).sum().backward()
    assert point.grad.isfinite().all() and point.grad.abs().sum() > 0


def slow_attention(q, k, v, num_heads, allowed):
    """Softmax attention of one image, head by head: q, k (L, D), v (S, E), allowed (L, S)."""
    heads = []
    for qh, kh, vh in zip(*(x.chunk(num_heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = qh @ kh.T / math.sqrt(qh.shape[-1])
        heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ vh)
    return torch.cat(heads, dim=-1)


def interleave_heads(content, position, num_heads):
    """(L, D) and (L, D) to (L, 2D), in which each head has its content followed by its position."""
    pairs = zip(content.chunk(num_heads, dim=-1), position.chunk(num_heads, dim=-1), strict=True)
    return torch.cat([half for pair in pairs for half in pair], dim=-1)


@pytest.mark.parametrize("masks", ["padding", "padding and bool", "padding and float", "none"])
@pytest.mark.parametrize("is_first_layer", [True, False])
def test_conditional_cross_attention_is_content_plus_position(is_first_layer, masks):
    """Compared with the formula, image by image: heads concatenate content and position, padding gets no weight."""
    torch.manual_seed(0)
    length, keys, batch, dim, heads = 5, 7, 2, 12, 3
    attention = ConditionalCrossAttention(dim, heads).eval()
    query, query_pos, sine = torch.randn(3, length, batch, dim)
    key, key_pos = torch.randn(2, keys, batch, dim)
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    padding[1, 4:] = masks != "none"
    forbidden = torch.zeros(length, keys, dtype=torch.bool)
    forbidden[:, 1] = masks not in ("none", "padding")
    attn_mask = forbidden if masks == "padding and bool" else torch.zeros(length, keys).masked_fill(forbidden, -1e9)
    out = attention(
        query,
        key,
        query_pos=query_pos,
        key_pos=key_pos,
        query_sine_embed=sine,
        is_first_layer=is_first_layer,
        attn_mask=attn_mask if forbidden.any() else None,
        key_padding_mask=padding if masks != "none" else None,
    )
    for b in range(batch):
        q, k = attention.query_content_proj(query[:, b]), attention.key_content_proj(key[:, b])
        k_position = attention.key_pos_proj(key_pos[:, b])
        if is_first_layer:
            q, k = q + attention.query_pos_proj(query_pos[:, b]), k + k_position
        q = interleave_heads(q, attention.query_pos_sine_proj(sine[:, b]), heads)
        k = interleave_heads(k, k_position, heads)
        attended = slow_attention(q, k, attention.value_proj(key[:, b]), heads, ~(padding[b] | forbidden))
        torch.testing.assert_close(out[:, b], query[:, b] + attention.out_proj(attended), rtol=1e-4, atol=1e-5)


def test_conditional_self_attention_projects_content_and_position_apart():
    """Compared with the formula, image by image."""
    torch.manual_seed(0)
    attention = ConditionalSelfAttention(8, 2).eval()
    query, pos = torch.randn(2, 5, 3, 8)
    out = attention(query, query_pos=pos)
    for b in range(3):
        q = attention.query_content_proj(query[:, b]) + attention.query_pos_proj(pos[:, b])
        k = attention.key_content_proj(query[:, b]) + attention.key_pos_proj(pos[:, b])
        everything = torch.ones(5, 5, dtype=torch.bool)
        attended = slow_attention(q, k, attention.value_proj(query[:, b]), 2, everything)
        torch.testing.assert_close(out[:, b], query[:, b] + attention.out_proj(attended), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [MultiheadAttention, ConditionalSelfAttention, ConditionalCrossAttention])
def test_batch_first_is_the_same_attention(kind):
    """`batch_first` changes the layout, not the numbers."""
    torch.manual_seed(0)
    sequence_first = kind(8, 2).eval()
    batch_first = kind(8, 2, batch_first=True).eval()
    batch_first.load_state_dict(sequence_first.state_dict())
    query, pos = torch.randn(2, 5, 3, 8)
    extra = {"key_pos": pos, "query_sine_embed": pos} if kind is ConditionalCrossAttention else {}
    expected = sequence_first(query, query_pos=pos, **extra)
    extra = {name: value.transpose(0, 1) for name, value in extra.items()}
    ours = batch_first(query.transpose(0, 1), query_pos=pos.transpose(0, 1), **extra)
    torch.testing.assert_close(ours.transpose(0, 1), expected)


class RepeatedOperands(TorchDispatchMode):
    """Count the batched matrix products that repeat one matrix for the whole batch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.bmm.default:
            self.count += any(x.shape[0] > 1 and x.stride(0) == 0 for x in args[:2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("channels_first", [True, False])
def test_bfloat16_multiplies_by_the_weights_once(channels_first, batch_first):
    """Protects the speed of batched bfloat16 inference on a CPU: copying the weights for each position takes four times
    as long."""
    torch.manual_seed(0)
    attention = MultiheadAttention(16, 4, batch_first=batch_first).eval()
    x, position = torch.randn(2, 2, 9, 16)
    if channels_first:  # as tokens are that come from a feature map
        x, position = (y.mT.contiguous().mT for y in (x, position))
    if not batch_first:
        x, position = x.transpose(0, 1), position.transpose(0, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), RepeatedOperands() as products:
        attention(x, x, x, query_pos=position, key_pos=position)
    assert products.count == 0


def test_multihead_attention_adds_positions_to_query_and_key_alone():
    """Values carry no position, padding gets no weight, and the state dict is that of `attn`."""
    torch.manual_seed(0)
    attention = MultiheadAttention(8, 2).eval()
    query, pos = torch.randn(2, 5, 1, 8)
    padding = torch.tensor([[False, False, False, True, True]])
    q, k, v = attention.attn.in_proj_weight.chunk(3)
    x, with_pos = query[:, 0], (query + pos)[:, 0]
    attended = slow_attention(with_pos @ q.T, with_pos @ k.T, x @ v.T, 2, ~padding.expand(5, 5))
    expected = x + attention.attn.out_proj(attended)
    ours = attention(query, query_pos=pos, key_padding_mask=padding)[:, 0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert all(name.startswith("attn.") for name in attention.state_dict())


def test_ffn_shares_its_activation():
    """A PReLU is copied, and is one parameter under two names."""
    prelu = nn.PReLU()
    ffn = FFN(4, 6, activation=prelu)
    assert {"activation.weight", "layers.0.1.weight"} <= set(ffn.state_dict())
    assert ffn.activation is ffn.layers[0][1] and ffn.activation is not prelu
    x, identity = torch.randn(2, 3, 4)
    first, last = ffn.layers[0][0], ffn.layers[1]
    torch.testing.assert_close(ffn(x), x + last(ffn.activation(first(x))))
    torch.testing.assert_close(ffn(x, identity), identity + last(ffn.activation(first(x))))


def test_ffn_refuses_a_residual_of_another_width():
    """A residual connection between different widths is an error."""
    with pytest.raises(ValueError, match="add_identity"):
        FFN(4, 6, output_dim=1)
    assert FFN(4, 6, output_dim=1, add_identity=False)(torch.zeros(2, 4)).shape == (2, 1)


def test_mlp_has_no_activation_at_the_end():
    """The last layer has no ReLU: outputs can be negative."""
    mlp = MLP(3, 8, 4, 2)
    x = torch.randn(5, 3)
    torch.testing.assert_close(mlp(x), mlp.layers[1](mlp.layers[0](x).relu()))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_layer_residuals(pre_norm):
    """A decoder layer, compared with the equations of post-norm and pre-norm transformers."""
    torch.manual_seed(0)
    block = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")
    order = ("norm", "self_attn", "norm", "cross_attn", "norm", "ffn") if pre_norm else block
    layer = BaseTransformerLayer(
        attn=[MultiheadAttention(8, 2), MultiheadAttention(8, 2)],
        ffn=FFN(8, 16),
        norm=nn.LayerNorm(8),
        operation_order=order,
    ).eval()
    for norm in layer.norms:
        nn.init.uniform_(norm.weight)
    query, query_pos = torch.randn(2, 5, 2, 8)
    memory, memory_pos = torch.randn(2, 7, 2, 8)
    out = layer(query, memory, memory, query_pos=query_pos, key_pos=memory_pos)

    def self_attn(x):
        return layer.attentions[0].attn(x + query_pos, x + query_pos, x)[0]

    def cross_attn(x):
        return layer.attentions[1].attn(x + query_pos, memory + memory_pos, memory)[0]

    x = query
    for step, norm in zip((self_attn, cross_attn, layer.ffns[0].layers), layer.norms, strict=True):
        x = x + step(norm(x)) if pre_norm else norm(x + step(x))
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-5)


def test_layers_of_a_sequence_are_copies():
    """Layers start with equal values, but do not share parameters."""
    layer = BaseTransformerLayer(
        MultiheadAttention(8, 2), FFN(8, 16), nn.LayerNorm(8), ("self_attn", "norm", "ffn", "norm")
    )
    stack = TransformerLayerSequence(layer, 3)
    assert len({id(p) for p in stack.parameters()}) == 3 * len(list(layer.parameters()))


def test_wrong_numbers_of_attentions_and_masks_are_errors():
    """Numbers of attentions, masks or operations that do not agree are an error."""
    order = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")
    with pytest.raises(ValueError, match="2 attentions, but attn holds 1"):
        BaseTransformerLayer([MultiheadAttention(8, 2)], FFN(8, 16), nn.LayerNorm(8), order)
    with pytest.raises(ValueError, match="selfattn"):
        BaseTransformerLayer(MultiheadAttention(8, 2), FFN(8, 16), nn.LayerNorm(8), ("selfattn", "norm"))
    layer = BaseTransformerLayer(MultiheadAttention(8, 2), FFN(8, 16), nn.LayerNorm(8), order)
    with pytest.raises(ValueError, match="attn_masks holds 1"):
        layer(torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), torch.zeros(2, 1, 8), attn_masks=[None])


def test_conv_norm_act_order():
    """Convolution, norm, activation; state-dict keys `conv.…` and `norm.…`."""
    block = ConvNormAct(2, 4, 3, padding=1, norm_layer=nn.GroupNorm(2, 4), activation=nn.ReLU())
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(block(x), block.norm(block.conv(x)).relu())
    assert list(block.state_dict()) == ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]
