"""Mask R-CNN of torchvision for dense objects: anchors and scale fitted to the training objects, no cap of 100.

Images are enlarged (or reduced) inside the network by a factor that brings the median object to `GOAL` pixels,
and anchors are the sizes and proportions that occur; both are buffers, so they are saved with the weights.
Shape letters: B batch, C channels, H W pixels, N objects, D objects that an image may have at most.

Source: He, Gkioxari, Dollar, Girshick 2017, "Mask R-CNN", arXiv:1703.06870, as torchvision builds it;
anchors by k-means of box sizes as Redmon, Farhadi 2017, YOLO9000, arXiv:1612.08242, section 2.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.errors import ModelError
from niwaki.evaluate import Readable
from niwaki.instances.regions import SIDE
from niwaki.lazy import require
from niwaki.spec import Spec

Floats = npt.NDArray[np.float64]

GOAL = 32.0
"""Pixels of the side of the median object inside the network: the finest features lie 4 pixels apart."""
SCALES = (0.5, 4.0)
LEVELS, RATIOS = 5, 3
MOST = 1000
"""Objects of an image that come out; torchvision's own default is 100, which cuts dense images short."""
_SEEN = 500  # images whose objects the anchors are fitted to
_WIDTHS = {"resnet18": 64, "resnet34": 64, "resnet50": 256, "resnet101": 256}
_NAME = re.compile(r"maskrcnn_(resnet\d+)_fpn")


