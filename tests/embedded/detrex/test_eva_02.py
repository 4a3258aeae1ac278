"""EVA-02: rotary positions, windows and blocks against slow formulations; any image size; training options."""

import math

import pytest
import torch
import torch.nn.functional as F
from detrex.modeling.backbone import EVA02_ViT


def small(**options):
    torch.manual_seed(0)
    settings = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "window_size": 4}
    settings |= {"window_block_indexes": [0, 2], "pretrain_img_size": 32, "pt_hw_seq_len": 4} | options
    model = EVA02_ViT(**settings)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def rotated(vector, row, column, height, width, length):
    """One token's channels (D,), rotated pair by pair: the first half by its row, the second by its column."""
    half = len(vector) // 2
    result = []
    for start, place, extent in ((0, row, height), (half, column, width)):
        for pair in range(half // 2):
            angle = place / extent * length * 10000 ** (-2 * pair / half)
            a, b = vector[start + 2 * pair], vector[start + 2 * pair + 1]
            result += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
    return torch.stack(result)


def attention_of_a_window(attention, x, length):
    """Tokens (H, W, D) to the same shape, one pair of tokens at a time."""
    height, width, dim = x.shape
    heads = attention.num_heads
    cells = [(i, j) for i in range(height) for j in range(width)]
    tokens = torch.stack([x[cell] for cell in cells])
    query = tokens @ attention.q_proj.weight.T + attention.q_bias
    key = tokens @ attention.k_proj.weight.T
    value = tokens @ attention.v_proj.weight.T + attention.v_bias
    outputs = torch.zeros(len(cells), dim)
    for h in range(heads):
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        q, k = (
            torch.stack([rotated(t[n, part], *cell, height, width, length) for n, cell in enumerate(cells)])
            for t in (query, key)
        )
        outputs[:, part] = (q @ k.T / math.sqrt(dim // heads)).softmax(-1) @ value[:, part]
    return attention.proj(outputs).view(x.shape)


def by_hand(model, image):
    """The feature map (D, H, W) of one image."""
    x = F.conv2d(image[None], model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8)[0].permute(1, 2, 0)
    height, width = x.shape[:2]
    grid = model.pos_embed[0, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    x = x + F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    for index, block in enumerate(model.blocks):
        normed, attended = block.norm1(x), torch.zeros_like(x)
        side = 4 if index in (0, 2) else None
        if side is None:
            attended = attention_of_a_window(block.attn, normed, 4)
        for top in range(0, height, side) if side else ():
            for left in range(0, width, side):
                piece = normed[top : top + side, left : left + side]
                window = F.pad(piece, (0, 0, 0, side - piece.shape[1], 0, side - piece.shape[0]))
                result = attention_of_a_window(block.attn, window, 4)
                attended[top : top + side, left : left + side] = result[: piece.shape[0], : piece.shape[1]]
        x = x + attended
        hidden = block.norm2(x)
        gate = hidden @ block.mlp.w1.weight.T + block.mlp.w1.bias
        hidden = gate * gate.sigmoid() * (hidden @ block.mlp.w2.weight.T + block.mlp.w2.bias)
        x = x + block.mlp.w3(block.mlp.ffn_ln(hidden))
    return x.permute(2, 0, 1)


@pytest.mark.parametrize("size", [(64, 64), (48, 72), (40, 33)])
def test_features_are_those_of_loops(size):
    """Windows that divide the map, windows that do not, and images that are not whole patches."""
    model = small().eval()
    torch.manual_seed(1)
    image = torch.randn(3, *size)
    with torch.no_grad():
        found = model(image[None])["last_feat"]
        expected = by_hand(model, image[:, : size[0] // 8 * 8, : size[1] // 8 * 8])
    assert found.shape == (1, 16, size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_kept_tables_are_the_computed_angles():
    """A map of the table's size uses the table; the same angles computed anew give the same features."""
    model = small().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)["last_feat"]
        model.rope_glb.side = model.rope_win.side = 0
        torch.testing.assert_close(model(image)["last_feat"], expected, rtol=1e-5, atol=1e-5)


def test_names_are_detrexs():
    """Tables of both kinds of blocks, under the model and under each block."""
    keys = set(small().state_dict())
    assert {"rope_win.freqs_cos", "rope_glb.freqs_sin", "blocks.1.attn.rope.freqs_cos"} <= keys
    block = {name.removeprefix("blocks.0.") for name in keys if name.startswith("blocks.0.")}
    linear = {f"mlp.{name}.{kind}" for name in ("w1", "w2", "ffn_ln", "w3") for kind in ("weight", "bias")}
    assert linear | {"attn.q_bias", "attn.v_bias", "attn.k_proj.weight", "norm1.weight"} <= block
    assert small().state_dict()["rope_glb.freqs_cos"].shape == (64, 8)


def test_checkpointing_changes_no_gradient():
    """With and without, in training without stochastic depth."""
    gradients = []
    for use in (False, True):
        model = small(use_act_checkpoint=use).train()
        torch.manual_seed(2)
        model(torch.randn(2, 3, 48, 40))["last_feat"].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(small().parameters()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_stochastic_depth_drops_whole_images():
    """The last block is skipped for some images, in training only; the mean over many draws is the full branch."""
    model = small(drop_path_rate=0.5)
    assert [block.drop_path for block in model.blocks] == [0, 0.25, 0.5]
    branch = torch.ones(4000, 1, 1, 1)
    torch.manual_seed(0)
    kept = model.blocks[2].train()._drop(branch)
    assert set(kept.flatten().tolist()) == {0.0, 2.0} and abs(float(kept.mean()) - 1) < 0.1
    assert torch.equal(model.blocks[2].eval()._drop(branch), branch)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"embed_dim": 12}, "embed_dim=12 is not a multiple of 4"),
        ({"residual_block_indexes": [1]}, "residual_block_indexes=.1.: set it to"),
    ],
)
def test_invalid_options_are_reported(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match="5 x 40 pixels are smaller than a patch of 8"):
        small()(torch.zeros(1, 3, 5, 40))
