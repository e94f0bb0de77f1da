"""A structure as data: the difference from a fresh model, and the graph over allow-listed
operators."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from torch import nn

from niwaki.errors import ArtifactError, ModelError, UnsafeArtifact
from niwaki.surgery import difference, program, record

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width, self.rate, self.on, self.sizes = width, 0.5, True, [1, 2]
        self.pair, self.name, self.nothing, self.nan = (1, 2), "net", None, float("nan")
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_equal_models_differ_in_nothing() -> None:
    found = difference.diff(Net(), Net())
    assert found == {"tensors": {}, "attributes": {}, "training": {"": True}, "frozen": []}


def test_a_difference_is_json_and_brings_the_structure_back() -> None:
    changed = Net(4).eval()
    changed.rate, changed.on, changed.sizes, changed.pair = 0.25, False, [3, 4, 5], (7, 8)
    changed.norm.train()
    changed.head.half()
    changed.conv.bias.requires_grad_(False)
    found = json.loads(json.dumps(difference.diff(Net(6), changed)))
    assert found["training"] == {"": False, "norm": True}
    assert found["frozen"] == ["conv.bias"]
    assert found["tensors"]["head.weight"] == [[2, 4], "float16"]
    again = difference.patch(Net(6), found)
    difference.load(again, difference.tensors(changed))
    assert difference.diff(changed, again) == difference.diff(changed, changed)
    assert (again.rate, again.on, again.sizes, again.pair) == (0.25, False, [3, 4, 5], (7, 8))
    for name, tensor in difference.tensors(changed).items():
        assert torch.equal(tensor, difference.tensors(again)[name])


@pytest.mark.parametrize("attribute", ["name", "nothing", "rate", "width", "pair", "added"])
def test_what_is_no_size_is_refused_by_name(attribute: str) -> None:
    values = {"name": "x", "nothing": 1, "rate": float("inf"), "width": 1.5, "pair": (1.5, 2), "added": 1}
    changed = Net()
    setattr(changed, attribute, values[attribute])
    with pytest.raises(ModelError, match=attribute) as caught:
        difference.diff(Net(), changed)
    assert caught.value.code == "difference-unsupported"


def test_tensors_that_are_plain_attributes_are_compared() -> None:
    one, other = Net(), Net()
    one.table, other.table = torch.ones(2), torch.zeros(2)
    with pytest.raises(ModelError, match="table"):
        difference.diff(one, other)


def test_other_ties_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    tied = Two()
    tied.b.weight = tied.a.weight
    with pytest.raises(ModelError, match="shares"):
        difference.diff(Two(), tied)


def test_sizes_are_held_against_the_weights_before_anything_is_made() -> None:
    found = difference.diff(Net(6), Net(4))
    weights = difference.tensors(Net(4))
    difference.check_sizes(found, weights)
    found["tensors"]["conv.weight"][0] = [2**31 - 1, 3, 3, 3]
    with pytest.raises(ArtifactError) as caught:
        difference.check_sizes(found, weights)
    assert caught.value.code == "difference-mismatch"


def test_weights_of_another_model_are_refused() -> None:
    for weights in (difference.tensors(Net(4)), {}, {**difference.tensors(Net(6)), "x": torch.ones(1)}):
        with pytest.raises(ArtifactError) as caught:
            difference.load(Net(6), weights)
        assert caught.value.code == "difference-mismatch"


def roundtrip(model: nn.Module, example: torch.Tensor) -> nn.Module:
    graph, tensors = record.save(model, example)
    return program.load(json.loads(json.dumps(graph)), tensors)


def test_a_graph_computes_the_same_for_every_batch() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    loaded = roundtrip(model, torch.randn(2, 3, 9, 9))
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 9, 9)
        assert torch.equal(loaded(x), model(x))
    assert dict(loaded.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert torch.equal(copy.deepcopy(loaded)(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32),
        ("mobilenetv3_small_050", 32),
        ("convnext_atto", 32),
        ("regnety_002", 32),
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_graphs_of_families_are_bit_equal(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(2, 3, size, size)
    assert torch.equal(roundtrip(model, x)(x), model(x))


def test_no_operator_outside_the_list_is_looked_up() -> None:
    graph, tensors = record.save(Net(), torch.randn(2, 3, 9, 9))
    for name in ("aten.from_file.default", "operator.methodcaller", "aten.conv2d.__init__", "os.system"):
        bad = copy.deepcopy(graph)
        bad["nodes"][0]["op"] = name
        with pytest.raises(UnsafeArtifact) as caught:
            program.load(bad, tensors)
        assert caught.value.code == "program-operator"


def test_every_name_of_the_list_is_an_operator_and_none_may_write() -> None:
    writing = 0
    for name in program.OPERATORS:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if getattr(packet, overload)._schema.is_mutable:
                writing += 1
                with pytest.raises(UnsafeArtifact):
                    program._operator(f"aten.{name}.{overload}")
            else:
                assert callable(program._operator(f"aten.{name}.{overload}"))
    assert writing > 50
