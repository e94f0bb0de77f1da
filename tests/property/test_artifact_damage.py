"""Five hundred damaged artifacts: each is refused with a stable code, and nothing else is ever
raised."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import damage
from torch import nn

from niwaki.artifact import Artifact
from niwaki.errors import CODES, ArtifactError, NiwakiError, RuntimeFailed, SpecError
from niwaki.spec import Spec
from niwaki.tasks import Classify

SPEC = Spec(size_hw=(8, 8), mean=(0.5,), std=(0.25,), channels=1)
TASK = Classify(("a", "b", "c", "d"))
TENSOR, MODULE = "layer1.0.conv1.weight", "conv1"


class Tiny(nn.Module):
    """The least network that has a convolution, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def shrunk() -> nn.Module:
    """niwaki:resnet20 with fewer channels in its first block, by hand."""
    from niwaki import nets

    model = nets.build("niwaki:resnet20", classes=4, channels=1)
    block = model.get_submodule("layer1.0")
    for name, axis in (("conv1", 0), ("bn1", 0), ("conv2", 1)):
        layer = block.get_submodule(name)
        for key in ("weight", "bias", "running_mean", "running_var"):
            old = getattr(layer, key, None)
            if old is not None:
                new = old.detach().narrow(axis if key == "weight" else 0, 0, 8).clone()
                setattr(layer, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    block.conv1.out_channels, block.bn1.num_features, block.conv2.in_channels = 8, 8, 8
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[damage.Files, damage.Files]:
    """The files of two right artifacts: one of a builder, one of a graph."""
    torch.manual_seed(0)
    out = []
    for name, model, builder in (("named", shrunk(), "niwaki:resnet20"), ("graph", Tiny(), None)):
        path = tmp_path_factory.mktemp(name) / "x.niwaki"
        artifact = Artifact.save(path, model.eval(), spec=SPEC, task=TASK, builder=builder)
        artifact.export("onnx")
        artifact.update(default="float32")
        out.append({p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()})
    return out[0], out[1]


def use(path: Path) -> None:
    """All that reads an artifact."""
    artifact = Artifact.open(path)
    artifact.session("onnx")(np.zeros((1, 8, 8, 1), np.uint8))
    artifact.model()


def cases(named: damage.Files, graph: damage.Files) -> list[tuple[damage.Case, damage.Files]]:
    names = sorted(named)
    sizes = {name: len(content) for name, content in named.items()}
    groups = [
        *damage.bytes_damaged(names, sizes),
        *damage.files_damaged(names),
        *damage.sums_damaged(),
        *damage.json_damaged(),
        *damage.fields_damaged(),
        *damage.structure_damaged(TENSOR, MODULE),
        *damage.weights_damaged(),
        *damage.onnx_damaged(),
    ]
    return [(case, named) for case in groups] + [(case, graph) for case in damage.graph_damaged()]


def test_what_is_not_damaged_is_used(whole: tuple[damage.Files, damage.Files], tmp_path: Path) -> None:
    for place, files in enumerate(whole):
        again = dict(files)
        damage.resum(again)
        damage.write(tmp_path / f"{place}.niwaki", again)
        use(tmp_path / f"{place}.niwaki")


@pytest.mark.slow
def test_every_damaged_artifact_is_refused(whole: tuple[damage.Files, damage.Files], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tried, codes, faults = 0, Counter[str](), []
    for (name, change), files in cases(*whole):
        own = dict(files)
        change(own)
        path = tmp_path / f"{tried}.niwaki"
        damage.write(path, own)
        start = time.perf_counter()
        try:
            use(path)
            faults.append(f"{name}: was accepted")
        except NiwakiError as error:
            codes[error.code] += 1
            if error.code not in CODES:
                faults.append(f"{name}: code {error.code} is not listed")
            if not isinstance(error, (ArtifactError, RuntimeFailed, SpecError)):
                faults.append(f"{name}: {type(error).__name__} [{error.code}] {error}")
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        if time.perf_counter() - start > 5:
            faults.append(f"{name}: took {time.perf_counter() - start:.1f} s")
        tried += 1
        shutil.rmtree(path, ignore_errors=True)
    assert not faults, "\n".join(faults[:40])
    assert tried >= 500, tried
    assert len(codes) >= 12, codes


def test_paths_that_are_no_artifacts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "file", "empty"):
        with pytest.raises(ArtifactError) as caught:
            Artifact.open(tmp_path / name)
        assert caught.value.code in CODES
