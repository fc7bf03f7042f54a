import pytest
import torch
from torch import nn

from rectified.inference.bits.bits import words_to_signs
from rectified.inference.bits.thresholds import input_thresholds, is_monotone, tabulate


def norm(channels):
    made = nn.BatchNorm2d(channels).eval()
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
        made.weight[0] = 0
    return made


def test_a_threshold_is_the_bit_of_every_product():
    torch.manual_seed(0)
    modules, alpha, bias = [nn.ReLU(), norm(33)], torch.rand(33), torch.randn(33)
    step = tabulate(alpha, bias, 50, modules, (), is_image=True)
    d = torch.arange(-50, 51)[:, None]
    flips = words_to_signs(step.flips.view(torch.int64)[None], 33) > 0
    bits = (d >= step.thresholds[:33]) ^ flips
    values = (d.float() * alpha + bias)[:, :, None, None]
    expected = modules[1](modules[0](values)).flatten(1) >= 0
    assert torch.equal(bits, expected)
    assert (step.thresholds[33:] == torch.iinfo(torch.int32).max).all()


def test_the_published_threshold_is_among_them():
    """gamma > 0: bit = [alpha d >= mean - beta sqrt(var + eps) / gamma]."""
    made = norm(8)
    made.weight.data.abs_().add_(0.1)
    alpha = torch.rand(8) + 0.1
    step = tabulate(alpha, torch.zeros(8), 200, [made], (), is_image=True)
    tau = made.running_mean - made.bias * (made.running_var + made.eps).sqrt() / made.weight
    inside = (tau / alpha).abs() < 199
    assert torch.equal(step.thresholds[:8][inside], (tau / alpha).ceil()[inside].int())


def test_what_turns_twice_has_no_threshold():
    class Wave(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    assert tabulate(torch.ones(2), torch.zeros(2), 9, [Wave()], (), is_image=False) is None


@pytest.mark.parametrize(
    "modules",
    [
        [nn.ReLU()],
        [nn.Identity()],
        [nn.ReLU(), norm(16)],
        [norm(16), nn.Hardtanh()],
        [nn.LeakyReLU(), norm(16), nn.Tanh()],
    ],
)
def test_bisection_finds_the_float_where_the_sign_turns(modules):
    thresholds, flips = input_thresholds(modules, 16, is_image=True)
    flipped = words_to_signs(flips[None], 16)[0] > 0
    finite = thresholds[thresholds.isfinite()]
    near = torch.cat(
        [finite, finite.nextafter(torch.tensor(9e9)), finite.nextafter(-torch.tensor(9e9))]
    )
    x = torch.cat([near, torch.randn(200), torch.zeros(1), -torch.zeros(1)])[:, None].expand(-1, 16)
    expected = x[:, :, None, None].contiguous()
    for module in modules:
        expected = module(expected)
    assert torch.equal((x >= thresholds) ^ flipped, expected.flatten(1) >= 0)


def test_what_is_monotone():
    assert is_monotone(nn.PReLU())
    bent = nn.PReLU()
    bent.weight.data.fill_(-1)
    assert not is_monotone(bent)
    assert not is_monotone(nn.BatchNorm2d(2, track_running_stats=False))
    assert not is_monotone(nn.SiLU())
