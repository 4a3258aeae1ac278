"""Backbone and pyramid of Co-DINO ViT-L, and its settings."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detrex.modeling.backbone import EVA02_ViT

from co_detr.modeling.eva02 import EVA02Backbone, MapRotaryEmbedding, ViTPyramid

from .test_co_dino import images, load, losses_of

SMALL = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2, "window_size": 2, "patch_size": 8}
SMALL |= {"window_block_indexes": [0, 2], "pretrain_img_size": 32, "pt_hw_seq_len": 4}


ONE_SIZE = pytest.mark.engine("detrex's EVA-02 takes images of one size in its global blocks")


@pytest.mark.parametrize("size", [(64, 64), pytest.param((48, 72), marks=ONE_SIZE)])
def test_the_backbone_is_eva_02_with_a_norm(size):
    """The same features as EVA-02's, normalised; on a map of its table's size and on another."""
    torch.manual_seed(0)
    model, plain = EVA02Backbone(**SMALL).eval(), EVA02_ViT(**SMALL).eval()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("out_norm.")}
    missing = plain.load_state_dict(kept, strict=False)
    assert missing.unexpected_keys == [] and all("rope" in name for name in missing.missing_keys)
    assert not [name for name in kept if "rope_glb" in name or "map_rope" in name]
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = F.layer_norm(plain(image)["last_feat"].permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(image)["last_feat"], expected, rtol=1e-4, atol=1e-4)


def test_rotary_positions_are_relative():
    """Scores of rotated queries and keys depend on their offset alone, on either axis."""
    rope = MapRotaryEmbedding(8, 16)
    torch.manual_seed(0)
    query, key = torch.randn(16), torch.randn(16)
    rope.size = (5, 6)
    q, k = (rope(vector.expand(1, 1, 30, 16))[0, 0].view(5, 6, 16) for vector in (query, key))
    score = torch.einsum("abc,dec->abde", q, k)
    torch.testing.assert_close(score[0, 0, 2, 3], score[1, 2, 3, 5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score[3, 4, 1, 0], score[4, 5, 2, 1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score[0, 0, 2, 3], score[0, 0, 3, 2])


def test_levels_of_the_pyramid():
    """Five levels; the finest and the coarsest are the published sequences of operations."""
    torch.manual_seed(0)
    neck = ViTPyramid(16, 8)
    x = torch.randn(2, 16, 5, 7)
    levels = neck({"last_feat": x})
    assert [tuple(level.shape) for level in levels] == [
        (2, 8, 20, 28),
        (2, 8, 10, 14),
        (2, 8, 5, 7),
        (2, 8, 3, 4),
        (2, 8, 2, 2),
    ]

    def norm(maps, layer):
        mean, variance = maps.mean(1, keepdim=True), maps.var(1, keepdim=True, unbiased=False)
        return (maps - mean) / (variance + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    def steps(maps, level, *numbers):
        for number in numbers[:-1]:
            maps = F.gelu(norm(level[number](maps), level[number + 1]))
        return norm(level[numbers[-1]](maps), level[numbers[-1] + 1])

    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    half = F.gelu(norm(neck.p2[1](up), neck.p2[2])).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(levels[0], steps(half, neck.p2, 5, 8, 11), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(levels[4], steps(F.max_pool2d(x, 3, 2, 1), neck.p6, 1, 4, 7), rtol=1e-4, atol=1e-5)


def small_model():
    cfg = load("co_dino_vit_large_5scale_12ep")
    cfg.model.device = "cpu"
    cfg.model.backbone.update(SMALL | {"patch_size": 16, "img_size": 64, "embed_dim": 32, "drop_path_rate": 0.1})
    cfg.model.embed_dim, cfg.model.position_embedding.num_pos_feats = 32, 16
    for part in ("encoder", "decoder"):
        cfg.model.transformer[part].update({"num_layers": 2, "feedforward_dim": 32, "num_heads": 2})
    cfg.model.num_queries, cfg.model.select_box_nums_for_evaluation, cfg.model.dn_number = 30, 20, 4
    rcnn = cfg.model.collaboration.heads.faster_rcnn
    rcnn.hidden_dim, rcnn.num_samples, rcnn.proposals.num_after = 16, 32, 50
    torch.manual_seed(0)
    return instantiate(cfg.model)


@pytest.mark.engine("detrex computes the positions of its queries for 256 channels, whatever the config says")
def test_a_small_model_trains_and_detects():
    """Losses are finite and reach each parameter; a batch detects what its images do alone, padded to 32 pixels."""
    model = small_model()
    losses = losses_of(model, images((96, 72), (64, 100)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    batch = images((96, 72), (64, 100))
    assert model.preprocess_image(batch[:1]).tensor.shape[-2:] == (96, 96)
    with torch.no_grad():
        together = model.eval()(batch)
        for image, found in zip(batch, together, strict=True):
            alone = model([image])[0]["instances"]
            torch.testing.assert_close(found["instances"].scores, alone.scores)


@pytest.mark.engine("reads attributes that detrex's EVA02_ViT keeps under other names")
def test_published_settings():
    """Queries, denoising, heads, rates by layer, sizes of images."""
    cfg = load("co_dino_vit_large_5scale_12ep")
    with torch.device("meta"):
        cfg.model.device = "meta"
        model = instantiate(cfg.model)
    assert (model.num_queries, model.dn_number, model.label_noise_ratio, model.box_noise_scale) == (1500, 300, 0.5, 0.4)
    assert model.size_divisibility == 32 and model.transformer.num_feature_levels == 5
    blocks = model.backbone.blocks
    assert [i for i, block in enumerate(blocks) if not block.attn.window_size] == [3, 7, 11, 15, 19, 23]
    assert blocks[0].mlp.w1.out_features == 2730 and blocks[23].drop_path == pytest.approx(0.4)
    rcnn = model.collaboration.heads["faster_rcnn"]
    assert rcnn.delta_weights == (20, 20, 10, 10) and rcnn.box_pred.out_features == 4 and len(rcnn.convs) == 4
    factor = instantiate(cfg.optimizer.params.lr_factor_func)
    assert factor("backbone.blocks.23.attn") == pytest.approx(0.8) and factor("transformer") == 1
    assert factor("backbone.patch_embed.proj") == factor("backbone.pos_embed") == pytest.approx(0.8**25)
    assert (cfg.train.max_iter, cfg.train.model_ema.decay) == (90000, 0.9999)
    test = cfg.dataloader.test.mapper.augmentation[0]
    assert (test.short_edge_length, test.max_size) == (1280, 2048)


def test_class_agnostic_boxes_are_those_of_one_class():
    """With the same deltas for each class, both kinds of box heads have the same losses."""
    torch.manual_seed(0)
    model = small_model()
    head = model.collaboration.heads["faster_rcnn"]
    logits, deltas = torch.randn(1, 4, 81), torch.randn(1, 4, 1, 4) * 0.1
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 9, 9], [3, 3, 30, 30]]])
    assigned = torch.tensor([[0, 1, -1, 0]])
    from co_detr.heads import PaddedGroundTruth

    objects = PaddedGroundTruth(boxes[:, :2] + 1, torch.tensor([[7, 3]]), torch.ones(1, 2, dtype=torch.bool))
    expected = head.losses(logits, deltas, boxes, assigned, objects)
    head.class_agnostic = False
    found = head.losses(logits, deltas.expand(-1, -1, 80, -1), boxes, assigned, objects)
    torch.testing.assert_close(found, expected)
