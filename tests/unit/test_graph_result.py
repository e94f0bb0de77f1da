"""Cuts that a class does not follow: the result is its graph, which trains, copies, saves and exports."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.zoo import C2fSplit, Headed, block
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import prune, surgery
from niwaki.artifact import Artifact
from niwaki.errors import ModelError, PlanError
from niwaki.runtimes import parity
from niwaki.spec import Spec
from niwaki.surgery import program, record
from niwaki.tasks import Classify

EXAMPLE = prune.drawn((8, 3, 16, 16), torch.Generator().manual_seed(0))
SPEC = Spec(size_hw=(16, 16))
ROOT = Path(__file__).parents[2]
TASK = Classify(("a", "b", "c", "d", "e"))


class DropPath(nn.Module):
    """Stochastic depth as every library writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop_prob = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(1 - self.drop_prob)
        return x * keep / (1 - self.drop_prob)


class Hard(nn.Module):
    """Sizes in the code (a shuffle, a pad, two slices, heads), with all that has a training mode."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.a, self.b = block(16, 32), block(32, 24)
        self.gn, self.drop, self.path = nn.GroupNorm(4, 24), nn.Dropout(p), DropPath(0.4)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.ln, self.slow = nn.LayerNorm(24), nn.BatchNorm2d(24, momentum=None)
        self.ungrouped = nn.Conv2d(16, 24, 1)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = self.a(x).view(n, 8, 4, 16, 16).transpose(1, 2).reshape(n, 32, 16, 16)
        y = torch.cat([y[:, :20], y[:, 20:32]], 1)
        y = self.path(self.slow(self.drop(self.b(y)).add_(0.5)))
        y = self.gn(y + F.pad(x, (0, 0, 0, 0, 4, 4)))
        t = F.avg_pool2d(y, 4).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.ln(t)).view(n, 16, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        t = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        t = self.out(t.transpose(1, 2).reshape(n, 16, 24))
        return y + F.dropout(t, self.p, self.training).mean(1)[:, :, None, None]


def hard(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return Headed(Hard(p), 16, 24).eval()


def pruned(net: nn.Module, example: object = EXAMPLE, **knobs: str) -> prune.Pruned:
    axes = surgery.analyse(net, example)
    keep = prune.choose(axes, prune.score(net, axes), ratio=0.5)
    return prune.cut(net, axes, keep, example=example, **knobs)


SMALL = pruned(hard())


def test_what_no_attribute_mends_is_cut_as_a_graph_and_proven() -> None:
    net = hard()
    assert SMALL.result == "graph" and not SMALL.left and SMALL.error <= 1e-4
    assert "does not run at its new sizes" in SMALL.why
    model = SMALL.model
    assert list(model.state_dict()) != [] and set(model.state_dict()) == set(net.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in net.named_parameters()]
    for name in ("body.a.0.weight", "body.b.0.weight", "body.qkv.weight"):
        assert model.get_parameter(name).numel() < net.get_parameter(name).numel()
    alone = pruned(hard(), result="module")
    assert alone.result == "module" and alone.left and type(alone.model) is Headed
    with pytest.raises(PlanError) as raised:
        pruned(hard(), result="pickle")
    assert raised.value.code == "prune-result"


def test_a_class_that_follows_stays_a_class() -> None:
    torch.manual_seed(0)
    out = pruned(Headed(nn.Sequential(block(16, 32), block(32, 24)), 16, 24).eval())
    assert out.result == "module" and not out.why and type(out.model) is Headed


def test_a_wrong_graph_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    from niwaki.surgery import resize

    right = resize._REWRITES["slice"]

    def wrong(node: object, axes: object, alive: object, args: list[object], kwargs: dict[str, object]) -> None:
        right(node, axes, alive, args, kwargs)
        if args[2] == 0 and isinstance(args[3], int) and args[3] < 20:
            args[3] = args[3] - 1

    monkeypatch.setitem(resize._REWRITES, "slice", wrong)
    net = hard()
    axes = surgery.analyse(net, EXAMPLE)
    keep = prune.choose(axes, prune.score(net, axes), ratio=0.5)
    try:
        proofs = prune.prove(net, axes, keep, EXAMPLE, result="graph")
    except ModelError:
        return
    assert not proofs[0].ok


def test_uncut_graph_equals_the_model_in_both_modes() -> None:
    """Without dropout's draws, training mode computes the same and moves the same statistics."""
    net = hard(p=0.0)
    net.body.path.drop_prob = 0.0
    axes = surgery.analyse(net, EXAMPLE)
    graph = surgery.rewrite(net, axes, {}, example=EXAMPLE)
    assert graph.lost == ()
    assert torch.equal(graph(EXAMPLE), net(EXAMPLE))
    for _ in range(2):
        one, other = net.train()(EXAMPLE), graph.train()(EXAMPLE)
        assert torch.allclose(one, other, atol=1e-6)
    for name, tensor in net.state_dict().items():
        assert torch.allclose(tensor.float(), graph.state_dict()[name].float(), atol=1e-6), name
    assert int(graph.state_dict()["body.slow.num_batches_tracked"]) == 2


