"""Artifact: what is saved is loaded again bit for bit, in a fresh process; the runtime side needs
no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from niwaki import files, nets, sealed
from niwaki.artifact import Artifact
from niwaki.errors import ArtifactError, ModelError, ParityError, UnsafeArtifact
from niwaki.runtimes import parity
from niwaki.spec import Spec
from niwaki.tasks import Classify

torch.set_num_threads(1)
SPEC = Spec(size_hw=(32, 32))
TASK = Classify(("ant", "bee", "cat", "dog"))
ROOT = Path(__file__).parents[2]


class Own(nn.Module):
    """Tied weights, a buffer that no state dict holds, a half-precision buffer, a frozen
    parameter."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.pads, self.scale, self.on = width, (1, 1), 0.5, True
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.c = nn.Conv2d(width, width, 3, padding=1)
        self.c.weight = self.b.weight
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 4)
        self.register_buffer("bias", torch.randn(width, 1, 1), persistent=False)
        self.register_buffer("low", torch.randn(width, 1, 1).half())
        self.head.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.a(x)) + self.bias * self.scale + self.low.float()
        x = self.c(self.b(x).relu())
        return self.head(x.mean((2, 3)))


def narrow(model: nn.Module, axes: dict[str, int], count: int) -> None:
    """Keeps the first `count` channels of these tensors, as surgery would."""
    for name, axis in axes.items():
        owner, _, last = name.rpartition(".")
        module, old = (
            model.get_submodule(owner),
            model.get_parameter(name) if name in dict(model.named_parameters()) else model.get_buffer(name),
        )
        new = old.detach().narrow(axis, 0, count).clone()
        setattr(module, last, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def shrunk_resnet(name: str = "timm:resnet18") -> nn.Module:
    model = nets.build(name, classes=4)
    narrow(
        model,
        {
            "layer1.0.conv1.weight": 0,
            **{f"layer1.0.bn1.{k}": 0 for k in ("weight", "bias", "running_mean", "running_var")},
            "layer1.0.conv2.weight": 1,
        },
        24,
    )
    block = model.get_submodule("layer1.0")
    block.conv1.out_channels, block.bn1.num_features, block.conv2.in_channels = 24, 24, 24
    return model


def same(one: nn.Module, other: nn.Module) -> None:
    """Bit-equal tensors, modes and outputs."""
    first, second = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert tensor.requires_grad == second[name].requires_grad
        assert torch.equal(tensor, second[name])
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]
    x = torch.from_numpy(SPEC.example(2))
    assert torch.equal(one.eval()(x), other.eval()(x))