class MaskRCNN(nn.Module):
    """A two-stage detector with masks: images to `[B, D, 5 + SIDE * SIDE]`, as `instances.regions` reads them.

    Args:
        net: torchvision's network, whose own resizing and normalisation are not used.
    """

    two_stage = True  # exports refuse it by this

    scale: Tensor
    fitted: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("fitted", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Images float `[B, C, H, W]` to score, box (y, x, y, x) in pixels and mask of each object."""
        net: Any = self.net
        images, features = self._features(x)
        proposals, _ = net.rpn(images, features)
        found, _ = self._heads(features, proposals, images.image_sizes)
        out = x.new_zeros(len(x), MOST, 5 + SIDE * SIDE)
        for row, one in zip(out, found, strict=True):
            boxes = one["boxes"][:, [1, 0, 3, 2]] / self.scale
            masks = one["masks"].flatten(1)
            row[: len(boxes)] = torch.cat([one["scores"][:, None], boxes, masks], 1)
        return out

    def losses(self, x: Tensor, target: Tensor) -> Tensor:
        """The sum of torchvision's five losses of each image, `[B]`.

        Args:
            target: label maps `[B, H, W]`: 0 background, below 0 not known, which counts as background.
        """
        net: Any = self.net
        images, features = self._features(x)
        ids = F.interpolate(target[:, None].double(), images.tensors.shape[-2:], mode="nearest")[:, 0]
        each = []
        for k, size in enumerate(images.image_sizes):  # one by one: torchvision averages over a batch
            own = {name: value[k : k + 1] for name, value in features.items()}
            one, truth = type(images)(images.tensors[k : k + 1], [size]), [_objects(ids[k])]
            proposals, first = net.rpn(one, own, truth)
            _, second = self._heads(own, proposals, [size], truth)
            each.append(sum({**first, **second}.values()))
        return torch.stack([torch.as_tensor(loss) for loss in each])

    def _heads(self, features: Any, proposals: Any, sizes: Any, truth: Any = None) -> Any:
        heads: Any = self.net.roi_heads
        found = heads(features, proposals, sizes, truth)
        for pool in (heads.box_roi_pool, heads.mask_roi_pool):  # kept from the first image on, of its size
            pool.scales = pool.map_levels = None
        return found

    def _features(self, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        images = require("torchvision.models.detection.image_list", extra="train")
        scale = float(self.scale)
        if scale != 1:
            size = [round(side * scale) for side in x.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        net: Any = self.net
        return images.ImageList(x, [tuple(x.shape[-2:])] * len(x)), net.backbone(x)


class Anchors(nn.Module):
    """Boxes (x, y, x, y) around the middle of every cell of every level, as torchvision's generator lists them.

    Their sizes are a buffer, and sides of images need be multiples of nothing.
    """

    cells: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = np.repeat(GOAL * 2.0 ** np.arange(LEVELS)[:, None], 2, 1)[:, None] * np.ones((1, RATIOS, 1))
        self.register_buffer("cells", _cells(sizes))

    def num_anchors_per_location(self) -> list[int]:
        """Boxes of a cell, by level."""
        return [RATIOS] * LEVELS

    def forward(self, images: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """For each image all boxes float `[N, 4]`, level by level."""
        height, width = images.tensors.shape[-2:]
        every = []
        for cells, level in zip(self.cells, maps, strict=True):
            ys, xs = (
                (torch.arange(count, device=level.device, dtype=level.dtype) + 0.5) * (side / count)
                for count, side in zip(level.shape[-2:], (height, width), strict=True)
            )
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            middles = torch.stack([x, y, x, y], 2).reshape(-1, 1, 4)
            every.append((middles + cells.to(level.dtype)).reshape(-1, 4))
        return [torch.cat(every)] * len(images.image_sizes)


def mask_rcnn(name: str, *, classes: int, channels: int) -> nn.Module:
    """A Mask R-CNN of random weights, `maskrcnn_resnet50_fpn` and those of resnet18, 34 and 101.

    ResNet-50 and 101 are torchvision's own in all layers; 18 and 34 have 64 channels in pyramid and heads.

    Raises:
        ModelError: no such network, or several kinds of objects. [model-unknown]
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in _WIDTHS or classes != 1:
        raise ModelError(
            f"model: 'torchvision:{name}' of {classes} kinds is not known, expected one kind of objects and "
            f"one of {', '.join(f'maskrcnn_{body}_fpn' for body in _WIDTHS)}.",
            code="model-unknown",
        )
    detection = require("torchvision.models.detection", extra="train")
    parts, utils = detection.mask_rcnn, detection.backbone_utils
    width = _WIDTHS[found[1]]
    body = require("torchvision.models", extra="train").get_model(found[1], weights=None)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    first = body.inplanes // 8
    layers = {f"layer{k}": str(k - 1) for k in range(1, 5)}
    backbone = utils.BackboneWithFPN(body, layers, [first * 2**k for k in range(4)], width)
    faster, full = detection.faster_rcnn, width == 256
    net = parts.MaskRCNN(
        backbone, rpn_head=faster.RPNHead(width, RATIOS), box_detections_per_img=MOST,
        rpn_post_nms_top_n_test=2 * MOST, rpn_post_nms_top_n_train=2000 if full else 500,
        box_batch_size_per_image=512 if full else 128,
        box_head=faster.TwoMLPHead(width * 49, 4 * width), box_predictor=faster.FastRCNNPredictor(4 * width, 2),
        mask_head=parts.MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=parts.MaskRCNNPredictor(width, width, 2),
    )  # fmt: skip
    net.rpn.anchor_generator = Anchors()
    return MaskRCNN(net)


def fitted(model: MaskRCNN, train: Readable, spec: Spec) -> MaskRCNN:
    """A copy whose scale and anchors are those of the objects of a split; as it is where they are fitted.

    Sizes are the middles of k-means over the objects' sizes, one for each level of the pyramid; proportions the
    quartiles.

    Raises:
        ModelError: no object in the images that were looked at. [model-anchors]
    """
    if bool(model.fitted):
        return model
    boxes = np.concatenate([_extents(train.targets([k], spec)[0]) for k in range(min(len(train), _SEEN))])
    if not len(boxes):
        raise ModelError(
            f"mask_rcnn: no object in the first {min(len(train), _SEEN)} training images, so there is nothing "
            "to fit anchors to. Add images with objects.",
            code="model-anchors",
        )
    sides = np.sqrt(boxes.prod(1))
    scale = float(np.clip(GOAL / np.median(sides), *SCALES))
    middles = np.exp(k_means(np.log(sides * scale), LEVELS))
    ratios = np.quantile(np.log(boxes[:, 0] / boxes[:, 1]), [0.25, 0.5, 0.75]) / 2
    sizes = np.stack([middles[:, None] * np.exp(ratios), middles[:, None] * np.exp(-ratios)], 2)
    done = copy.deepcopy(model)
    done.net.rpn.anchor_generator.cells.copy_(_cells(sizes))  # type: ignore[union-attr, operator]
    done.scale.fill_(scale)
    done.fitted.fill_(1)
    return done


def k_means(values: Floats, count: int, *, rounds: int = 50) -> Floats:
    """Middles of `count` clusters of numbers `[N]`, rising; begun at quantiles, so that nothing is drawn."""
    middles = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(rounds):
        nearest = np.abs(values[:, None] - middles).argmin(1)
        filled = np.bincount(nearest, minlength=count)
        means = np.bincount(nearest, values, count) / np.maximum(1, filled)
        middles = np.sort(np.where(filled > 0, means, middles))
    return np.asarray(middles, np.float64)


def _extents(ids: npt.NDArray[np.integer[Any]]) -> Floats:
    """Height and width in pixels of each object's box, `[N, 2]`."""
    found = []
    for number in np.unique(ids[ids > 0]).tolist():
        rows, columns = np.nonzero(ids == number)
        found.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
    return np.array(found, np.float64).reshape(-1, 2)


def _cells(sizes: Sequence[Any] | npt.NDArray[Any]) -> Tensor:
    """Anchors (x, y, x, y) around a point `[LEVELS, RATIOS, 4]` of heights and widths `[LEVELS, RATIOS, 2]`."""
    half = torch.as_tensor(np.asarray(sizes), dtype=torch.float32).flip(-1) / 2
    return torch.cat([-half, half], -1)


def _objects(ids: Tensor) -> dict[str, Tensor]:
    """Boxes (x, y, x, y), labels and masks of a label map `[H, W]`, as torchvision takes them."""
    numbers = torch.unique(ids)
    masks = ids == numbers[numbers > 0][:, None, None]
    boxes = ids.new_zeros(len(masks), 4, dtype=torch.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        box.copy_(torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]))
    labels = torch.ones(len(masks), dtype=torch.int64, device=ids.device)
    return {"boxes": boxes, "labels": labels, "masks": masks.to(torch.uint8)}
