import pytest
import torch
from torch import nn

from rectified.errors import UserError
from rectified.models import vit
from rectified.models.vit import SelfAttention


def build(**options):
    return vit(**{"num_classes": 10, "in_channels": 3, "image_size": (32, 32), **options})


def tokens(count=5, dim=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, dim, dtype=torch.float64, generator=generator)


def test_attention_is_that_of_pytorch():
    ours, theirs = SelfAttention(8, heads=2).double(), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs = theirs.double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.in_proj.weight, ours.in_proj.bias
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = tokens()
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_encoder_without_positions_does_not_see_the_order_of_tokens():
    encoder = build(dim=8, heads=2, depth=2).encoder.double()
    order = torch.tensor([3, 0, 4, 1, 2])
    x = tokens()
    torch.testing.assert_close(encoder.layers(x)[:, order], encoder.layers(x[:, order]))


def test_every_patch_is_one_token_beside_the_class_token():
    assert build(image_size=(12, 20)).encoder.pos_embedding.shape == (1, 1 + 3 * 5, 128)


def test_modules_are_named_as_in_torchvision():
    names = set(build(depth=1).state_dict())
    layer = "encoder.layers.encoder_layer_0"
    assert {
        "class_token",
        "conv_proj.weight",
        "encoder.pos_embedding",
        f"{layer}.ln_1.weight",
        f"{layer}.self_attention.out_proj.weight",
        f"{layer}.ln_2.bias",
        f"{layer}.mlp.0.weight",
        "encoder.ln.weight",
        "heads.head.weight",
    } <= names


def test_depth_is_the_number_of_layers():
    assert len(build(depth=3).encoder.layers) == 3


@pytest.mark.parametrize(("patch", "size"), [(5, (32, 32)), (4, (32, 30)), (0, (32, 32))])
def test_patches_that_do_not_fit_are_refused(patch, size):
    with pytest.raises(UserError, match=f"patch must divide the image size .* got {patch}"):
        build(patch=patch, image_size=size)


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(UserError, match=rf"heads must divide dim \(128\), got {heads}"):
        build(heads=heads)
