"""Networks by name, users' files and weights files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from niwaki import nets
from niwaki.errors import ModelError

WEIGHTS = Path(os.environ.get("NIWAKI_DATA", "nowhere")) / "weights"


@pytest.mark.parametrize("name", sorted({*nets.BUILDERS} - {*nets.SEGMENTATION, *nets.STARS}))
def test_own_nets_give_logits_for_any_channels_and_size(name: str) -> None:
    model = nets.build(f"niwaki:{name}", classes=7, channels=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_resnet20_has_the_published_size() -> None:
    model = nets.build("niwaki:resnet20", classes=10)
    assert sum(p.numel() for p in model.parameters()) == 269_722


def test_shortcut_takes_its_sizes_from_attributes() -> None:
    shortcut = nets.cifar.ShortcutA(2, (1, 3))
    assert shortcut(torch.ones(1, 4, 6, 6)).shape == (1, 8, 3, 3)
    shortcut.pad = (0, 1)
    out = shortcut(torch.ones(1, 2, 6, 6))
    assert out[0, :, 0, 0].tolist() == [1, 1, 0]


def test_timm_by_name_and_nearest_names() -> None:
    model = nets.build("timm:resnet18", classes=3)
    assert model.get_submodule("fc").out_features == 3
    with pytest.raises(ModelError, match="resnet18") as caught:
        nets.build("timm:resnet81", classes=3)
    assert caught.value.code == "model-unknown"


@pytest.mark.parametrize("name", ["niwaki:smal", "resnet18", "timm:", "file.py:make", ""])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        nets.build(name, classes=3)
    assert caught.value.code == "model-unknown"


def test_no_published_weights() -> None:
    for name in ("niwaki:small", "timm:test_resnet.nowhere"):
        with pytest.raises(ModelError) as caught:
            nets.build(name, classes=3, pretrained=True)
        assert caught.value.code in ("model-pretrained", "model-unknown")


def test_failed_download_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # real client, told there is no network
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        nets.build("timm:test_resnet", classes=3, pretrained=True)
    assert caught.value.code == "model-download"


def test_user_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make(classes, channels):\n    return nn.Conv2d(channels, classes, 1)\n"
        "def wrong(classes, channels):\n    return classes\n"
    )
    assert isinstance(nets.build_user(f"{file}:make", classes=3), nn.Conv2d)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for name in (f"{file}:wrong", f"{file}:none", f"{tmp_path}/no.py:make", f"{broken}:make"):
        with pytest.raises(ModelError) as caught:
            nets.build_user(name, classes=3)
        assert caught.value.code == "model-user"


def test_weights_round_trip_and_prefix(tmp_path: Path) -> None:
    source = nets.build("niwaki:resnet20", classes=4)
    state = source.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.th")
    for name in ("a.safetensors", "a.th"):
        model = nets.load_weights(nets.build("niwaki:resnet20", classes=4), tmp_path / name)
        assert torch.equal(model.get_parameter("linear.weight"), state["linear.weight"])


def test_weights_that_do_not_fit_leave_the_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(nets.build("niwaki:resnet20", classes=4).state_dict(), path)
    model = nets.build("niwaki:resnet20", classes=5)
    before = model.get_parameter("conv1.weight").clone()
    with pytest.raises(ModelError, match=r"linear\.weight: \(4, 64\) in the file") as caught:
        nets.load_weights(model, path)
    assert caught.value.code == "weights-mismatch"
    assert torch.equal(before, model.get_parameter("conv1.weight"))
    with pytest.raises(ModelError, match="missing from the file"):
        nets.load_weights(nets.build("niwaki:resnet32", classes=4), path)
    with pytest.raises(ModelError, match="unknown to the model"):
        nets.load_weights(nets.build("niwaki:small", classes=4), path)


class Evil:
    """What a pickle may run when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.txt", "a"])
def test_damaged_or_strange_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing to see here")
    with pytest.raises(ModelError) as caught:
        nets.load_weights(nets.build("niwaki:small", classes=4), tmp_path / name)
    assert caught.value.code == "weights-format"


def test_pickles_are_not_run(tmp_path: Path) -> None:
    for content in (Evil(), {"state_dict": Evil()}, {"epoch": 3}, {}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ModelError) as caught:
            nets.load_weights(nets.build("niwaki:small", classes=4), tmp_path / "a.pt")
        assert caught.value.code == "weights-format"
    with pytest.raises(ModelError) as caught:
        nets.load_weights(nets.build("niwaki:small", classes=4), tmp_path / "none.pt")
    assert caught.value.code == "weights-missing"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs $NIWAKI_DATA")
def test_published_resnet20_reaches_its_published_accuracy() -> None:
    from niwaki import Classify, Spec, data, evaluate

    found = data.read("cifar10")
    model = nets.build("niwaki:resnet20", classes=10)
    nets.load_weights(model, WEIGHTS / "resnet20-12fca82f.th")
    spec, task = Spec(size_hw=(32, 32)), Classify(found.classes)
    predict = evaluate.predictor(model, spec, task)
    says = evaluate.probabilities(predict, found.test, spec, batch=500)
    assert task.score(says, found.test.labels)["accuracy"] == pytest.approx(0.9173, abs=2e-4)
