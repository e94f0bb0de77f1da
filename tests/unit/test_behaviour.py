"""The behaviour ledger's parts: calibration, drops by class, corruptions and attacks, with known answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from niwaki import attack, behaviour, metrics
from niwaki.data import corrupt
from niwaki.errors import PlanError
from niwaki.spec import Spec
from niwaki.tasks import Classify

TASK = Classify(("dark", "light"))
GREY = Spec(size_hw=(6, 5), mean=(0.5,), std=(0.25,), channels=1)


def confident(sure: float, count: int) -> np.ndarray:
    return np.tile(np.array([sure, 1 - sure], np.float32), (count, 1))


def test_calibration_of_a_perfectly_calibrated_toy_is_zero() -> None:
    probabilities = np.concatenate([confident(0.75, 40), confident(0.95, 40)])
    labels = np.array([0] * 30 + [1] * 10 + [0] * 38 + [1] * 2)
    assert metrics.calibration(probabilities, labels) == pytest.approx(0, abs=1e-6)


def test_calibration_of_an_overconfident_toy_is_its_gap() -> None:
    labels = np.array([0] * 6 + [1] * 4)
    assert metrics.calibration(confident(0.99, 10), labels) == pytest.approx(0.39, abs=1e-6)
    both = np.concatenate([confident(0.99, 10), confident(0.6, 30)])
    more = np.concatenate([labels, np.array([0] * 30)])  # underconfident by 0.4: both gaps count
    assert metrics.calibration(both, more) == pytest.approx(0.25 * 0.39 + 0.75 * 0.4, abs=1e-6)


def test_one_bin_hides_what_fifteen_see() -> None:
    both = np.concatenate([confident(0.9, 10), confident(0.6, 10)])
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert metrics.calibration(both, labels, bins=1) == pytest.approx(0, abs=1e-6)
    assert metrics.calibration(both, labels) == pytest.approx(0.3, abs=1e-6)
    assert metrics.calibration(both[:0], labels[:0]) == 0


def test_drops_by_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    counts = Classify(("oak", "pine", "unseen")).tally(), Classify(("oak", "pine", "unseen")).tally()
    for tally, predicted in zip(counts, (labels, np.array([0, 0, 0, 1, 1, 0])), strict=True):
        tally.add(np.eye(3, dtype=np.float32)[predicted], labels)
    before, after = (tally.recalls() for tally in counts)
    drops = behaviour.class_drops(before, after, ("oak", "pine", "unseen"))
    assert drops == {"oak": 0.25, "pine": 0.5}
    assert metrics.recalls(labels, labels, classes=3) == [1.0, 1.0, None]


def photographs(count: int = 3, size: int = 20, channels: int = 3) -> np.ndarray:
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 4, 4, channels)).repeat(size // 4, 1).repeat(size // 4, 2)
    return coarse.astype(np.uint8)


@pytest.mark.parametrize("kind", corrupt.KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_are_images_and_functions_of_seed_and_index(kind: str, channels: int) -> None:
    images = photographs(channels=channels)
    index = np.arange(3)
    before = images.copy()
    out = corrupt.corrupt(images, index, kind=kind)
    assert out.dtype == np.uint8 and out.shape == images.shape
    assert np.array_equal(images, before) and not np.array_equal(out, images)
    assert np.array_equal(out, corrupt.corrupt(images, index, kind=kind))
    alone = corrupt.corrupt(images[1:2], index[1:2], kind=kind)
    assert np.array_equal(alone[0], out[1])


def test_noise_is_of_the_seed_and_has_its_deviation() -> None:
    grey = np.full((2, 64, 64, 1), 128, np.uint8)
    one = corrupt.corrupt(grey, np.arange(2), kind="noise", severity=1, seed=0)
    assert not np.array_equal(one, corrupt.corrupt(grey, np.arange(2), kind="noise", severity=1, seed=1))
    assert not np.array_equal(one[0], one[1])
    assert (one.astype(float) - 128).std() == pytest.approx(0.08 * 255, rel=0.03)


def test_each_severity_is_stronger() -> None:
    images = photographs()
    for kind in corrupt.KINDS:
        away = [
            np.abs(corrupt.corrupt(images, np.arange(3), kind=kind, severity=s).astype(int) - images).mean()
            for s in (1, 3, 5)
        ]
        assert away[0] < away[1] < away[2], kind


def test_known_corruptions() -> None:
    pixel = np.array([[[[100, 50, 0]]]], np.uint8).repeat(8, 1).repeat(8, 2)
    bright = corrupt.corrupt(pixel, np.arange(1), kind="brightness", severity=3)[0, 0, 0]
    assert bright.tolist() == [138, 69, 0]  # value 100 + 0.15 * 255, hue and saturation as before
    black = corrupt.corrupt(0 * pixel, np.arange(1), kind="brightness", severity=3)
    assert (black == 38).all()
    halves = np.zeros((1, 8, 8, 1), np.uint8)
    halves[:, :4] = 200
    contrast = corrupt.corrupt(halves, np.arange(1), kind="contrast", severity=2)
    assert sorted(np.unique(contrast)) == [50, 150]
    flat = np.full((1, 9, 9, 1), 77, np.uint8)
    assert (corrupt.corrupt(flat, np.arange(1), kind="blur") == 77).all()
    held = io.BytesIO()
    Image.fromarray(photographs()[0]).save(held, "JPEG", quality=58)
    jpeg = corrupt.corrupt(photographs(), np.arange(3), kind="jpeg", severity=3)
    assert np.array_equal(jpeg[0], np.asarray(Image.open(held)))


@pytest.mark.parametrize(("kind", "severity"), [("fog", 3), ("noise", 0), ("noise", 6)])
def test_an_unknown_corruption_is_an_error(kind: str, severity: int) -> None:
    with pytest.raises(PlanError) as caught:
        corrupt.corrupt(photographs(), np.arange(3), kind=kind, severity=severity)
    assert caught.value.code == "corrupt-kind"


class Line(nn.Module):
    """Logits (0, w . x): the gradient's sign is known."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(30, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(far), far], 1)