_FRESH = """
import sys, torch
torch.set_num_threads(1)
from niwaki.artifact import Artifact
for path in sys.argv[1:]:
    artifact = Artifact.open(path)
    model = artifact.model()
    mode = [m.training for m in model.modules()]
    out = model.eval()(torch.from_numpy(artifact.spec.example(2)))
    torch.save((mode, out), path + ".out")
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_outputs_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixed = shrunk_resnet().train()
    mixed.get_submodule("layer2").eval()
    models = {
        "timm:resnet18": mixed,
        "timm:mobilenetv3_small_050": nets.build("timm:mobilenetv3_small_050", classes=4).eval(),
        "timm:test_vit2": nets.build("timm:convnext_atto", classes=4).eval(),
        "niwaki:resnet20": nets.build("niwaki:resnet20", classes=4),
        "graph": Own().eval(),
    }
    models["timm:convnext_atto"] = models.pop("timm:test_vit2")
    paths = []
    for place, (builder, model) in enumerate(models.items()):
        name = None if builder == "graph" else builder
        paths.append(str(tmp_path / f"{place}.niwaki"))
        Artifact.save(paths[-1], model, spec=SPEC, task=TASK, builder=name)
    subprocess.run([sys.executable, "-c", _FRESH, *paths], check=True)
    for path, model in zip(paths, models.values(), strict=True):
        mode, out = torch.load(path + ".out", weights_only=True)
        if "4.niwaki" not in path:
            assert mode == [m.training for m in model.modules()]
        assert torch.equal(out, model.eval()(torch.from_numpy(SPEC.example(2))))


def test_own_builder_is_refused_until_it_is_passed(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "raised = open(__file__ + '.ran', 'a').write('x')\n"
        f"from {Own.__module__} import Own\n\ndef make(*, classes, channels):\n    return "
        "Own(8)\n"
    )
    torch.manual_seed(1)
    model = Own(8)
    model.scale, model.pads, model.on = 0.25, (2, 3), False
    builder = f"{file}:make"
    saved = Artifact.save(tmp_path / "x.niwaki", model, spec=SPEC, task=TASK, builder=builder)
    ran = len((tmp_path / "net.py.ran").read_text())
    again = Artifact.open(saved.path)
    with pytest.raises(UnsafeArtifact) as caught:
        again.model()
    assert caught.value.code == "artifact-builder"
    assert len((tmp_path / "net.py.ran").read_text()) == ran
    loaded = again.model(builder=Own)
    assert (loaded.scale, loaded.pads, loaded.on) == (0.25, (2, 3), False)
    assert loaded.c.weight is loaded.b.weight
    same(model, loaded)


def test_a_narrower_own_model_keeps_its_ties(tmp_path: Path) -> None:
    wide, small = Own(8), Own(5)
    saved = Artifact.save(tmp_path / "x.niwaki", small, spec=SPEC, task=TASK, builder="net.py:make", fresh=wide)
    loaded = saved.model(builder=lambda: Own(8))
    assert loaded.width == 5
    assert loaded.c.weight is loaded.b.weight
    same(small, loaded)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    model = nets.build("niwaki:small", classes=4)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    saved = Artifact.save(tmp_path / "x.niwaki", model, spec=SPEC, task=TASK, builder="niwaki:small")
    saved.model()
    assert torch.equal(torch.rand(3), wanted)


class Hidden(nn.Module):
    """Its outputs depend on what no artifact can hold."""

    def __init__(self, function=torch.relu) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(x).mean((2, 3)))


def test_what_a_difference_cannot_hold_is_refused(tmp_path: Path) -> None:
    changed = nets.build("niwaki:small", classes=4)
    changed.stem[2] = nn.GELU()
    added = nets.build("niwaki:small", classes=4)
    added.extra = nn.Linear(2, 2)
    for model in (changed, added):
        with pytest.raises(ModelError) as caught:
            Artifact.save(tmp_path / "x", model, spec=SPEC, task=TASK, builder="niwaki:small")
        assert caught.value.code == "difference-unsupported"
    with pytest.raises(ModelError) as caught:
        Artifact.save(
            tmp_path / "x",
            Hidden(torch.tanh),
            spec=SPEC,
            task=TASK,
            builder="a.py:b",
            fresh=Hidden(),
        )
    assert caught.value.code == "artifact-structure"


def test_operators_that_a_graph_cannot_hold_are_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x).mean((2, 3))

    with pytest.raises(ModelError, match=r"aten\.special_bessel_j0") as caught:
        Artifact.save(tmp_path / "x", Odd(), spec=SPEC, task=TASK)
    assert caught.value.code == "program-operator"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("a") / "x.niwaki"
    model = nets.build("niwaki:small", classes=4).eval()
    artifact = Artifact.save(
        path, model, spec=SPEC, task=TASK, builder="niwaki:small", extra={"costs": {"macs": 3}}
    )
    artifact.export("onnx", precision="float32")
    artifact.export("onnx", precision="int8", calib=parity.noise(SPEC, 16))
    return artifact.update(default="int8", scores={"val": 0.5})


def test_exports_and_fields_are_in_the_manifest(exported: Artifact) -> None:
    again = Artifact.open(exported.path)
    assert again.manifest == exported.manifest
    assert again.default == "int8"
    assert (again.manifest["costs"], again.manifest["scores"]) == ({"macs": 3}, {"val": 0.5})
    for precision in ("float32", "int8"):
        entry = again.exports["onnx"][precision]
        assert entry["bytes"] == (again.path / entry["file"]).stat().st_size
        assert entry["parity"]["images"] == 16
    assert (again.spec, again.task) == (SPEC, TASK)


def test_checksums_are_those_of_sha256sum(exported: Artifact) -> None:
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", sealed.SUMS],
        cwd=exported.path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("OK") == 4


_NO_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "onnx", "onnxscript"):
            raise ImportError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
import numpy as np
from niwaki import bench
from niwaki.artifact import Artifact
artifact = Artifact.open(sys.argv[1])
image = np.zeros((2, 32, 32, 3), np.uint8)
print(artifact.session("onnx")(image).shape, artifact.session(precision="float32")(image).shape)
print(bench.compare(artifact, artifact, rounds=3, calls_per_sample=5)["verdict"])
try:
    artifact.model()
except ImportError as error:
    print(error.code, "torch" in sys.modules)
"""


