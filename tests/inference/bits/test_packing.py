"""A packed network computes what the network does: layer by layer, fused, and without numba."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rectified.binary import BinaryConv2d, BinaryLinear, convert
from rectified.binary.layers import binary_layers
from rectified.errors import UserError
from rectified.inference import pack
from rectified.inference.bits import operations
from rectified.inference.bits.layers import PackedProduct, PoolBits
from rectified.models import cnn, mlp, one_bit_resnet20, resnet20, vgg_small

CLOSE = 2e-6
SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}
ENGINES = ["kernels", "torch"]


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """Compiled kernels, and PyTorch where there is no numba."""
    if request.param == "torch":
        monkeypatch.setattr(operations, "has_kernels", lambda: False)
    else:
        pytest.importorskip("numba")
    return request.param


def settled(model):
    """Norms as after a training; some of their factors are negative, some zero."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            if norm.running_mean is not None:
                norm.running_mean.normal_(0, 0.5)
                norm.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                norm.weight.normal_()
                norm.weight[::7] = 0
                norm.bias.normal_(0, 0.5)
    return model.eval()


@torch.no_grad()
def difference(model, x, packed=None):
    return ((packed or pack(model))(x) - model.eval()(x)).abs().max().item()


# ---- layers alone


@settings(max_examples=60)
@given(st.data())
def test_a_convolution_equals_its_float_twin_for_any_shape(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    inputs, outputs = draw(1, 140), draw(1, 70)
    kernel = draw(1, 5), draw(1, 5)
    stride, padding = (draw(1, 3), draw(1, 3)), (draw(0, 4), draw(0, 4))
    size = (
        draw(max(1, kernel[0] - 2 * padding[0]), 9),
        draw(max(1, kernel[1] - 2 * padding[1]), 12),
    )
    torch.manual_seed(draw(0, 1000))
    layer = BinaryConv2d(inputs, outputs, kernel, stride, padding, bias=data.draw(st.booleans()))
    x = torch.randn(draw(1, 3), inputs, *size)
    x[x.abs() < 0.1] = 0.0
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    assert difference(layer, x) <= CLOSE


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 130), st.integers(1, 9), st.integers(1, 2))
def test_a_linear_layer_equals_its_float_twin_for_any_shape(inputs, outputs, rows, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer, x = BinaryLinear(inputs, outputs), torch.randn(rows, inputs)
        assert difference(layer, x) <= CLOSE
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", ["channel", "layer", "none"])
@pytest.mark.parametrize("standardize", [False, True])
def test_scales_and_standardised_weights(engine, scale, standardize):
    layer = BinaryConv2d(9, 5, 3, padding=1, scale=scale, standardize=standardize)
    assert difference(layer, torch.randn(2, 9, 6, 6)) <= CLOSE


@pytest.mark.parametrize("engine_of", ENGINES)
def test_integers_are_exact(engine_of, monkeypatch):
    if engine_of == "torch":
        monkeypatch.setattr(operations, "has_kernels", lambda: False)
    layer = BinaryConv2d(200, 40, 3, padding=1, scale="none", bias=False)
    x = torch.randn(2, 200, 8, 8)
    signs = lambda t: torch.where(t >= 0, 1.0, -1.0).double()  # noqa: E731
    expected = F.conv2d(signs(x), signs(layer.weight), None, 1, 1)
    assert torch.equal(pack(layer)(x).double(), expected)


def test_more_axes_and_other_types(engine):
    layer = BinaryLinear(70, 5)
    packed = pack(layer)
    x = torch.randn(2, 3, 70)
    assert difference(layer, x, packed) <= CLOSE
    assert difference(layer, x[0, 0], packed) <= CLOSE
    for other in (x.double(), x.bfloat16()):
        assert torch.equal(packed(other), packed(other.float()))
    strided = torch.randn(5, 140)[:, ::2]
    assert difference(layer, strided, packed) <= CLOSE


def test_zeros_and_nan(engine):
    layer = BinaryLinear(3, 1, scale="none", bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.0, 1.0]])
    x = torch.tensor([[0.0, -0.0, float("nan")]])
    assert pack(layer)(x).item() == layer(x).item() == 1  # +1 +1 -1


