"""Layouts of data sets of images with masks, on disk or in an archive: which mask belongs to which image.

    images/1.jpg  masks/1.png                      splits are made; images/train/1.jpg, or train/images/1.jpg
    images/1.jpg  instances/1.png                  the same, and masks tell objects apart
    train/1.png   trainannot/1.png                 CamVid as SegNet has it; val, valannot, test, testannot alike
    JPEGImages/1.jpg  SegmentationClass/1.png      Pascal VOC; splits from ImageSets/Segmentation/*.txt
    images/1.jpg  annotations.json                 COCO; or images/train/, annotations/instances_train.json

`classes.txt` (or `.csv`) at the root names the classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from niwaki import images
from niwaki.bands import Stack
from niwaki.data import coco
from niwaki.data.folder import Tree, name_of
from niwaki.data.listing import SPLIT_NAMES
from niwaki.data.masks import Outlines
from niwaki.data.samples import Problem
from niwaki.data.stacks import IMAGES, MASKS, plain

_ENDINGS = re.compile(r"(_L|_mask|_masks|_label|_labels|_gt|_seg)$")
_CLASSES = ("classes.txt", "classes.csv", "class_dict.csv", "label_colors.txt")
Parts = tuple[str, ...]
Source = Path | bytes | Stack


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and where its mask is."""

    name: str
    image: Source
    mask: Path | bytes | Outlines
    mask_name: str
    split: str | None


@dataclass(kw_only=True)
class Pairs:
    """All that a layout lists, before anything is decoded.

    Args:
        classes: content of the classes file, None without one; or the names themselves (COCO's).
        camvid: masks have CamVid's eleven ids, whose names are known.
        objects: masks tell objects apart.
        bands: content of bands.txt.
    """

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    classes: bytes | tuple[str, ...] | None = None
    camvid: bool = False
    objects: bool = False
    bands: bytes | None = None


def pairs(tree: Tree, where: str) -> Pairs | None:
    """The images and masks of a tree; None where it is laid out in no such way.

    Raises:
        DataError: a COCO file or list of splits cannot be read. [mask-outlines]
    """
    tops = {parts[0] for parts in (*tree.files, *tree.folders)}
    found: Pairs | None = None
    if _coco_files(tree):
        found = _coco(tree, where)
    elif any(f"{split}annot" in tops for split in SPLIT_NAMES):
        found = _matched(_annotated(tree), where)
        found.camvid = True
    elif _pair_of_folders(tops) or any(_pair_of_folders(_below(tree, s)) for s in SPLIT_NAMES):
        found = _matched(_beside(tree), where)
        found.objects = any("instances" in parts[:-1] for parts in tree.files)
    if found is None:
        return None
    found.problems = [*tree.problems, *found.problems]
    found.bands = tree.bands
    if found.classes is None:
        file = next((tree.files[(name,)] for name in _CLASSES if (name,) in tree.files), None)
        found.classes = None if file is None else images.load(plain(file))
    found.given = {pair.split for pair in found.pairs if pair.split}
    return found


Sides = dict[tuple[str | None, str], dict[str, tuple[Source, Parts]]]
"""(split, stem) to image and mask, each with its path."""