def test_runtime_side_works_where_torch_cannot_be_imported(exported: Artifact) -> None:
    done = subprocess.run([sys.executable, "-c", _NO_TORCH, str(exported.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shapes, verdict, missing = done.stdout.splitlines()
    assert shapes == "(2, 4) (2, 4)"
    assert "A/B" in verdict
    assert missing == "extra-missing False"


def test_exports_that_are_not_there(exported: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        exported.session("onnx", precision="int4")
    assert caught.value.code == "artifact-export"


def test_own_fields_are_not_set_from_outside(exported: Artifact) -> None:
    for fields in ({"format": 2}, {"exports": {}}, {"scores": float("nan")}, {"scores": object()}):
        with pytest.raises(ArtifactError) as caught:
            exported.update(**fields)
        assert caught.value.code == "artifact-field"
    assert Artifact.open(exported.path).manifest == exported.manifest


def test_a_failed_parity_leaves_the_artifact_as_it_was(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is set below what any export reaches; the check itself is the real one."""
    strict = parity.Limits(error=0.0, agreement=1.0, moved=0.0)
    monkeypatch.setitem(parity.LIMITS, "int8", strict)
    before = (exported.path / sealed.SUMS).read_bytes()
    with pytest.raises(ParityError):
        exported.export("onnx", precision="int8", calib=parity.noise(SPEC, 4, seed=3))
    assert (exported.path / sealed.SUMS).read_bytes() == before


def test_same_model_same_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nets.build("niwaki:small", classes=4)
    sums = [
        (
            Artifact.save(tmp_path / name, model, spec=SPEC, task=TASK, builder="niwaki:small").path
            / sealed.SUMS
        ).read_bytes()
        for name in ("a", "b")
    ]
    assert sums[0] == sums[1]


def test_what_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"x")
    with pytest.raises(ArtifactError) as caught:
        sealed.write(tmp_path / "photos", {"niwaki.json": b"{}"})
    assert caught.value.code == "artifact-occupied"
    assert (tmp_path / "photos" / "x.jpg").exists()


_KILLED = """
import os, sys
from collections.abc import Callable, Iterator
from pathlib import Path
from niwaki import sealed
left, real = int(sys.argv[2]), Path.rename
def rename(self, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return real(self, target)
Path.rename = Path.replace = rename
sealed.write(Path(sys.argv[1]), {"niwaki.json": b"new", "weights.safetensors": b"new"})
"""


def test_a_crash_at_any_rename_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    import re

    seen = set()
    for left in range(6):
        path = tmp_path / f"{left}.niwaki"
        sealed.write(path, {"niwaki.json": b"old", "weights.safetensors": b"old"})
        done = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(left)])
        found = sealed.check(path, re.compile(".*"))
        contents = {file.read_bytes() for file in found.values()}
        assert contents in ({b"old"}, {b"new"})
        seen.add((done.returncode, contents.pop()))
        sealed.write(path, {"niwaki.json": b"again"})
        assert [
            p.name for p in tmp_path.iterdir() if p.name.startswith(f".{left}") and "previous" in p.name
        ] == []
    assert {(9, b"old"), (0, b"new")} <= seen


def test_json_in_a_manifest_is_sorted_and_plain(exported: Artifact) -> None:
    text = (exported.path / "niwaki.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert str(Path.cwd()) not in text


@pytest.fixture
def no_room() -> Iterator[Callable[[], None]]:
    """A disk that is full from 100 kB a file on."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_one_and_no_crumbs(tmp_path: Path, no_room: Callable[[], None]) -> None:
    sealed.write(tmp_path / "a.niwaki", {"niwaki.json": b"old"})
    no_room()
    with pytest.raises(OSError, match="too large"):
        sealed.write(tmp_path / "a.niwaki", {"niwaki.json": b"new", "weights.safetensors": bytes(200_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.niwaki"]
    assert (tmp_path / "a.niwaki" / "niwaki.json").read_bytes() == b"old"
    with pytest.raises(OSError, match="too large"):
        files.write_bytes(tmp_path / "x", bytes(200_000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.niwaki"]


def test_by_a_link_or_from_inside_it_is_the_same_artifact(
    exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported.path, tmp_path / "a.niwaki")
    (tmp_path / "latest").symlink_to("a.niwaki")
    Artifact.open(tmp_path / "latest").update(note="by the link")
    assert (tmp_path / "latest").is_symlink()
    monkeypatch.chdir(tmp_path / "a.niwaki" / "exports")
    assert Artifact.open("..").manifest["note"] == "by the link"
    monkeypatch.chdir(tmp_path / "a.niwaki")
    assert Artifact.open(".").path == tmp_path / "a.niwaki"