def test_one_image_and_none(engine):
    layer = BinaryConv2d(5, 6, 3, padding=1)
    packed = pack(layer)
    assert difference(layer, torch.randn(5, 7, 7), packed) <= CLOSE
    assert packed(torch.zeros(0, 5, 7, 7)).shape == (0, 6, 7, 7)
    assert pack(BinaryLinear(70, 3))(torch.zeros(0, 70)).shape == (0, 3)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (BinaryConv2d(5, 6, 3), torch.zeros(2, 4, 7, 7)),
        (BinaryConv2d(5, 6, 3), torch.zeros(2, 5, 7, 7, dtype=torch.int64)),
        (BinaryConv2d(5, 6, 3), torch.zeros(7, 7)),
        (BinaryLinear(5, 6), torch.zeros(2, 4)),
        (BinaryLinear(5, 6), torch.zeros(2, 5, device="meta")),
    ],
)
def test_what_the_kernels_would_read_beyond_is_refused(layer, x):
    with pytest.raises(UserError, match=r"x must have 5 .* on the CPU, got "):
        pack(layer)(x)


def test_words_for_padding_same_and_valid(engine):
    for padding in ("same", "valid"):
        layer = BinaryConv2d(5, 6, 3, padding=padding)
        packed = pack(layer)
        assert packed.layers[0].way == "bits"
        assert difference(layer, torch.randn(1, 5, 7, 7), packed) <= CLOSE


# ---- what the kernels do not take


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BinaryConv2d(4, 4, 3, groups=2), "groups is 2, not 1"),
        (BinaryConv2d(4, 4, 3, dilation=2), "dilation is (2, 2), not 1"),
        (
            BinaryConv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "padding_mode is 'reflect', not zeros",
        ),
        (
            BinaryConv2d(4, 4, 2, padding="same"),
            "padding 'same' of an even kernel is not the same on both sides",
        ),
        (BinaryConv2d(4, 4, 3, activation_bits=32), "its inputs have 32 bits"),
    ],
)
def test_a_layer_that_the_kernels_do_not_take_runs_in_float_and_is_listed(layer, reason):
    model = nn.Sequential(layer, nn.ReLU())
    packed = pack(model)
    assert [(one.name, one.way, one.reason) for one in packed.layers] == [("0", "float", reason)]
    assert difference(model, torch.randn(2, 4, 8, 8), packed) <= CLOSE


# ---- networks


