"""A small vision transformer.

The image is cut into patches; each becomes a token. A class token is put in front, a learnt
position is added to each, and `depth` layers follow, each normalised at its entry:

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

The logits are a linear function of the class token. Modules are named as in torchvision's
VisionTransformer; the attention's projections are plain linear layers, so that they can be pruned,
counted and replaced like all others.

References:
    A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
    Scale", 2020, arXiv:2010.11929, equations 1-4.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rectified.errors import UserError

Layer = Callable[..., nn.Module]


def vit(
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    patch: int = 4,
    dim: int = 128,
    depth: int = 6,
    heads: int = 4,
    activation: Callable[[], nn.Module] = nn.GELU,
    conv: Layer = nn.Conv2d,
    linear: Layer = nn.Linear,
) -> "VisionTransformer":
    """Build a small vision transformer.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: height and width of an image, multiples of `patch`.
        patch: side of a patch in pixels.
        dim: length of a token, a multiple of `heads`.
        depth: number of layers.
        heads: number of attention heads.
        activation: makes the module between the two linear layers of each MLP.
        conv: makes the layer that turns patches into tokens as `nn.Conv2d` does.
        linear: makes each linear layer as `nn.Linear` does.

    Returns:
        Logits of images.

    Raises:
        UserError: if the image cannot be cut into patches, or a token into heads.

    Example:
        >>> model = vit(num_classes=10, in_channels=3, image_size=(32, 32))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    height, width = image_size
    if patch < 1 or height % patch or width % patch:
        raise UserError(f"patch must divide the image size {height}x{width}, got {patch}")
    if heads < 1 or dim % heads:
        raise UserError(f"heads must divide dim ({dim}), got {heads}")
    layers = [EncoderLayer(dim, heads, activation, linear) for _ in range(depth)]
    model = VisionTransformer(
        conv(in_channels, dim, patch, stride=patch),
        Encoder(layers, tokens=1 + (height // patch) * (width // patch), dim=dim),
        linear(dim, num_classes),
    )
    _init_(model)
    return model


class VisionTransformer(nn.Module):
    """Patches to tokens, an encoder, a head on the class token; made by `vit`."""

    def __init__(self, conv_proj: nn.Module, encoder: "Encoder", head: nn.Module) -> None:
        super().__init__()
        self.conv_proj = conv_proj
        self.class_token = nn.Parameter(torch.zeros(1, 1, encoder.pos_embedding.shape[2]))
        self.encoder = encoder
        self.heads = nn.Sequential(OrderedDict(head=head))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.heads(self.encoder(tokens)[:, 0])


class Encoder(nn.Module):
    """Positions, layers, a last normalisation."""

    def __init__(self, layers: list["EncoderLayer"], tokens: int, dim: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, tokens, dim))
        named = {f"encoder_layer_{number}": layer for number, layer in enumerate(layers)}
        self.layers = nn.Sequential(OrderedDict(named))
        self.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return self.ln(self.layers(x + self.pos_embedding))


class EncoderLayer(nn.Module):
    """Attention and an MLP of four times the width, each added to its input."""

    def __init__(
        self, dim: int, heads: int, activation: Callable[[], nn.Module], linear: Layer
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = SelfAttention(dim, heads, linear)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(linear(dim, 4 * dim), activation(), linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    """Each token looks at all tokens, once in each head.

    Args:
        dim: length of a token, a multiple of `heads`.
        heads: number of heads.
        linear: makes the two projections.

    References:
        A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2.

    Example:
        >>> SelfAttention(8, heads=2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, heads: int, linear: Layer = nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = linear(dim, 3 * dim)
        self.out_proj = linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        split = self.in_proj(x).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def _init_(model: VisionTransformer) -> None:
    # Truncated normal of standard deviation 0.02 and zero biases, as BERT and ViT start.
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.encoder.pos_embedding, std=0.02)
    nn.init.trunc_normal_(model.class_token, std=0.02)
