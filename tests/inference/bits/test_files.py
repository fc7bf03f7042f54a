import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from rectified.binary import BinaryConv2d, BinaryLinear, convert
from rectified.errors import UserError
from rectified.inference.bits import files, load_packed, pack, save_packed
from rectified.models import cnn, one_bit_resnet20, vgg_small

SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


def networks():
    return {
        "a convolution": (BinaryConv2d(5, 7, 3, padding=1), (2, 5, 6, 6)),
        "inputs of 32 bits": (BinaryLinear(5, 7, activation_bits=32), (2, 5)),
        "cnn": (
            convert(cnn(num_classes=4, in_channels=1, image_size=(8, 8))),
            (3, 1, 8, 8),
        ),
        "resnet20": (convert(one_bit_resnet20(**SHAPE)), (2, 3, 32, 32)),
        "groups": (
            nn.Sequential(BinaryConv2d(4, 4, 3, groups=2), nn.PReLU(), nn.Flatten()),
            (2, 4, 6, 6),
        ),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_a_file_gives_the_network_back(name, tmp_path):
    model, shape = networks()[name]
    packed = pack(model)
    size = save_packed(packed, tmp_path / "packed.safetensors")
    assert size == (tmp_path / "packed.safetensors").stat().st_size
    loaded, x = load_packed(tmp_path / "packed.safetensors"), torch.randn(shape)
    assert torch.equal(loaded(x), packed(x))
    assert loaded.layers == packed.layers
    assert list(tmp_path.iterdir()) == [tmp_path / "packed.safetensors"]


def test_1_bit_weights_take_a_32nd(tmp_path):
    path = tmp_path / "packed.safetensors"
    packed = pack(convert(vgg_small(**SHAPE)))
    save_packed(packed, path)
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    bits = sum(size for name, size in stored.items() if name.endswith(":bits"))
    assert 32 * bits == sum(layer.bytes_float for layer in packed.layers) == 18_284_544
    assert path.stat().st_size < 18_640_424 / 19  # the classifier stays in floating point


def test_a_fresh_process_runs_it_without_the_code_of_the_network(tmp_path):
    path, x = tmp_path / "packed.safetensors", torch.randn(2, 1, 8, 8)
    packed = pack(convert(cnn(num_classes=4, in_channels=1, image_size=(8, 8))))
    save_packed(packed, path)
    save_file({"x": x, "y": packed(x)}, tmp_path / "example.safetensors")
    code = """
import sys
from safetensors.torch import load_file
import torch
from rectified.inference.bits import files, load_packed
found = load_file(sys.argv[2])
assert torch.equal(load_packed(sys.argv[1])(found["x"]), found["y"])
assert "rectified.models" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "example.safetensors")]
    subprocess.run(command, check=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "packed.safetensors"
    save_packed(pack(nn.Sequential(BinaryLinear(70, 40), nn.ReLU())), path)
    return path


def rewritten(file, change):
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    change(tensors, metadata)
    save_file(tensors, file, metadata)


def test_a_truncated_file_is_refused(file):
    content = file.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot be read as a safetensors file") as raised:
            load_packed(file)
        assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing cannot be read"):
        load_packed(tmp_path / "nothing")


def program(change):
    def rewrite(tensors, metadata):
        content = json.loads(metadata["program"])
        change(content)
        metadata["program"] = json.dumps(content)

    return rewrite


def set_node(index, place, value):
    def change(content):
        content["nodes"][index][place] = value

    return program(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.update(version="1"), "must have format version 2, got '1'"),
        (lambda t, m: m.pop("version"), "must have format version 2, got None"),
        (lambda t, m: m.update(format="other"), "must be written by save_packed"),
        (lambda t, m: t.pop("0.panels:bits"), "is damaged: KeyError"),
        (lambda t, m: t.update({"0.panels:bits": torch.zeros(3).byte()}), "3 bytes cannot be"),
        (lambda t, m: t.update({"0.alpha": torch.zeros(3)}), "is damaged: RuntimeError"),
        (lambda t, m: m.pop("program"), "is damaged: KeyError"),
        (lambda t, m: m.update(program="{"), "is damaged: JSONDecodeError"),
        (set_node(2, 1, "call_method"), "is damaged: ValueError: unknown method 1"),
        (set_node(2, 1, "call_modul%"), "is damaged: ValueError: unknown operation 'call_modul%'"),
        (set_node(2, 1, ["output"]), "is damaged: ValueError: unknown operation"),
        (set_node(2, 3, {"what": 1}), "is damaged: ValueError: unknown kind of argument"),
        (program(lambda c: c["modules"]["0"].update(type="Popen")), "is damaged: KeyError"),
        (
            program(lambda c: c["modules"]["1"].update(arguments={"slope": True})),
            "a ReLU is not made from slope",
        ),
        (
            program(
                lambda c: c["modules"].update(
                    {"1": {"type": "SignedLayer", "inner": c["modules"]["1"], "activation_bits": 1}}
                )
            ),
            "a ReLU has no signs",
        ),
        (
            lambda t, m: t.update({"0.alpha": t["0.alpha"].double()}),
            "0.alpha' must be of",
        ),
        (lambda t, m: m.update(about='{"layers": [], "notes": []}', program="[]"), "is damaged"),
        (program(lambda c: c["nodes"].insert(1, [])), "is damaged: ValueError"),
        (program(lambda c: c["modules"]["0"]["arguments"].update(stride=[0, 1])), "no kernel"),
        (program(lambda c: c["modules"]["0"]["arguments"].update(padding=[-1, 0])), "no kernel"),
        (program(lambda c: c["modules"]["0"]["arguments"].update(kernel=[1])), "no kernel"),
        (
            program(lambda c: c["modules"]["0"]["arguments"].update(outputs=10**9, inputs=10**9)),
            "bytes cannot be the signs of 1000000000000000000 weights",
        ),
        (
            program(
                lambda c: c["nodes"].insert(
                    1,
                    [
                        "code",
                        "call_function",
                        "getattr",
                        {"tuple": [{"node": c["nodes"][0][0]}, {"value": "__class__"}]},
                        {"dict": {}},
                    ],
                )
            ),
            "a file may ask for shapes, not for other attributes",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(file, change, message):
    rewritten(file, change)
    with pytest.raises(UserError, match=message) as raised:
        load_packed(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


RUN = "__import__('pathlib').Path('ran').touch()"


def evil_module(content):
    name = f'1"), {RUN}, ("'
    content["modules"][name] = {"type": "ReLU", "arguments": {"inplace": False}}
    content["nodes"][2][2] = name


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (set_node(0, 2, f"x={RUN}"), "is no name"),
        (program(evil_module), "is no name of a module"),
        (set_node(1, 4, {"dict": {f"a={RUN} or True, b": {"value": 1}}}), "is no name"),
        (set_node(1, 0, f"x = {RUN}"), "is no name"),
        (set_node(0, 2, "lambda"), "'lambda' is no name"),
        (program(lambda c: c["tensors"].update({f'x"); {RUN}; ("': [1]})), "is no name of a"),
    ],
)
def test_no_word_of_a_file_becomes_code(file, tmp_path, monkeypatch, change, word):
    monkeypatch.chdir(tmp_path)
    rewritten(file, change)
    with pytest.raises(UserError, match=word):
        load_packed(file)(torch.zeros(1, 8))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_asks_for_terabytes_gets_none(file):
    many = {"in_features": 10**6, "out_features": 10**6, "bias": False}
    rewritten(
        file,
        program(lambda c: c["modules"].update({"1": {"type": "Linear", "arguments": many}})),
    )
    with pytest.raises(UserError, match="is damaged"):
        load_packed(file)


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.layer, self.call = BinaryLinear(4, 4), call

    def forward(self, x):
        return self.call(self.layer(x))


class Mine(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def hooked(layer):
    layer.register_forward_hook(lambda _layer, _inputs, output: -output)
    return nn.Sequential(layer, nn.ReLU())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Calling(torch.sinh), "the call of .*sinh.* cannot be stored in a file"),
        (Calling(lambda x: x.sinh()), "the method sinh .* cannot be stored in a file"),
        (Calling(nn.Softsign()), "a file cannot hold a Softsign"),
        (Calling(lambda x: F.pad(x, (1, 1), value=1j)), "an argument of type complex"),
        (Calling(lambda x: x.device), "the call of .*getattr"),
        (hooked(BinaryLinear(4, 4)), "a file cannot hold the hooks of '0'"),
        (nn.Sequential(BinaryLinear(4, 4), Mine()), "could not be traced .* keep its state_dict"),
    ],
)
def test_what_a_file_cannot_hold_is_named(model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save_packed(pack(model), tmp_path / "packed.safetensors")
    assert not list(tmp_path.iterdir())


class WithParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = BinaryLinear(4, 6)
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return torch.cat([self.layer(x) + self.shift, x[:, 1:]], dim=1).view(x.size(0), -1)


def test_parameters_functions_methods_and_slices_are_stored(tmp_path):
    packed, x = pack(WithParameter()), torch.randn(3, 4)
    save_packed(packed, tmp_path / "packed.safetensors")
    assert torch.equal(load_packed(tmp_path / "packed.safetensors")(x), packed(x))


class Reading(nn.Module):
    """Asks for a shape, writes in place into what is read again, and pads and activates."""

    def __init__(self):
        super().__init__()
        self.pad, self.layer = nn.ReflectionPad2d(1), BinaryConv2d(3, 8, 3)
        self.same, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.layer(self.pad(x))
        batch, channels = y.shape[0], y.shape[1]
        z = F.gelu(self.relu(self.same(y)) + y)
        return z.view(batch, 2, channels // 2, -1).amax(3).sigmoid()


def test_shapes_and_writing_in_place_come_back(tmp_path):
    model, x = Reading().eval(), torch.randn(3, 3, 5, 5)
    packed = pack(model)
    save_packed(packed, tmp_path / "packed.safetensors")
    with torch.no_grad():
        assert (packed(x) - model(x)).abs().max() <= 2e-6
    assert torch.equal(load_packed(tmp_path / "packed.safetensors")(x), packed(x))


def test_a_file_may_name_every_call_that_earlier_versions_could():
    functions = """
        add iadd neg floordiv sub mul truediv getitem getattr torch.add torch.mul torch.cat
        torch.flatten torch.relu torch.relu_ torch.sigmoid torch.tanh torch.reshape torch.squeeze
        torch.mean relu relu6 gelu silu leaky_relu softmax dropout hardtanh pad max_pool2d
        avg_pool2d adaptive_avg_pool2d
    """
    methods = """
        add add_ contiguous flatten mean mul permute relu relu_ reshape size squeeze sum transpose
        unsqueeze view amax chunk expand expand_as sigmoid sub tanh view_as
    """
    assert set(functions.split()) <= files._FUNCTIONS.keys()
    assert set(methods.split()) <= files._METHODS
    assert len(files._NAMES) == len(files._FUNCTIONS)
    assert files._FUNCTIONS["torch.relu"] is torch.relu
    assert files._FUNCTIONS["relu"] is F.relu
