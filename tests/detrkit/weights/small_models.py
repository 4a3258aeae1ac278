"""Configs of detectors whose sizes are those of a state dict."""

from types import SimpleNamespace

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone import BottleneckBlock
from detrex.layers import ShapeSpec
from detrex.modeling.backbone.resnet import BasicStem, ResNet
from omegaconf import DictConfig, OmegaConf

from align_detr._platform import is_upstream
from detrkit.config.load import get_config, load_config
from detrkit.weights import all_formats, write_weights

CONFIGS = {
    "DINO": "baselines/dino_tiny.py",
    "CoDINO": "baselines/dino_tiny.py",
    "CoDeformableDETR": "baselines/h_deformable_detr_tiny.py",
    "HDeformableDETR": "baselines/h_deformable_detr_tiny.py",
    "DABDETR": "baselines/dab_detr_tiny.py",
    "ConditionalDETR": "baselines/conditional_detr_tiny.py",
}
NO_SECOND_QUERIES = ["model.num_queries_one2many=0", "model.k_one2many=0"]
SHAPE = {
    "hf_deformable_detr": [*NO_SECOND_QUERIES, "model.mixed_selection=False"],
    "sensex_co_deformable_detr": NO_SECOND_QUERIES,
}
"""What the model of a format looks like, beside its tiny config."""
LACKING = ["model.inverse_sigmoid_eps", "model.transformer.decoder.inverse_sigmoid_eps"] if is_upstream() else []
"""Settings of other code bases that detrex's detectors have no option for: 1e-3 is written into their code."""


def accepting(*settings: str) -> list[str]:
    """Overrides by which a user accepts other results than those of these settings, and of those that are lacking."""
    ignored = [*settings, *LACKING]
    return [f"+train.ignore_checkpoint_settings=[{','.join(ignored)}]"] if ignored else []


def backbone(state: dict) -> tuple[DictConfig, list[int]]:
    """A ResNet of the tensors `backbone.*`, and the channels that its stages put out."""
    stages, widths = [], []
    channels = len(state["backbone.stem.conv1.weight"])
    stem = channels
    for number in (2, 3, 4, 5):
        out = len(state[f"backbone.res{number}.0.conv3.weight"])
        blocks = sum(f"backbone.res{number}.{block}.conv1.weight" in state for block in range(100))
        stages.append(
            L(ResNet.make_stage)(
                block_class=BottleneckBlock,
                num_blocks=blocks,
                in_channels=channels,
                out_channels=out,
                bottleneck_channels=len(state[f"backbone.res{number}.0.conv1.weight"]),
                stride_per_block=[1 if number == 2 else 2] + [1] * (blocks - 1),
                stride_in_1x1=False,
                norm="FrozenBN",
            )
        )
        widths.append(out)
        channels = out
    node = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=stem, norm="FrozenBN"),
        stages=stages,
        out_features=["res5"],
        freeze_at=0,
    )
    return node, widths


def config_for(detector: str, state: dict, num_heads: int, detections: int = 30) -> DictConfig:
    """The tiny config of a detector with the sizes of `state`, which has detrex's names. Settings that no tensor
    tells, such as those of positions, and numbers of classes and queries, are the tiny config's."""
    cfg = get_config(CONFIGS[detector])
    cfg.train.device = "cpu"
    model = cfg.model
    model.backbone, widths = backbone(state)
    single = "input_proj.weight" in state
    dim = len(state["input_proj.weight" if single else "neck.convs.0.conv.weight"])
    model.embed_dim = dim
    model.position_embedding.num_pos_feats = dim // 2
    model.select_box_nums_for_evaluation = detections
    for part in ("encoder", "decoder"):
        stack = model.transformer[part]
        first = f"transformer.{part}.layers.#.ffns.0.layers.0.0.weight"
        stack.num_heads = num_heads
        stack.num_layers = sum(first.replace("#", str(layer)) in state for layer in range(100))
        stack.feedforward_dim = len(state[first.replace("#", "0")])
    if single:
        model.in_features, model.in_channels = ["res5"], widths[-1]
        return cfg
    levels = len(state["transformer.level_embeds"])
    laterals = sum(f"neck.convs.{level}.conv.weight" in state for level in range(10))
    names = ["res2", "res3", "res4", "res5"][-laterals:]
    model.backbone.out_features = names
    model.neck.in_features = names
    model.neck.input_shapes = {
        name: L(ShapeSpec)(channels=width) for name, width in zip(names, widths[-laterals:], strict=True)
    }
    model.transformer.num_feature_levels = levels
    return cfg


def heads_of(config: dict, detector: str) -> int:
    """The number of attention heads of a recorded model."""
    model = config["model"]
    found = model.get("encoder_attention_heads") or model.get("nheads")
    return found or 8  # mmdetection's default


def random_state(shapes: dict, seed: int = 0) -> dict:
    """Tensors of these shapes, small and random; running variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


def inputs_of(case: SimpleNamespace) -> list[dict]:
    """The images of a recorded case as a detector takes them."""
    return [{"image": one["image"], "height": int(one["height"]), "width": int(one["width"])} for one in case.input]


def config_name(name):
    detector = all_formats()[name].detector
    collaborative = {"CoDINO": "co_dino_tiny", "CoDeformableDETR": "co_deformable_detr_tiny"}
    if detector in collaborative:
        return collaborative[detector]
    return CONFIGS[detector].rpartition("/")[2].removesuffix(".py")


def random_file(name, path, **changes):
    """A file of a format, made of a tiny detector's random weights, and these weights."""
    cfg = load_config(config_name(name), SHAPE.get(name, []))
    cfg.train.device = cfg.model.device = "cpu"
    OmegaConf.update(cfg, "model", changes)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    write_weights(path, model.state_dict(), all_formats()[name])
    return model.state_dict()
