"""`sparsify` returns the same network, run sparsely where that is faster."""

import copy
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified.errors import UserError
from rectified.inference.kernels import has_kernels
from rectified.inference.sparse import SparseModel, sparsify
from rectified.inference.sparse.sparsify import NETWORKS, _fastest, _working


class Block(nn.Module):
    """A residual block with a strided shortcut, written with functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.norm(self.first(x))))
        return self.head((y + self.shortcut(x)).relu().mean((2, 3)))


class Odd(nn.Module):
    """Option-A shortcut, a tensor added to itself, concatenation, a pool, an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.after = nn.Conv2d(16, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.relu(y) + y  # y has been overwritten by now
        z = torch.cat([z + z, F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3)).repeat(1, 1, 2, 2)], 1)
        z = self.after(torch.cat([z, x], 1))
        return F.max_pool2d(self.norm(z), 2).flatten(1)


class Attention(nn.Module):
    """Linear layers on three axes, and operations that no program knows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(12, 12), nn.Linear(12, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)[:, :, :12]
        scores = torch.softmax(self.query(tokens) @ tokens.transpose(1, 2), -1)
        return self.value(scores @ tokens)


class Branching(nn.Module):
    """A forward that looks at its input's values: it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same", bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2, dilation=2, padding=2),
        nn.Dropout(),
        nn.AvgPool2d(3, 2),
        nn.Conv2d(8, 6, 2, padding_mode="reflect", padding=1),
        nn.ConvTranspose2d(6, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 30),
        nn.BatchNorm1d(30),
        nn.ReLU(),
        nn.Linear(30, 3),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "block": Block,
    "odd": Odd,
    "attention": Attention,
    "branching": Branching,
}


