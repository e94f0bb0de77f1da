"""What a verb is given for an artifact: a data set whose classes are the artifact's, images to calibrate on.

The splits are those of the `fit` that made the artifact, as its manifest tells them, so that no test image is
one that it was trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.errors import DataError, NiwakiError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from niwaki.artifact import Artifact
    from niwaki.data import DataSet, Samples

CALIBRATION = 256
"""Images that int8 is calibrated on, at most."""
FEW = 16
"""Fewer than these leave the ranges of int8 to chance; it is said."""
UNLABELLED = ("data-empty", "data-few-classes", "data-few-images", "data-class-empty", "data-layout")
"""What data.read says of a folder that may simply hold images without labels."""


def labelled(artifact: Artifact, source: str, *, seed: int | None = None) -> DataSet:
    """The data set, its labels in the order of the artifact's classes; of these it may hold a part.

    Args:
        seed: of the splits; None is that of the artifact's own `fit`, else 0.
    Raises:
        DataError: it cannot be used, or its classes or its kind are not the artifact's. [data-*]
    """
    from niwaki import data

    task = artifact.task
    found = data.read(source, instances=task.kind == "instances", **_splits(artifact, seed))
    if found.task.kind != task.kind:
        raise DataError(
            f"{source}: is data to {_answers(found.task.kind)}, and {artifact.path.name} gives "
            f"{_answers(task.kind)}. Give data of that kind.",
            code="classes-differ",
        )
    if task.kind == "instances" or found.classes == task.classes:
        return found
    if task.kind == "classify" and set(found.classes) <= set(task.classes):
        places = [task.classes.index(name) for name in found.classes]
        train, val, test = (_relabelled(part, places) for part in (found.train, found.val, found.test))
        return replace(found, classes=task.classes, train=train, val=val, test=test)
    raise DataError(
        f"{source}: has the classes {_few(found.classes)}, {artifact.path.name} has {_few(task.classes)}, so "
        "no score can be told. Name the classes alike"
        + (", in the same order." if task.dense else "; those of the data may be a part of the model's."),
        code="classes-differ",
    )


def calibration(artifact: Artifact, source: str, *, seed: int | None = None) -> npt.NDArray[np.uint8]:
    """Up to 256 images uint8 `[N, H, W, C]` that set the ranges of int8: of a data set the train split's; of a
    folder without labels all below it.

    Raises:
        DataError: there is no image that can be used. [data-*]
    """
    from niwaki import data

    try:
        whole = data.read(source, instances=artifact.task.kind == "instances", **_splits(artifact, seed)).train
        some = whole.take(CALIBRATION, seed=seed or 0)
        images = some.batch(range(len(some)), artifact.spec)
    except DataError as error:
        if error.code not in (*UNLABELLED, "mask-none") or not Path(source).is_dir():
            raise
        images = _unlabelled(artifact, source, seed or 0)
    if len(images) < FEW:
        print(
            f"niwaki: int8 takes its ranges from {len(images)} image{'s' if len(images) > 1 else ''}, which "
            "leaves them to chance; give 128 to 512.",
            file=sys.stderr,
        )
    return images


def _splits(artifact: Artifact, seed: int | None) -> dict[str, Any]:
    """`seed` and `val` of data.read: the artifact's own, unless a seed is given."""
    told = artifact.manifest.get("splits")
    told = told if isinstance(told, dict) else {}
    own = {"seed": told.get("seed", 0), "val": told.get("val", 0.15)}
    return own if seed is None else {**own, "seed": seed}


def _relabelled(samples: Samples, places: Sequence[int]) -> Samples:
    import numpy as np

    return replace(samples, labels=np.asarray(places, np.int64)[samples.labels])


def _unlabelled(artifact: Artifact, source: str, seed: int) -> npt.NDArray[np.uint8]:
    """Images anywhere below a folder, drawn by the seed; those that cannot be used are told and left out."""
    import numpy as np

    from niwaki.cli import scene
    from niwaki.cli.predict import find

    spec = artifact.spec
    paths = list(find([source], spec.bands if spec.banded else None))
    images: list[npt.NDArray[np.uint8]] = []
    left: list[str] = []
    for place in np.random.default_rng(seed).permutation(len(paths)):
        if len(images) == CALIBRATION:
            break
        try:
            images.append(spec.read(scene.source(str(paths[place]), spec.bands)))
        except NiwakiError as error:
            left.append(f"{paths[place].name}: {error.code}")
    if not images:
        reasons = f" Left out: {'; '.join(left[:3])}." if left else ""
        raise DataError(
            f"{source}: holds no image to calibrate on.{reasons} Give a folder of images, or a data set as "
            "for fit.",
            code="data-empty",
        )
    if left:
        print(f"niwaki: left out of {len(paths)} images: {'; '.join(left[:3])}", file=sys.stderr)
    return np.stack(images)


def _answers(kind: str) -> str:
    return {"classify": "classes of images", "segment": "masks", "instances": "objects"}.get(kind, kind)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
