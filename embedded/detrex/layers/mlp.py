"""Multi-layer perceptron of the heads, and feed-forward block of transformer layers."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows per part of the wide activations; large enough for efficient matrix products.
CPU_ROWS_AT_ONCE = 2048


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them, from (…, input_dim) to (…, output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        self.num_layers = num_layers
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out) for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FFN(nn.Module):
    """The feed-forward block of a transformer layer, with dropout and the residual connection.

    Args:
        embed_dim: width of the input.
        feedforward_dim: width between the linear layers.
        output_dim: width of the output, by default `embed_dim`. Other widths need `add_identity=False`.
        num_fcs: number of linear layers, at least 2.
        activation: module after all linear layers except the last. It is copied once; all layers of the block share its
            parameters (PReLU), which are also in the state dict as `activation`.
        ffn_drop: dropout after every linear layer.
        fc_bias: whether the linear layers have a bias.
        add_identity: whether to add the input to the output.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        feedforward_dim: int = 1024,
        output_dim: int | None = None,
        num_fcs: int = 2,
        activation: nn.Module = nn.ReLU(inplace=True),  # noqa: B008 (copied below)
        ffn_drop: float = 0.0,
        fc_bias: bool = True,
        add_identity: bool = True,
    ):
        super().__init__()
        output_dim = embed_dim if output_dim is None else output_dim
        if num_fcs < 2:
            raise ValueError(f"FFN: num_fcs is {num_fcs}; at least 2 linear layers are needed")
        if add_identity and output_dim != embed_dim:
            raise ValueError(f"FFN: add_identity needs output_dim ({output_dim}) to be embed_dim ({embed_dim})")
        self.embed_dim = embed_dim
        self.feedforward_dim = feedforward_dim
        self.add_identity = add_identity
        self.activation = copy.deepcopy(activation)
        fan_ins = [embed_dim, *[feedforward_dim] * (num_fcs - 2)]
        hidden = [
            nn.Sequential(nn.Linear(fan_in, feedforward_dim, bias=fc_bias), self.activation, nn.Dropout(ffn_drop))
            for fan_in in fan_ins
        ]
        last = nn.Linear(feedforward_dim, output_dim, bias=fc_bias)
        self.layers = nn.Sequential(*hidden, last, nn.Dropout(ffn_drop))

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Transform (…, embed_dim) to (…, output_dim); `identity` replaces `x` in the residual connection."""
        # Flatten to rows: a linear layer's output with more dimensions is a view, and the gradient of an in-place
        # activation of a view needs three passes over it.
        rows = x.flatten(0, -2)
        if torch.is_grad_enabled() and x.device.type == "cpu" and len(rows) > CPU_ROWS_AT_ONCE:
            # Then the gradients of the wide activations exist only for one part at a time, and stay in the cache.
            out = torch.cat([self.layers(part) for part in rows.split(CPU_ROWS_AT_ONCE)])
        else:
            out = self.layers(rows)
        out = out.unflatten(0, x.shape[:-1])
        if not self.add_identity:
            return out
        return out + (x if identity is None else identity)