def networks():
    small = {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
    return {
        "cnn": (cnn(**small), (4, 1, 8, 8), {("bits", "floats"), ("floats", "bits")}),
        "mlp": (
            mlp(**small, widths=(70, 50, 30), norm=nn.BatchNorm1d),
            (5, 1, 8, 8),
            {("bits", "floats"), ("floats", "bits")},
        ),
        "vgg_small": (
            vgg_small(**SHAPE),
            (2, 3, 32, 32),
            {("floats", "bits"), ("bits", "bits"), ("bits", "floats")},
        ),
        "resnet20 of the paper": (
            one_bit_resnet20(**SHAPE),
            (2, 3, 32, 32),
            {("floats", "bits"), ("bits", "floats")},
        ),
        "Bi-Real": (
            one_bit_resnet20(**SHAPE, bi_real=True),
            (2, 3, 32, 32),
            {("floats", "floats")},
        ),
        "resnet20 of He et al.": (
            resnet20(**SHAPE, shortcut="pad"),
            (2, 3, 32, 32),
            {("floats", "bits"), ("bits", "floats")},
        ),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_a_network_equals_its_float_twin_and_passes_bits_on(name, engine):
    torch.manual_seed(1)
    model, shape, ways = networks()[name]
    model = settled(convert(model))
    packed = pack(model)
    assert {(layer.reads, layer.gives) for layer in packed.layers} == ways
    assert [layer.name for layer in packed.layers] == list(binary_layers(model))
    x = torch.randn(shape)
    assert difference(model, x, packed) <= CLOSE
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert packed(channels_last).shape == (len(x), 10)


def chain(*between, pool_first=False):
    first = BinaryConv2d(20, 40, 3, padding=1)
    second = BinaryConv2d(40, 3, 3, padding=1)
    return settled(nn.Sequential(first, *between, second))


CHAINS = {
    "nothing": (),
    "norm": (nn.BatchNorm2d(40),),
    "relu, norm, pool": (nn.ReLU(), nn.BatchNorm2d(40), nn.MaxPool2d(2)),
    "pool, norm": (nn.MaxPool2d(2), nn.BatchNorm2d(40)),
    "norm, pool, norm": (nn.BatchNorm2d(40), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(40)),
    "prelu, hardtanh": (nn.PReLU(40), nn.BatchNorm2d(40), nn.Hardtanh()),
    "dropout, leaky": (nn.Dropout(), nn.LeakyReLU(), nn.BatchNorm2d(40), nn.Identity()),
}


@pytest.mark.parametrize("name", list(CHAINS))
def test_what_stands_between_two_layers_becomes_thresholds(name, engine):
    torch.manual_seed(2)
    model = chain(*copy.deepcopy(CHAINS[name]))
    packed = pack(model)
    kinds = [type(module) for module in packed.network.children()]
    assert set(kinds) <= {PackedProduct, PoolBits}
    assert packed.layers[0].gives == "bits"
    for size in (8, 9):
        assert difference(model, torch.randn(3, 20, size, size), packed) <= CLOSE


@pytest.mark.parametrize(
    "between",
    [
        (nn.GELU(),),
        (nn.LeakyReLU(-0.5),),
        (nn.AvgPool2d(2),),
        (nn.MaxPool2d(2, ceil_mode=True),),
        (nn.BatchNorm2d(40, track_running_stats=False),),
        (nn.MaxPool2d(2), nn.MaxPool2d(2)),
    ],
)
def test_what_is_not_monotone_stays(between):
    model = chain(*between)
    packed = pack(model)
    assert packed.layers[0].gives == "floats"
    assert difference(model, torch.randn(2, 20, 9, 9), packed) <= CLOSE


class Forked(nn.Module):
    """One layer's output goes to two 1-bit layers; another's also to a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (BinaryConv2d(8, 8, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.norm(self.a(x))
        z = self.b(y) + self.c(y)
        return z + self.a(z)


def test_a_value_with_several_readers_and_a_layer_that_is_called_twice():
    model = settled(Forked())
    packed = pack(model)
    assert difference(model, torch.randn(2, 8, 6, 6), packed) <= CLOSE
    assert {layer.gives for layer in packed.layers} == {"floats"}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = BinaryLinear(6, 3)

    def forward(self, x):
        return self.layer(x) if len(x) > 1 else self.layer(-x)


def test_what_cannot_be_traced_is_packed_layer_by_layer():
    model = Branching()
    packed = pack(model)
    assert packed.notes[0].startswith("layers do not pass bits on: torch.fx cannot trace Branching")
    for rows in (1, 3):
        assert difference(model, torch.randn(rows, 6), packed) <= CLOSE


def test_the_model_is_left_alone_and_packed_in_evaluation_mode():
    model = nn.Sequential(BinaryLinear(6, 6), nn.BatchNorm1d(6), BinaryLinear(6, 2))
    state = copy.deepcopy(model.state_dict())
    packed = pack(model)
    assert model.training
    assert not packed.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in packed.parameters())


# ---- mistakes


def test_there_must_be_1_bit_layers():
    with pytest.raises(UserError, match="model must have 1-bit layers"):
        pack(nn.Linear(2, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(bad):
    model = nn.Sequential(BinaryLinear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.data[0, 0] = bad
    with pytest.raises(UserError, match=r"must be finite, got NaN or infinity in '0\.weight'"):
        pack(model)


# ---- threads, processes, compilers


def test_many_threads_may_call_it_at_once():
    layer, x = BinaryLinear(512, 512), torch.randn(64, 512)
    packed, expected, found = pack(layer), layer(x), []
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=lambda: found.append(packed(x))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(1)
    assert len(found) == 4
    assert all(torch.allclose(y, expected, atol=CLOSE) for y in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_use_it():
    code = """
import os, torch
from rectified.binary import BinaryLinear
from rectified.inference import pack
torch.set_num_threads(2)
packed, x = pack(BinaryLinear(512, 512)), torch.randn(64, 512)
expected = packed(x)
child = os.fork()
if not child:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(packed(x), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("unchecked")
def test_it_compiles_to_operators(engine):
    model = chain(nn.ReLU(), nn.BatchNorm2d(40), nn.MaxPool2d(2))
    packed, x = pack(model), torch.randn(2, 20, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), packed(x))
    linear = pack(BinaryLinear(70, 5))
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x.view(2, -1)[:, :70]), linear(x.view(2, -1)[:, :70]))