def greys(count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    return draw.integers(60, 190, (count, 6, 5, 1)).astype(np.uint8), np.arange(count) % 2


def test_fgsm_on_a_linear_model_is_the_sign_of_its_weights() -> None:
    model, (images, labels) = Line(), greys()
    out = attack.fgsm(model, images, labels, task=TASK, spec=GREY, eps=5)
    signs = np.sign(model.weight.detach().numpy()).reshape(1, 6, 5, 1)
    toward = np.where(labels == 1, -1, 1).reshape(-1, 1, 1, 1)  # away from the true class
    assert np.array_equal(out, images + 5 * toward * signs)
    assert np.array_equal(attack.pgd(model, images, labels, task=TASK, spec=GREY, eps=5), out)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A small network that tells noise with a bright left half from noise with a bright right half."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = draw.integers(90, 166, (96, 6, 5, 1))
    images[labels == 0, :, :2] += 12
    images[labels == 1, :, 3:] += 12
    images = images.astype(np.uint8)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(240, 2)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.from_numpy(GREY.normalise(images)), torch.from_numpy(labels)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model, images, labels


def loss(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return TASK.loss(model(torch.from_numpy(GREY.normalise(images))), torch.from_numpy(labels)).numpy()


def test_attacks_stay_within_eps_and_pgd_is_the_stronger(
    trained: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    model, images, labels = trained
    model.train()
    mode = [module.training for module in model.modules()]
    known: dict[str, object] = {"task": TASK, "spec": GREY, "eps": 6}
    near = attack.fgsm(model, images, labels, **known)  # type: ignore[arg-type]
    far = attack.pgd(model, images, labels, **known)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == mode
    assert all(p.requires_grad for p in model.parameters())
    for out in (near, far):
        assert out.dtype == np.uint8
        assert np.abs(out.astype(int) - images).max() == 6
    clean, one, many = (loss(model, x, labels) for x in (images, near, far))
    assert (many >= one - 1e-6).all() and many.mean() > one.mean() > clean.mean()
    again = attack.pgd(model, images, labels, **known)  # type: ignore[arg-type]
    assert np.array_equal(far, again)


def test_without_room_nothing_moves_and_with_all_the_room_nothing_is_right(
    trained: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    model, images, labels = trained
    still = attack.pgd(model, images, labels, task=TASK, spec=GREY, eps=0)
    assert np.array_equal(still, images)
    anything = attack.pgd(model, images, labels, task=TASK, spec=GREY, eps=255, step=40)
    right = loss(model, anything, labels) < np.log(2)
    assert right.mean() == 0  # else its gradients are masked and the attack proves nothing


def test_scores_of_a_predictor() -> None:
    images, _ = greys(130)

    def light(batch: np.ndarray) -> np.ndarray:
        mean = batch.mean((1, 2, 3)) / 255
        return np.stack([1 - mean, mean], 1).astype(np.float32)

    truth = light(images).argmax(1)
    found = behaviour.corrupted(light, images, truth, task=TASK, kinds=("contrast", "brightness"))
    assert found["contrast"]["accuracy"] == 1  # the mean stays
    assert found["brightness"]["accuracy"] < 1
    assert behaviour.scored(light, images, truth, task=TASK)["accuracy"] == 1
    struck = behaviour.attacked(light, {"none": images, "inverted": 255 - images}, truth, task=TASK)
    assert struck["none"]["accuracy"] == 1 and struck["inverted"]["accuracy"] < 0.1
    assert behaviour.mean_score(struck) == pytest.approx((1 + struck["inverted"]["accuracy"]) / 2)