def pruned(build: Callable[[], nn.Module], density: float = 0.3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for tensor in model.state_dict().values():
            if tensor.ndim >= 2:
                tensor *= torch.rand_like(tensor) < density
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def images(batch: int, size: int = 12) -> torch.Tensor:
    return torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


FUSED = ("mixed", "fused", "fused_serial")  # they need a network that can be traced, and numba
WAYS = [
    (net, network)
    for network in (None, *NETWORKS)
    for net in NETS
    if net != "branching" or network not in FUSED
]


@pytest.mark.parametrize(("net", "network"), WAYS)
@torch.no_grad()
def test_every_way_computes_the_same_at_any_batch(net: str, network: str | None) -> None:
    if network in FUSED:
        pytest.importorskip("numba")
    model = pruned(NETS[net])
    fast = sparsify(model, images(2), network=network, threads=2)
    assert network in (None, fast.chosen)
    for batch in (1, 2, 19):
        assert_same(fast(images(batch)), model(images(batch)))


@torch.no_grad()
def test_other_image_sizes_are_right_too() -> None:
    model = pruned(Block)
    fast = sparsify(model, images(1))
    for size in (5, 12, 17, 32):
        assert_same(fast(images(2, size)), model(images(2, size)))


@pytest.mark.parametrize("engine", ["dense", "onednn", "csr", "kernel"])
@torch.no_grad()
def test_every_engine_of_a_linear_layer_computes_the_same(engine: str) -> None:
    if engine == "kernel":
        pytest.importorskip("numba")
    for bias in (True, False):
        model = pruned(lambda bias=bias: nn.Sequential(nn.Linear(40, 20, bias=bias)))
        x = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
        fast = sparsify(model, x, engine={"0": engine}, network="layers")
        assert fast.layers[0].engine == engine
        for batch in (x, x[:1], x.reshape(7, 1, 40)):
            assert_same(fast(batch), model(batch))


@pytest.mark.parametrize("engine", ["dense", "channels_last", "kernel"])
@torch.no_grad()
def test_every_engine_of_a_convolution_computes_the_same(engine: str) -> None:
    if engine == "kernel":
        pytest.importorskip("numba")
    model = pruned(lambda: nn.Conv2d(4, 8, 3, stride=2))
    wrapped = nn.Sequential(model)
    fast = sparsify(wrapped, images(2), engine={"0": engine})
    assert fast.layers[0].engine == engine
    assert_same(fast(images(3)), model(images(3)))
    assert_same(fast.network(images(1)), model(images(1)))


def test_a_forced_dense_layer_stays_out_of_every_program() -> None:
    pytest.importorskip("numba")
    model = pruned(Block)
    fast = sparsify(model, images(1), engine={"second": "dense"}, network="fused")
    kinds = [type(module).__name__ for module in fast.network.modules()]
    assert kinds.count("Conv2d") == 1
    assert kinds.count("Segment") == 2
    assert_same(fast(images(1)), model(images(1)).detach())


def test_a_whole_network_becomes_one_program() -> None:
    pytest.importorskip("numba")
    fast = sparsify(pruned(Block), images(1), network="fused")
    assert type(fast.network).__name__ == "Segment"
    # norm, sum, and both ReLUs are part of the convolutions
    assert "Sum" not in repr(fast.network)


def test_the_choice_is_inspectable() -> None:
    fast = sparsify(pruned(plain), images(2))
    names = [choice.name for choice in fast.layers]
    assert names == ["0", "4", "7", "8", "11", "14"]
    reasons = {choice.name: choice.reason for choice in fast.layers}
    assert reasons["7"] == "padding_mode 'reflect' is not zeros"
    assert fast.layers[3].engine == "dense"
    assert fast.layers[3].reason
    assert fast.layers[0].density == pytest.approx(0.3, abs=0.1)
    for choice in fast.layers:
        assert choice.engine in choice.milliseconds
    table = fast.table().split("\n")
    assert len(table) == len(names) + 2
    assert table[-1].startswith(f"network: {fast.chosen} (dense ")


def test_the_fastest_is_taken_and_sparse_must_win_by_a_margin() -> None:
    assert _fastest({"dense": 1.0, "csr": 0.95, "kernel": 0.95}, ("csr", "kernel")) == "dense"
    assert _fastest({"dense": 1.0, "csr": 0.8, "kernel": 0.7}, ("csr", "kernel")) == "kernel"


def test_a_layer_that_is_not_called_is_listed() -> None:
    model = pruned(Block)
    model.spare = nn.Linear(3, 3)
    fast = sparsify(model, images(1))
    spare = next((choice for choice in fast.layers if choice.name == "spare"), None)
    assert spare is None or spare.reason == "not called on the example"


def test_a_network_that_cannot_be_traced_runs_by_layer_and_says_so() -> None:
    model = pruned(Branching)
    fast = sparsify(model, images(1))
    assert fast.chosen in ("dense", "channels_last", "layers")
    assert "cannot trace" in fast.note
    assert fast.note in fast.table()
    with torch.no_grad():
        assert_same(fast(images(2)), model(images(2)))


def test_the_model_is_left_as_it_is() -> None:
    model = pruned(Block).train()
    before = copy.deepcopy(model.state_dict())
    sparsify(model, images(1))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def _no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "numba", None)
    has_kernels.cache_clear()
    yield
    has_kernels.cache_clear()


@torch.no_grad()
@pytest.mark.usefixtures("_no_numba")
def test_without_numba_the_engines_of_torch_still_work() -> None:
    model = pruned(plain)
    fast = sparsify(model, images(2))
    assert fast.chosen in ("dense", "channels_last", "layers")
    assert "rectified[fast]" in fast.layers[0].reason
    assert all("kernel" not in choice.milliseconds for choice in fast.layers)
    assert_same(fast(images(3)), model(images(3)))