def _matched(sides: Sides, where: str) -> Pairs:
    found = Pairs()
    for (split, _), both in sorted(sides.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        if len(both) == 2:
            (image, parts), (mask, mask_parts) = both["image"], both["mask"]
            name = name_of(parts)
            found.pairs.append(
                Pair(name=name, image=image, mask=plain(mask), mask_name=name_of(mask_parts), split=split)
            )
            continue
        (kind, (_, parts)), *_ = both.items()
        other, code = ("mask", "mask-missing") if kind == "image" else ("image", "mask-stray")
        message = f"{where}: {name_of(parts)} has no {other} of the same name. Add it, or take this one out."
        found.problems.append(Problem(path=name_of(parts), code=code, message=message))
    return found


def _annotated(tree: Tree) -> Sides:
    """CamVid's folders: `train` beside `trainannot`."""
    sides: Sides = {}
    for parts, source in tree.files.items():
        if len(parts) != 2:
            continue
        folder, kind = parts[0].removesuffix("annot"), "mask" if parts[0].endswith("annot") else "image"
        if folder in SPLIT_NAMES:
            _put(sides, SPLIT_NAMES[folder], kind, source, parts)
    return sides


def _beside(tree: Tree) -> Sides:
    """`images` beside `masks`, with the split above, below, in a list, or nowhere."""
    sides: Sides = {}
    listed = _listed_splits(tree)
    for parts, source in tree.files.items():
        folders = parts[:-1]
        kind = "image" if set(folders) & set(IMAGES) else "mask" if set(folders) & set(MASKS) else None
        if kind is None:
            continue
        split = next((SPLIT_NAMES[name] for name in folders if name in SPLIT_NAMES), None)
        stem = _stem(parts, kind)
        _put(sides, split or listed.get(stem), kind, source, parts)
    return sides


def _listed_splits(tree: Tree) -> dict[str, str]:
    """VOC's lists: a stem a line, the file's name is the split."""
    found: dict[str, str] = {}
    for parts, source in tree.files.items():
        split = SPLIT_NAMES.get(Path(parts[-1]).stem)
        if parts[:-1] == ("ImageSets", "Segmentation") and split is not None:
            lines = images.load(plain(source), name=name_of(parts)).decode("utf-8", errors="replace").split()
            found |= dict.fromkeys(lines, split)
    return found


def _put(sides: Sides, split: str | None, kind: str, source: Source, parts: Parts) -> None:
    if kind == "mask" and isinstance(source, Stack):
        return  # several files are no mask
    sides.setdefault((split, _stem(parts, kind)), {})[kind] = (source, parts)


def _stem(parts: Parts, kind: str) -> str:
    stem = Path(parts[-1]).stem
    return _ENDINGS.sub("", stem) if kind == "mask" else stem


def _coco_files(tree: Tree) -> list[tuple[Parts, Source]]:
    """COCO files of annotations, where images lie beside them."""
    if "images" not in {parts[0] for parts in tree.files}:
        return []
    at = [parts for parts in tree.files if parts[-1].endswith(".json")]
    return [(p, tree.files[p]) for p in sorted(at) if len(p) == 1 or p[0] == "annotations"]


def _coco(tree: Tree, where: str) -> Pairs:
    found = Pairs()
    sources = {parts: source for parts, source in tree.files.items() if parts[0] == "images"}
    files = _coco_files(tree)
    read = coco.outlines(
        [(images.load(plain(file), name=name_of(at)), f"{where}: {name_of(at)}") for at, file in files]
    )
    found.classes = read.classes
    for (parts, _), listed in zip(files, read.outlines, strict=True):
        split = next((SPLIT_NAMES[word] for word in re.split(r"[_.]", parts[-1]) if word in SPLIT_NAMES), None)
        for file, outlines in listed.items():
            at = next((p for p in _places(file) if p in sources), None)
            if at is None:
                message = f"{where}: {name_of(parts)} lists {file}, which is not in images/."
                found.problems.append(Problem(path=file, code="image-missing", message=message))
                continue
            pair = Pair(name=name_of(at), image=sources[at], mask=outlines, mask_name=name_of(at), split=split)
            found.pairs.append(pair)
    return found


def _places(file: str) -> Iterable[Parts]:
    parts = tuple(file.split("/"))
    return [("images", *parts), *(("images", split, *parts) for split in SPLIT_NAMES)]


def _below(tree: Tree, top: str) -> set[str]:
    return {folder[1] for folder in tree.folders if len(folder) > 1 and folder[0] == top}


def _pair_of_folders(names: set[str]) -> bool:
    return bool(names & set(IMAGES)) and bool(names & set(MASKS))