@pytest.mark.usefixtures("unchecked")
def test_it_exports():
    model = pack(chain(nn.BatchNorm2d(40)))
    x = torch.randn(2, 20, 8, 8)
    exported = torch.export.export(model, (x,))
    assert any("rectified.binary" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.usefixtures("unchecked")
def test_operators_know_their_shapes():
    bits = torch.zeros(2, 8, 8, 1, dtype=torch.int64)
    layer = pack(BinaryConv2d(20, 40, 3, padding=1)).network
    arguments = (bits, layer.panels, layer.alpha, layer.bias, 20, 40, [3, 3], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.rectified.binary_products, arguments)
    thresholds = torch.zeros(64, dtype=torch.int32)
    flips = torch.zeros(2, dtype=torch.int32)
    arguments = (bits, layer.panels, thresholds, flips, 20, 40, [3, 3], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.rectified.binary_product_bits, arguments)
    channels = (torch.zeros(20), torch.zeros(1, dtype=torch.int64))
    torch.library.opcheck(torch.ops.rectified.binary_pack, (torch.randn(2, 20, 8, 8), *channels))
    torch.library.opcheck(
        torch.ops.rectified.binary_pool, (bits, channels[1], [2, 2], [2, 2], [0, 0])
    )


@pytest.mark.parametrize("features", ["+avx2,+fma,+avx,+ssse3,+sse4.1,+sse4.2,+popcnt,+bmi,+bmi2"])
def test_vectors_of_avx2_give_the_same(features, tmp_path):
    numba = pytest.importorskip("numba")
    if "avx2" not in numba.core.codegen.get_host_cpu_features():
        pytest.skip("needs a CPU with AVX2")
    code = """
import torch
from rectified.binary import BinaryConv2d
from rectified.inference import pack
from rectified.inference.bits.kernels import LANES
assert LANES == 4, LANES
torch.manual_seed(0)
layer, x = BinaryConv2d(70, 45, 3, 2, 1), torch.randn(2, 70, 9, 11)
assert torch.allclose(pack(layer)(x), layer(x), atol=2e-6)
"""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_blocks_and_threads_do_not_change_anything(monkeypatch):
    layer, x = BinaryConv2d(64, 96, 3, padding=1), torch.randn(2, 64, 12, 12)
    expected = pack(layer)(x)
    monkeypatch.setattr(operations, "BLOCK_WORDS", 7)
    monkeypatch.setattr(operations, "ALONE", 1)
    operations._plan.cache_clear()
    torch.set_num_threads(2)
    try:
        assert torch.equal(pack(layer)(x), expected)
    finally:
        torch.set_num_threads(1)
        operations._plan.cache_clear()


@pytest.mark.parametrize(("images", "threads"), [(1, 1), (64, 2)])
def test_small_float_layers_leave_the_other_cores_to_the_kernels(images, threads):
    pytest.importorskip("numba")
    seen, told = [], []

    def look(*_):
        seen.append((torch.get_num_threads(), operations._threads()))

    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Hardtanh(), BinaryConv2d(64, 64, 3)).eval()
    packed, x = pack(model), torch.randn(images, 3, 40, 40)
    packed.network.get_submodule("0").register_forward_hook(look)
    torch.set_num_threads(2)
    try:
        first = packed(x[:1])  # it counts
        again = packed(x)
        told.append(torch.get_num_threads())
        with pytest.raises(RuntimeError):
            packed(x[:, :2])
        told.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(1)
    assert seen == [(2, 2), (threads, 2)]
    assert told == [2, 2]
    assert torch.equal(first, again[:1])
    assert operations._threads() == 1


# ---- other people's networks


@pytest.mark.parametrize("shape", [(70,), (5, 70), (2, 7, 70), (2, 0, 70), (0, 70), (1, 2, 3, 70)])
def test_linear_layers_keep_whatever_axes_there_are(shape, engine):
    between = (BinaryLinear(70, 65), nn.Hardtanh(), BinaryLinear(65, 40), nn.PReLU())
    model = nn.Sequential(nn.Linear(70, 70), nn.Hardtanh(), BinaryLinear(70, 70), *between)
    packed = pack(model)
    assert [layer.gives for layer in packed.layers] == ["bits", "bits", "floats"]
    x = torch.randn(shape)
    assert packed(x).shape == (*shape[:-1], 40)
    if x.numel():
        assert difference(model, x, packed) <= CLOSE


def test_one_image_without_a_batch(engine):
    layers = BinaryConv2d(3, 70, 3, padding=1), nn.MaxPool2d(2), nn.Hardtanh()
    model, x = nn.Sequential(*layers, BinaryConv2d(70, 5, 3)), torch.randn(3, 9, 9)
    assert difference(model, x) <= CLOSE