@torch.no_grad()
def test_copies_are_independent_and_equal() -> None:
    pytest.importorskip("numba")
    fast = sparsify(pruned(Block), images(1), network="fused")
    expected = fast(images(3))
    assert torch.equal(copy.deepcopy(fast)(images(3)), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_concurrent_callers_do_not_disturb_each_other(threads: int) -> None:
    pytest.importorskip("numba")
    fast = sparsify(pruned(Block), images(4), network="fused", threads=threads)
    batches = [images(batch) for batch in (1, 2, 3, 4)]
    expected = [fast(x) for x in batches]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(50):
            if not torch.equal(fast(batches[number]), expected[number]):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same() -> None:
    pytest.importorskip("numba")
    fast = sparsify(pruned(Block), images(4), network="fused", threads=2)
    expected = fast(images(4))
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(fast(images(4)), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_result_has_no_gradient() -> None:
    fast = sparsify(pruned(Block), images(1))
    assert not fast(images(1).requires_grad_()).requires_grad
    assert isinstance(fast, SparseModel)
    assert not fast.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = pruned(Block)
    with torch.no_grad():
        model.second.weight[0, 0, 0, 0] = value  # type: ignore[union-attr, index, operator]
    with pytest.raises(UserError, match=r"must be finite, got NaN or infinity in 'second\.weight'"):
        sparsify(model, images(1))


def test_other_types_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be float32 on the CPU, got torch\.float64"):
        sparsify(pruned(Block).double(), images(1).double())
    pytest.importorskip("numba")
    fast = sparsify(pruned(Block), images(1), network="fused")
    with pytest.raises(UserError, match=r"takes float32 tensors on the CPU, got torch\.float64"):
        fast(images(1).double())


def test_unknown_names_are_refused() -> None:
    model = pruned(Block)
    with pytest.raises(UserError, match="unknown layer 'third'; choose from first, second"):
        sparsify(model, images(1), engine={"third": "dense"})
    with pytest.raises(UserError, match="unknown engine of 'second' 'fastest'; choose from dense"):
        sparsify(model, images(1), engine={"second": "fastest"})
    with pytest.raises(UserError, match="unknown network 'whole'; choose from dense"):
        sparsify(model, images(1), network="whole")
    with pytest.raises(UserError, match="threads must be at least 1, got 0"):
        sparsify(model, images(1), threads=0)


# ---- other people's networks


class Hooked(Block):
    """Hooks that change what a layer and a ReLU do."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.second.register_forward_hook(lambda _layer, _inputs, output: 2 * output)
        self.shortcut.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] + 1,))
        self.relu.register_forward_hook(lambda _layer, _inputs, output: output - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.relu(x))


class Overwriting(nn.Module):
    """Writes through a slice and an identity into what is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.same, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        part = y[:, :, ::2, ::2]
        part += 1
        z = self.b(y)
        return self.relu(self.same(z)) + z


class Counting(nn.Module):
    """Computes something else in every call, which no graph can show."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class Asking(Branching):
    """Asks a layer for its weight, which engines have not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.conv.weight.dtype))


@pytest.mark.parametrize("net", [Hooked, Overwriting])
@pytest.mark.parametrize("network", [None, "layers", "mixed", "fused"])
@torch.no_grad()
def test_hooks_and_writing_in_place_do_what_they_did(
    net: Callable[[], nn.Module], network: str | None
) -> None:
    pytest.importorskip("numba")
    model = pruned(net)
    fast = sparsify(model, images(2), network=network)
    assert not fast.note
    assert_same(fast(images(3)), model(images(3)))
    reasons = {choice.name: choice.reason for choice in fast.layers}
    if net is Hooked:
        assert reasons["second"] == reasons["shortcut"] == "its forward has hooks"
        assert not reasons["first"]


@torch.no_grad()
def test_a_graph_that_computes_something_else_is_not_taken() -> None:
    fast = sparsify(Counting(), torch.ones(2, 6))
    assert "what torch.fx sees of Counting computes something else" in fast.note
    assert fast.chosen in ("dense", "layers", "channels_last")


@torch.no_grad()
def test_a_way_that_does_not_run_or_computes_something_else_is_noted_and_not_taken() -> None:
    pytest.importorskip("numba")
    model = pruned(Asking)
    fast = sparsify(model, images(2))
    assert_same(fast(images(3)), model(images(3)))
    with pytest.raises(UserError, match=r"no engine is left: .*the way 'layers' does not run: "):
        sparsify(model, images(2), engine={"conv": "kernel"})
    notes: list[str] = []
    ways = {"layers": nn.ReLU(), "dense": nn.ReLU(), "fused": nn.Identity()}
    assert list(_working(ways, (-images(1),), images(1), notes)) == ["dense"]
    assert notes == [
        "the way 'layers' has other outputs on the example",
        "the way 'fused' has other outputs on the example",
    ]


