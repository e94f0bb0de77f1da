"""A copy is what `copy.deepcopy` gives: same outputs, nothing shared with the original, ties kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from niwaki.surgery.copying import copied


class Own(nn.Module):
    """A user's class: shared weights, a list of modules outside of torch's eyes, its own way to be restored."""

    restored = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.hidden = [self.first]
        self.sizes = {"in": [6], "again": self.first}
        self.register_buffer("mask", torch.ones(6), persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.restored = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden[0](x) * self.mask)


class Plain(Own):
    """The same without that."""

    __setstate__ = nn.Module.__setstate__


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lstm(x[:, None])[0]
            return out

    return Last()


MAKERS = [
    Own,
    Plain,
    recurrent,
    lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3)),
    lambda: parametrizations.weight_norm(nn.Linear(6, 3)),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_gives_the_same_and_shares_nothing(make: Any) -> None:
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(3, 6)
    got, other = copied(net), copy.deepcopy(net)
    wanted = net(x).detach().clone()
    assert torch.equal(got(x), wanted)
    assert list(got.state_dict()) == list(other.state_dict())
    assert type(got).__name__ == type(other).__name__
    assert vars(got).keys() == vars(other).keys()
    with torch.no_grad():
        for tensor in [*got.parameters(), *got.buffers()]:
            tensor.add_(1)
    assert torch.equal(net(x), wanted) and not torch.equal(got(x), wanted)


@pytest.mark.parametrize("make", [Own, Plain])
def test_what_is_shared_stays_shared(make: Any) -> None:
    got = copied(make())
    assert got.second.weight is got.first.weight and got.hidden[0] is got.first is got.sizes["again"]


def test_hooks_and_the_way_of_the_class_are_kept() -> None:
    net = Own()
    net.register_forward_hook(lambda module, args, out: out * 2)
    got, x = copied(net), torch.randn(2, 6)
    assert got.restored == 1 and torch.equal(got(x), net(x))


def test_a_tensor_is_replaced_in_all_of_its_places() -> None:
    for net in (Own(), Plain()):
        new = nn.Parameter(torch.zeros(6, 6))
        got = copied(net, {id(net.first.weight): new})
        assert got.first.weight is got.second.weight is new and got.first.bias is not net.first.bias
        assert float(net.first.weight.detach().abs().sum()) > 0