def test_every_dropout_is_found_and_drops_only_in_training() -> None:
    graph = surgery.rewrite(hard(), surgery.analyse(hard(), EXAMPLE), {}, example=EXAMPLE)
    ops = [n["op"].split(".")[1] for n in graph.graph()["nodes"] if "module" in n]
    assert ops.count("dropout") == 2 and ops.count("feature_dropout") == 1
    assert ops.count("scaled_dot_product_attention") == 1 and graph.lost == ()
    assert torch.equal(graph.eval()(EXAMPLE), graph(EXAMPLE))
    for module in graph.modules():
        module.training = isinstance(module, program.Norm)
    still = graph(EXAMPLE)
    assert torch.allclose(still, graph(EXAMPLE), atol=1e-5)  # norms train, nothing is dropped
    for path in ("body.drop", "body.path", "body"):
        graph.get_submodule(path).training = True
        assert not torch.allclose(graph(EXAMPLE), graph(EXAMPLE), atol=1e-5), path
        graph.get_submodule(path).training = False


def test_randomness_that_is_not_carried_over_is_named() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 24, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + torch.randn_like(y) if self.training else y

    net = Headed(Noisy(), 16, 24).eval()
    graph = surgery.rewrite(net, surgery.analyse(net, EXAMPLE), {}, example=EXAMPLE)
    assert graph.lost == ("1 random calls of training mode",)


def test_a_graph_result_learns_and_moves_its_statistics() -> None:
    torch.manual_seed(0)
    net = copy.deepcopy(SMALL.model).train()
    norm = net.get_submodule("body.b.1")
    before = norm.running_mean.clone()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    labels = torch.arange(8) % 5
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(EXAMPLE), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not torch.equal(before, norm.running_mean)
    assert all(p.grad is not None for n, p in net.named_parameters() if "ungrouped" not in n)
    held = norm.running_mean.clone()
    net.eval()(EXAMPLE)
    assert torch.equal(held, norm.running_mean)
    assert torch.equal(SMALL.model.get_submodule("body.b.1").running_mean, before)  # the copy was one


_FRESH = """
import sys, torch
torch.set_num_threads(1)
from niwaki.artifact import Artifact
from tests.zoo import C2fSplit, Headed
graph, own, file = sys.argv[1:]
models = Artifact.open(graph).model(), Artifact.open(own).model(builder=lambda: Headed(C2fSplit(), 16, 24))
torch.save([model(torch.load(file)) for model in models], file)
"""


def test_saved_in_one_process_and_loaded_in_another(tmp_path: Path) -> None:
    """Bit for bit, a graph result without its class and a result of the user's own class."""
    torch.manual_seed(0)
    net = Headed(C2fSplit(), 16, 24).eval()
    own = pruned(net)
    assert own.result == "module"
    graph, module, file = (str(tmp_path / name) for name in ("graph.niwaki", "own.niwaki", "x.pt"))
    artifact = Artifact.save(graph, SMALL.model, spec=SPEC, task=TASK, builder="timm:resnet18")
    Artifact.save(module, own.model, spec=SPEC, task=TASK, builder="net.py:make", fresh=net)
    assert artifact.manifest["builder"] is None
    torch.save(EXAMPLE, file)
    subprocess.run([sys.executable, "-c", _FRESH, graph, module, file], check=True, cwd=ROOT)
    got = torch.load(file)
    assert torch.equal(got[0], SMALL.model(EXAMPLE)) and torch.equal(got[1], own.model(EXAMPLE))
    again = artifact.model()
    modes = [[(name, m.training) for name, m in model.named_modules()] for model in (SMALL.model, again)]
    assert modes[0] == modes[1]
    one, other = copy.deepcopy(SMALL.model).train(), copy.deepcopy(again).train()
    torch.manual_seed(1)
    wanted = one(EXAMPLE)
    torch.manual_seed(1)
    assert torch.equal(other(EXAMPLE), wanted)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())


def test_a_trained_graph_with_frozen_parts_comes_back_as_it_is() -> None:
    model = copy.deepcopy(SMALL.model).train()
    model.get_submodule("stem").eval()
    model.get_parameter("stem.0.weight").requires_grad_(False)
    graph, tensors = record.save(model, EXAMPLE)
    again = program.load(json.loads(json.dumps(graph)), tensors)
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_graph_result_runs_on_onnx(tmp_path: Path) -> None:
    artifact = Artifact.save(tmp_path / "m.niwaki", SMALL.model, spec=SPEC, task=TASK)
    artifact.export("onnx")
    images = parity.noise(SPEC, 3)
    got = artifact.session("onnx")(images)
    with torch.no_grad():
        wanted = SMALL.model(torch.from_numpy(SPEC.normalise(images))).softmax(1)
    assert abs(got - wanted.numpy()).max() < 1e-5


def test_a_graph_result_is_pruned_again() -> None:
    again = pruned(SMALL.model)
    assert again.result == "graph" and again.error <= 1e-4
    assert set(again.model.state_dict()) == set(SMALL.model.state_dict())
    assert sum(p.numel() for p in again.model.parameters()) < sum(p.numel() for p in SMALL.model.parameters())