@torch.no_grad()
def test_a_transformer_layer_of_pytorch_runs_its_layers_sparsely() -> None:
    pytest.importorskip("numba")
    model = pruned(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    x = torch.randn(2, 5, 16)
    fast = sparsify(model, x, engine={"linear1": "kernel", "linear2": "kernel"})
    assert_same(fast(x), model(x))
    assert type(fast.get_submodule("network.linear1")).__name__ == "KernelLayer"


@torch.no_grad()
def test_weights_made_by_torchs_own_pruning_and_3d_convolutions_run() -> None:
    from torch.nn.utils import prune

    layer = prune.l1_unstructured(nn.Linear(6, 40), "weight", 0.9)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(40, 3))
    with torch.enable_grad():
        model(torch.ones(1, 6))  # its weight has a gradient now, which cannot be copied
    fast = sparsify(nn.DataParallel(model), torch.ones(2, 6))
    assert fast.layers[0].density == pytest.approx(0.1)
    assert_same(fast(torch.ones(3, 6)), model(torch.ones(3, 6)))
    volumes = pruned(lambda: nn.Sequential(nn.Conv3d(4, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1)))
    x = torch.randn(2, 4, 5, 5, 5)
    assert_same(sparsify(volumes, x)(x), volumes(x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3, 4, 10), r"as many axes as its example had, \[4\], got \[3\]"),
        (torch.ones(10), r"\[4\], got \[1\]"),
        (torch.ones(2, 5, 12, 12), "a layer of 4 inputs cannot read 5"),
        (torch.ones(2, 4, 3, 3), r"a window of \(4, 4\) does not fit an image of 3 x 3"),
    ],
)
def test_what_the_kernels_would_read_beyond_is_refused(x: torch.Tensor, message: str) -> None:
    pytest.importorskip("numba")
    fast = sparsify(pruned(lambda: nn.Conv2d(4, 8, 4)), images(1), network="fused")
    with pytest.raises(UserError, match=message):
        fast(x)


def test_rows_and_batches_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("numba")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)

    fast = sparsify(pruned(Two), (torch.ones(2, 6), torch.ones(2, 3)), network="fused")
    assert fast(torch.ones(5, 6), torch.ones(5, 3)).shape == (5, 4)
    checked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # what outside of tests it always is
    with pytest.raises(UserError, match="inputs must be of one batch"):
        fast(torch.ones(5, 6), torch.ones(1, 3))
    jaxtyping.config.update("jaxtyping_disable", checked)
    with pytest.raises(UserError, match="a layer of 6 inputs cannot read 7"):
        fast(torch.ones(5, 7), torch.ones(5, 3))
    with pytest.raises(UserError, match=r"\[2, 2\], got \[3, 3\]"):
        fast(torch.ones(5, 2, 6), torch.ones(5, 2, 3))


@pytest.mark.parametrize("joined", [torch.add, lambda x, y: torch.cat([x, y], 1)])
def test_sizes_that_were_equal_by_chance_are_refused(joined: Callable) -> None:
    """A gate of one pixel times an image of one pixel is a plain sum; of four, it is not."""
    pytest.importorskip("numba")

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return joined(torch.relu(self.conv(x)), self.pool(x))

    fast = sparsify(pruned(Gate), images(1, 1), network="fused")
    with pytest.raises(UserError, match=r"sizes that were equal on the example .* got .*2.* and"):
        fast(images(1, 2))


@pytest.mark.parametrize("network", ["dense", "layers", "fused"])
@torch.no_grad()
def test_it_travels_by_pickle_and_stays_in_evaluation_mode(network: str) -> None:
    if network == "fused":
        pytest.importorskip("numba")
    fast = sparsify(pruned(plain), images(1), network=network)
    outer = nn.Sequential(pickle.loads(pickle.dumps(fast))).train()
    assert_same(outer(images(2)), fast(images(2)))
    assert not any(module.training for module in outer[0].modules())