def test_a_norm_over_tokens_stays_and_over_features_takes_rows_only():
    def tokens(entries):
        norms = nn.BatchNorm1d(entries), nn.BatchNorm1d(entries)
        layers = nn.Linear(12, 12), norms[0], BinaryLinear(12, 12), norms[1], BinaryLinear(12, 4)
        return settled(nn.Sequential(*layers))

    over_tokens, x = tokens(7), torch.randn(3, 7, 12)
    packed = pack(over_tokens)
    assert [layer.gives for layer in packed.layers] == ["floats", "floats"]
    assert difference(over_tokens, x, packed) <= CLOSE
    over_features = tokens(12)
    packed = pack(over_features)
    assert [layer.gives for layer in packed.layers] == ["bits", "floats"]
    assert difference(over_features, torch.randn(3, 12), packed) <= CLOSE
    with pytest.raises(UserError, match="x must have 12 features in rows"):
        packed(torch.randn(3, 12, 12))  # along which axis the norm works cannot be known any more


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_of_the_kernels_keep_their_type(kind):
    model = settled(chain(nn.BatchNorm2d(40), nn.MaxPool2d(2)))
    packed, x = pack(model), torch.randn(2, 20, 8, 8)
    expected = packed(x)
    assert torch.equal(packed.to(kind)(x), expected)
    assert torch.equal(packed(x.to(kind)), pack(model)(x.to(kind).float()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        assert torch.equal(pack(model)(x), expected)
        linear, rows = BinaryLinear(70, 9), torch.randn(2, 70)
        assert pack(linear)(rows).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_a_part_of_a_network_in_training_stays_in_evaluation_mode():
    stem = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU())
    packed, x = pack(settled(nn.Sequential(stem, BinaryLinear(8, 3)))), torch.randn(5, 8)
    expected = packed(x)
    outer = nn.Sequential(packed).train()
    assert torch.equal(outer(x), expected)
    assert not any(module.training for module in packed.modules())


def test_hooks_are_called_on_what_the_network_computes():
    model = nn.Sequential(BinaryLinear(8, 8), nn.Hardtanh(), BinaryLinear(8, 8), BinaryLinear(8, 3))
    model[0].register_forward_hook(lambda _layer, _inputs, output: output - 1)
    model[1].register_forward_hook(lambda _layer, _inputs, output: -output)
    model[3].register_forward_pre_hook(
        lambda _layer, inputs, options: ((inputs[0] - 2,), options), with_kwargs=True
    )
    packed = pack(model)
    assert {layer.gives for layer in packed.layers} == {"floats"}
    assert difference(model, torch.randn(6, 8), packed) <= CLOSE


def test_a_transformer_layer_of_pytorch_runs_on_bits():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    with pytest.warns(UserWarning, match=r"in full precision stay '1\.self_attn' "):
        model = convert(nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 3))).eval()
    packed, x = pack(model), torch.randn(2, 5, 16)
    assert [(layer.name, layer.way) for layer in packed.layers] == [
        ("1.linear1", "bits"),
        ("1.linear2", "bits"),
    ]
    assert difference(model, x, packed) <= CLOSE
    with torch.no_grad():
        by_hand = model[1].linear1(x)
        assert not torch.allclose(by_hand, layer.linear1(x))  # 1-bit, not what was there before
        assert not torch.allclose(model(x), nn.Sequential(model[0], layer.eval(), model[2])(x))


class WithOptions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = BinaryLinear(8, 8), BinaryLinear(8, 3)

    def forward(self, x, scale=2.0, *, mask=None):
        x = scale * self.first(x)
        return self.second(x if mask is None else x * mask)


def test_arguments_with_defaults_keep_them():
    model = WithOptions()
    assert difference(model, torch.randn(4, 8)) <= CLOSE


class WritingThroughASlice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = BinaryConv2d(3, 8, 1), BinaryConv2d(8, 4, 1)

    def forward(self, x):
        y = self.first(x)
        part = y[:, :, ::2]
        part += 3
        return self.second(y)


def test_what_is_written_through_a_slice_is_read():
    model = WritingThroughASlice()
    assert difference(model, torch.randn(2, 3, 6, 6)) <= CLOSE


def test_what_no_kernel_can_read_is_refused():
    pool = PoolBits(2, (2, 2), (2, 2), (0, 0))
    for bits in (torch.zeros(1, 4, 4, 2), torch.zeros(1, 4, 4, 3).long(), torch.zeros(4, 2).long()):
        with pytest.raises(UserError, match="x must be an image of 2 words a pixel"):
            pool(bits)
    with pytest.raises(UserError, match=r"a kernel of \(5, 5\) does not fit an image of \(3, 3\)"):
        pack(BinaryConv2d(3, 4, 5))(torch.randn(1, 3, 3, 3))
