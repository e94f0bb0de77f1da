"""What data says about channels: the loss's gradient with respect to a mask on each, and how active each is.

Computed once for a model and a few hundred labelled images, in eval mode; scores are pure functions of it
(`scores.py`). Every place where the network combines channels (`places.py`) multiplies its input by a mask of
ones with one entry an image and channel. The mask's gradient is, for each image alone, the first-order change
of its loss when the channel goes: `D[n, a] = dL_n / dm_a = - (L_n without a - L_n) + higher orders`.
Shape letters: N images, B of a batch, A atoms of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from niwaki import batches
from niwaki.errors import PlanError
from niwaki.evaluate import Readable
from niwaki.prune.places import Place, places
from niwaki.spec import Spec
from niwaki.surgery import Axes, Group, Traced
from niwaki.surgery.trace import Call, quiet, with_weights
from niwaki.tasks import Task

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ACTIVITY = ("activation", "nonzero", "variance")
"""Mean |activation|, share of activations that are not zero, variance over images and positions."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a set of images says about every atom.

    Args:
        gradients: `{group: [N, A]}`, for each image the derivative of its loss with respect to a mask on the
            atom. Zero where no call combines the group's atoms.
        activity: `{statistic of ACTIVITY: {group: [A]}}`, each place's numbers divided by their mean and
            averaged over the places; ones where there is none.
        images: N.
    """

    gradients: Mapping[str, Floats]
    activity: Mapping[str, Mapping[str, Floats]]
    images: int


def gather(
    model: nn.Module, axes: Axes, *, task: Task, spec: Spec, samples: Readable, batch: int = 32
) -> Evidence:
    """Mask gradients and activities of every group of a model, over all of `samples`, in their order.

    Each image counts by itself: if the first batch shows that images disturb each other, or a network's batch
    size is fixed, they are run one at a time. Nothing is drawn at random and the model is not changed.

    Args:
        axes: `surgery.analyse(model, ...)`.
        samples: images with labels; of the training split, a few hundred are enough.
        batch: images at once.
    Raises:
        PlanError: there are no images, the network takes several inputs, or its loss is no number.
            [prune-evidence]
    """
    if not len(samples) or len(axes.traced.inputs) != 1:
        raise PlanError(
            f"prune: scores from data need images and a network of one input, got {len(samples)} images and "
            f"{len(axes.traced.inputs)} inputs. Give more, or choose a score of the weights: l2, fpgm, bn.",
            code="prune-evidence",
        )
    probe = _Probe(with_weights(axes.traced, model), places(axes), task)
    totals = _Totals(axes, probe.places)
    alone = not probe.together(*next(_read(model, samples, spec, size=min(2, len(samples)))))
    for images, target in _read(model, samples, spec, size=1 if alone else batch):
        totals.add(len(images), *(probe.alone(images, target) if alone else probe.run(images, target)))
    return totals.evidence()


def _read(model: nn.Module, samples: Readable, spec: Spec, *, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels, in batches of nearly equal size."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for index in np.array_split(np.arange(len(samples)), -(-len(samples) // size)):
        images = batches.normalise(samples.batch(index.tolist(), spec), spec, device=device)
        target = torch.from_numpy(samples.targets(index.tolist(), spec)).to(device)
        yield images.contiguous(), target


Seen = tuple[list[Tensor], list[Tensor]]
"""For each place: mask gradients `[B, size]`, and moments `[4, size]`: sums over images and positions of |x|,
of x not 0, of x and of x^2, divided by the positions."""


class _Probe:
    """A traced network whose calls in `places` see their inputs through masks of ones."""

    def __init__(self, traced: Traced, where: tuple[Place, ...], task: Task) -> None:
        self.traced, self.places, self.task = traced, where, task
        self.masked: dict[Call, list[int]] = {}
        for i, place in enumerate(where):
            self.masked.setdefault(place.call, []).append(i)

    def together(self, images: Tensor, target: Tensor) -> bool:
        """Whether images of one batch can be told apart: the second one's gradients are those it has alone."""
        fixed = not self.traced.dynamic or any(place.batch is None for place in self.places)
        if fixed or len(images) < 2:
            return False
        many, one = self.run(images, target)[0], self.alone(images[1:], target[1:])[0]
        return all(
            torch.allclose(m[1], o[0], rtol=1e-3, atol=1e-4 * float(o.abs().max()) + 1e-12)
            for m, o in zip(many, one, strict=True)
        )

    def alone(self, images: Tensor, target: Tensor) -> Seen:
        """One image `[1, ...]`, repeated to the batch that the graph was traced with."""
        copies = self.traced.batch
        repeated = images.expand(copies, *images.shape[1:]).contiguous()
        gradients, moments = self.run(repeated, target.expand(copies, *target.shape[1:]), whole=True)
        return [g.sum(0, keepdim=True) / copies for g in gradients], [m / copies for m in moments]

    def run(self, images: Tensor, target: Tensor, *, whole: bool = False) -> Seen:
        """One forward and backward pass; `whole`: images are not told apart, and gradients have one row."""
        masks: dict[int, Tensor] = {}
        moments: dict[int, Tensor] = {}

        def mask(i: int, value: Tensor) -> Tensor:
            place = self.places[i]
            kept = {place.dim} if whole else {place.dim, place.batch}
            shape = [size if d in kept else 1 for d, size in enumerate(value.shape)]
            masks[i] = torch.ones(shape, dtype=value.dtype, device=value.device, requires_grad=True)
            moments[i] = _moments(value.detach(), place.dim) * len(images)
            return value * masks[i]

        with torch.enable_grad(), quiet():
            loss = self.task.loss(self._forward(images, mask), target).sum()
            got = torch.autograd.grad(loss, list(masks.values()), allow_unused=True) if masks else ()
        if not bool(loss.isfinite()):
            raise PlanError(
                f"prune: the loss of the images that scores are made from is {float(loss.detach())}; "
                "expected a finite number. Look at the weights and at the data.",
                code="prune-evidence",
            )
        gradients = {
            i: torch.zeros_like(masks[i]) if gradient is None else gradient
            for i, gradient in zip(masks, got, strict=True)
        }
        rows = 1 if whole else len(images)
        order = range(len(self.places))
        return [_by_image(gradients[i], self.places[i], rows) for i in order], [moments[i] for i in order]

    def _forward(self, images: Tensor, mask: Any) -> Any:
        values: dict[Call, Any] = {}
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                held = self.traced.tensors.get(node.name)
                given = images if node.name in self.traced.inputs else None
                values[node] = given if held is None else held.detach()
            elif node.op == "call_function":
                values[node] = self._call(node, values, mask)
            elif node.op == "output":
                outputs = [values[x] if isinstance(x, fx.Node) else x for x in node.args[0]]
        return pytree.tree_unflatten(outputs, self.traced.program.call_spec.out_spec)

    def _call(self, node: Call, values: dict[Call, Any], mask: Any) -> Any:
        masked: dict[Call, Tensor] = {}
        for i in self.masked.get(node, []):
            value = self.places[i].value
            masked[value] = mask(i, masked.get(value, values[value]))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: masked.get(n, values[n]))
        view = str(node.target) in ("aten.view.default", "aten._unsafe_view.default")
        return (torch.ops.aten.reshape.default if view else node.target)(*args, **kwargs)


