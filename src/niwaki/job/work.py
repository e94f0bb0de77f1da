"""What one run works with: its arguments, data, spec, task, plan and the way to a fresh model."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from niwaki import bands, files
from niwaki.cost import Budget
from niwaki.errors import ModelError, PlanError
from niwaki.job.folder import Folder
from niwaki.plan import Plan, Step, default, knobs
from niwaki.spec import Spec
from niwaki.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from niwaki.data import DataSet, Samples

CALIBRATION = 256
"""Training images that int8 is calibrated on."""
SMALL = 64
"""Below this many pixels the default network is `niwaki:small`."""
LARGE, STRIDE = 512, 32
"""Images with masks are made so small, in such steps, where no size is asked for."""
_PACKAGES = ("niwaki", "numpy", "onnx", "onnxruntime", "pillow", "safetensors", "timm", "torch")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """`fit`'s arguments as its run folder remembers them."""

    source: str
    model: str
    budget: str
    max_drop: float
    weights: str | None
    epochs: int
    recover_epochs: int
    seed: int
    val: float
    threads: int
    size: tuple[int, int]
    pretrained: bool
    plan: str
    ledger: int
    contents: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What run.json holds."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that the stages share. `fresh()` is the model before any training, the same each time."""

    arguments: Arguments
    folder: Folder
    data: DataSet
    spec: Spec
    plan: Plan
    fresh: Callable[[], nn.Module]
    builder: str | None
    show: Callable[[Any], object] | None

    @property
    def task(self) -> Task:
        """What the model's outputs mean."""
        return self.data.task

    @property
    def budget(self) -> Budget:
        """What was asked for."""
        return Budget.parse(self.arguments.budget)

    @property
    def calib(self) -> Samples:
        """The part of the training split that int8 is calibrated on."""
        return self.data.train.take(CALIBRATION, seed=self.arguments.seed)

    def calibration(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The calibration images, uint8 `[N, H, W, C]`."""
        calib = self.calib
        return calib.batch(range(len(calib)), self.spec)


def choose_spec(source: str, data: DataSet, size: int | tuple[int, int] | None) -> Spec:
    """What enters the model: the size asked for, else 16x16 for digits, 224 for photographs, small
    images as they are; images with masks keep their shape, up to 512 pixels and in steps of 32."""
    if size is not None:
        size_hw = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    elif source == "digits":
        size_hw = (16, 16)
    else:
        size_hw = _natural(data)
    if data.bands is not None:
        return data.bands.spec(size_hw)
    if source == "digits":
        return Spec(size_hw=size_hw, mean=(0.5,), std=(0.25,), channels=1)
    return Spec(size_hw=size_hw)


def _natural(data: DataSet) -> tuple[int, int]:
    """The commonest size of the first training images when it is below 64 pixels, else 224x224."""
    from niwaki.images import decode

    shapes = []
    for source in list(data.train.sources)[:32]:
        if isinstance(source, np.ndarray):
            image = source
        elif data.bands is not None or isinstance(source, bands.Stack):
            image = bands.read(source)[0]
        else:
            image = decode(source, channels=3)
        shapes.append((int(image.shape[0]), int(image.shape[1])))
    common = max(sorted(set(shapes)), key=shapes.count)
    if data.task.dense:
        shrink = min(1.0, LARGE / max(common))
        height, width = (max(STRIDE, STRIDE * round(side * shrink / STRIDE)) for side in common)
        return height, width
    return common if max(common) < SMALL else (224, 224)


def choose_model(spec: Spec, task: Task) -> str:
    """The default network for images of that size, with labels or masks."""
    if task.dense:
        return "niwaki:star_unet" if task.kind == "instances" else "niwaki:fast_scnn"
    return "niwaki:small" if max(spec.size_hw) < SMALL else "timm:resnet18"


def check_output(model: nn.Module, spec: Spec, task: Task) -> None:
    """Nothing, when a model gives a class map where the data has masks.

    Raises:
        ModelError: it gives something else. [model-output]
    """
    import torch

    if not task.dense:
        return
    with torch.no_grad():
        found = copy.deepcopy(model).eval()(torch.from_numpy(spec.example(1)))
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if not (isinstance(shape, tuple) and task.fits(shape)):
        raise ModelError(
            f"model: it gives {shape} for one image, and the data has masks: expected logits [1, "
            f"{len(task.classes)}, h, w]. Take a segmentation network, such as niwaki:fast_scnn or "
            "smp:unet-resnet18; for objects niwaki:star_unet (two-stage detectors: niwaki.train.fit alone).",
            code="model-output",
        )


def choose_plan(plan: str | Path | Plan | None) -> Plan:
    """The default plan, or the one given, or the one in a TOML file.

    Raises:
        PlanError: it prunes twice, or is no plan.
            [plan-shape, plan-file, plan-toml, plan-step, plan-knob]
    """
    if plan is None:
        plan = default()
    elif not isinstance(plan, Plan):
        plan = Plan.load(plan)
    if sum(item.do == "prune.channels" for item in plan) > 1:
        raise PlanError(
            "plan: fit turns the budget into the widths of one prune.channels step, got several. "
            "Keep one, or run the plan yourself: Plan.run.",
            code="plan-shape",
        )
    return plan


def filled(plan: Plan, **values: Any) -> Plan:
    """The plan as it will run: `values` for the knobs of training steps that it leaves open, steps of no
    epochs left out."""
    steps = (_filled(item, values) for item in plan)
    return Plan(*(item for item in steps if item.knobs.get("epochs") != 0))


def _filled(item: Step, values: dict[str, Any]) -> Step:
    if item.do == "prune.channels":
        return item
    open_ones = {name for name in knobs(item.function) if name not in item.knobs}
    return item.with_(**{name: value for name, value in values.items() if name in open_ones})


def plan_text(plan: Plan) -> str:
    """The plan as TOML, or in words where it holds functions that are not niwaki's."""
    try:
        return plan.to_toml()
    except PlanError:
        return "".join(f"# {item.do} {dict(item.knobs)}\n" for item in plan)


def model_name(model: Any) -> str:
    """A model argument as a run remembers it: a name, or a hash where it is a module."""
    if isinstance(model, str):
        return model
    if callable(model) and not hasattr(model, "state_dict"):
        return f"{model.__module__}:{model.__qualname__}"
    return f"{type(model).__qualname__}:{state_hash(model)[:16]}"


Builder = Callable[..., "nn.Module"]


class Start(Protocol):
    """What a fresh model depends on beside its builder and the data."""

    @property
    def seed(self) -> int:
        """Of its random weights."""

    @property
    def pretrained(self) -> bool:
        """Whether it begins with the builder's published weights."""


def builder_of(
    model: Any, weights: str | Path | None, arguments: Start, data: DataSet, spec: Spec
) -> tuple[Callable[[], nn.Module], str | None]:
    """`fresh()`, the model before training and the same each time; and what artifacts name as its builder."""
    import torch

    from niwaki import nets

    sizes = {"classes": len(data.classes), "channels": spec.channels}
    builder: str | None
    make: Builder
    if isinstance(model, str) and by_name(model):
        builder, make = model, partial(nets.build, model, **sizes, pretrained=arguments.pretrained)
    elif isinstance(model, str):
        builder, make = Path(model).name, partial(nets.build_user, model, **sizes)
    elif isinstance(model, torch.nn.Module):
        builder, make = None, partial(copy.deepcopy, model)
    else:
        builder, make = model_name(model), partial(model, **sizes)

    def fresh() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            made = make()
        return made if weights is None else nets.load_weights(made, weights)

    return fresh, builder


def by_name(builder: str | None) -> bool:
    """Whether an artifact may call this builder by its name: niwaki's own and those of libraries."""
    return builder is not None and builder.partition(":")[0] in ("timm", "niwaki", "smp", "torchvision")


def contents(*paths: str | Path | None) -> dict[str, str]:
    """SHA-256 of each file an argument names, so that an edited file counts as another argument."""
    named = [str(path) for path in paths if path is not None]
    found = {}
    for name in named:
        file = Path(name if Path(name).is_file() else name.rpartition(":")[0])
        if file.is_file():
            found[file.name] = files.sha256(file)
    return found


def state_hash(model: nn.Module) -> str:
    """SHA-256 over a model's class name, tensor names and values."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What is installed, of what a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