def _moments(value: Tensor, dim: int) -> Tensor:
    """Means over all axes but `dim`, `[4, size]`: of |x|, of x != 0, of x, of x^2."""
    x = value.movedim(dim, 0).flatten(1).double()
    return torch.stack([x.abs().mean(1), (x != 0).double().mean(1), x.mean(1), x.square().mean(1)])


def _by_image(gradient: Tensor, place: Place, rows: int) -> Tensor:
    """A mask's gradient as float64 `[rows, size]`; not a number where the batch axis cannot be told apart."""
    size = gradient.shape[place.dim]
    if rows == 1:
        return gradient.double().reshape(-1, size).sum(0, keepdim=True)
    flat = gradient.movedim((place.batch or 0, place.dim), (0, 1)).reshape(-1, size).double()
    if len(flat) % rows:
        return flat.new_full((rows, size), torch.nan)
    return flat.reshape(rows, -1, size).sum(1)


class _Totals:
    """Sums over batches: from the elements of places to the atoms of groups."""

    def __init__(self, axes: Axes, where: tuple[Place, ...]) -> None:
        self.groups, self.links = axes.groups, _links(axes.groups, where)
        self.gradients: dict[str, list[Floats]] = {group.name: [] for group in axes.groups}
        self.moments = [np.zeros((4, len(place.elements))) for place in where]
        self.images = 0

    def add(self, rows: int, gradients: list[Tensor], moments: list[Tensor]) -> None:
        """The gradients `[B, size]` and moments `[4, size]` of each place, of a batch of so many images."""
        self.images += rows
        for group in self.groups:
            of_atoms = np.zeros((rows, group.size))
            for i, element, atom in self.links[group.name]:
                np.add.at(of_atoms.T, atom, gradients[i].numpy(force=True)[:, element].T)
            self.gradients[group.name].append(of_atoms)
        for total, moment in zip(self.moments, moments, strict=True):
            total += moment.numpy(force=True)

    def evidence(self) -> Evidence:
        """The whole of it."""
        statistics = [_statistics(moment / max(1, self.images)) for moment in self.moments]
        activity = {
            name: {g.name: _active(g, self.links[g.name], [s[k] for s in statistics]) for g in self.groups}
            for k, name in enumerate(ACTIVITY)
        }
        gradients = {name: np.concatenate(parts) for name, parts in self.gradients.items()}
        return Evidence(gradients=gradients, activity=activity, images=self.images)


Link = tuple[int, Ints, Ints]
"""A place's number, positions along its axis, and for each the position of its atom in the group."""


def _links(groups: tuple[Group, ...], where: tuple[Place, ...]) -> dict[str, list[Link]]:
    out: dict[str, list[Link]] = {}
    for group in groups:
        position = {atom: i for i, atom in enumerate(group.atoms)}
        out[group.name] = []
        for i, place in enumerate(where):
            mine = place.atoms.intersection(position)
            if not mine:
                continue
            element, column = np.nonzero(np.isin(place.elements, list(mine)))
            atom = np.array([position[a] for a in place.elements[element, column].tolist()])
            out[group.name].append((i, element, atom))
    return out


def _statistics(moments: Floats) -> Floats:
    """`ACTIVITY` of each element, `[3, size]`, from the four means."""
    magnitude, nonzero, mean, square = moments
    return np.stack([magnitude, nonzero, np.maximum(square - mean**2, 0.0)])


def _active(group: Group, links: list[Link], elements: list[Floats]) -> Floats:
    """Mean over each atom's elements, relative to the place's mean, averaged over places."""
    total, votes = np.zeros(group.size), 0
    for i, element, atom in links:
        sums = np.bincount(atom, weights=elements[i][element], minlength=group.size)
        own = sums / np.maximum(1, np.bincount(atom, minlength=group.size))
        if own.mean() > 0:
            total, votes = total + own / own.mean(), votes + 1
    return total / votes if votes else np.ones(group.size)
