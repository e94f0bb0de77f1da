"""Artifact: the folder that is deployed. What it is made of: docs/artifact.md.

    NAME.niwaki/
        niwaki.json            what it is: format, spec, task, builder, structure, plan, costs, scores, versions
        weights.safetensors    parameters and buffers by name
        graph.json             only without a builder: the graph, over allow-listed operators
        exports/RUNTIME/*      what runtimes run
        SHA256SUMS             of every file above

Opening reads JSON and checksums; no torch, no pickle, no code from the folder. `model()` rebuilds
the float module and needs niwaki[train]; `session()` needs numpy and onnxruntime.
"""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki import files, runtimes, sealed, timing
from niwaki import manifest as manifests
from niwaki.errors import ArtifactError, ModelError, UnsafeArtifact
from niwaki.lazy import require
from niwaki.manifest import ALLOWED, GRAPH, MANIFEST, WEIGHTS
from niwaki.qdq import processors
from niwaki.spec import Spec
from niwaki.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from niwaki.qdq.recipe import Recipe

FEW = 16
"""Calibration images on which it is emulated what CPUs without VNNI make of an int8 file."""
_BY_NAME = re.compile(r"(timm|niwaki|smp|torchvision):[A-Za-z0-9_.+@-]+")

Builder = Callable[[], "nn.Module"]


class Artifact:
    """An opened artifact; it stays as it is on disk until `export` or `update` replaces it.

    `path`, `manifest` (the JSON of niwaki.json), `spec` and `task` describe it.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], spec: Spec, task: Task) -> None:
        self.path, self.manifest, self.spec, self.task = path, manifest, spec, task

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """The artifact in a folder, after all its checksums were found right. Loads no torch.

        Raises:
            ArtifactError: it is damaged, incomplete, of another version, or none. [artifact-*]
            UnsafeArtifact: it holds what does not belong there. [artifact-extra, artifact-link]
        """
        path = Path(path)
        if path.is_symlink() or path.name in ("", ".."):  # what is written later replaces a folder by its name
            path = path.resolve()
        present = sealed.check(path, ALLOWED)
        for name in (MANIFEST, WEIGHTS):
            if name not in present:
                raise ArtifactError(f"{path.name}: {name} is missing.", code="artifact-incomplete")
        manifest = manifests.parse_json(present[MANIFEST], f"{path.name}/{MANIFEST}")
        spec, task = manifests.described(path, manifest, present.keys())
        return cls(path, manifest, spec, task)

    @classmethod
    def save(
        cls,
        path: str | Path,
        model: nn.Module,
        *,
        spec: Spec,
        task: Task,
        builder: str | None = None,
        fresh: nn.Module | None = None,
        plan: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> Artifact:
        """Writes a model as an artifact without exports; one that is there already is replaced whole.

        Args:
            builder: what makes the model before surgery: "timm:NAME" or "niwaki:NAME", or
                "file.py:function", which loads only where the caller passes the function. None:
                the graph itself is saved, as it is of a model that is a graph already.
            fresh: what the builder makes, where the caller has it at hand.
            plan, extra: JSON kept in the manifest.
        Raises:
            ModelError: the model is no resized form of what the builder makes, or its graph has an
                operator that is not allowed. [difference-unsupported, program-operator,
                artifact-structure]
        """
        from niwaki.surgery import difference
        from niwaki.surgery.program import Program

        contents: dict[str, bytes | Path] = {}
        if isinstance(model, Program):  # nothing that a builder makes; the graph is all of it
            builder = fresh = None
        if builder is not None and fresh is None:
            fresh = _fresh(builder, spec, task)
        structure, graph, tensors = _structure(model, spec, fresh)
        manifest = manifests.fields({**(extra or {}), "plan": plan})
        manifest |= {
            "format": manifests.FORMAT,
            "spec": spec.to_json(),
            "task": task.to_json(),
            "builder": builder,
            "structure": structure,
            "exports": {},
            "versions": manifests.versions(),
        }
        if graph is not None:
            contents[GRAPH] = files.dump_json(graph)
        contents[WEIGHTS] = difference.to_bytes(tensors)
        contents[MANIFEST] = files.dump_json(manifest)
        sealed.write(Path(path), contents)
        saved = cls.open(path)
        _prove_reload(saved, model, fresh)
        return saved

    @property
    def exports(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What was exported: {runtime: {precision: {"file", "bytes", "parity"}}}."""
        exports: dict[str, dict[str, dict[str, Any]]] = self.manifest["exports"]
        return exports

    @property
    def default(self) -> str:
        """The precision that `session` runs when none is asked for."""
        return str(self.manifest.get("default", "float32"))

    def model(self, builder: Builder | None = None) -> nn.Module:
        """The float module, bit for bit the one that was saved, in the same mode. Needs niwaki[train].

        Args:
            builder: makes the model before surgery; needed when the artifact names a file, whose
                code is never run from here.
        Raises:
            UnsafeArtifact: it was made by own code, and no `builder` came. [artifact-builder]
            ArtifactError: its builder is not known here. [artifact-builder]
            ArtifactError: weights and structure do not fit, or the model does not run.
                [artifact-weights, difference-mismatch, program-graph]
        """
        require("torch", extra="train")
        return _load(self, builder)

    def export(
        self,
        runtime: str = "onnx",
        *,
        precision: str = "float32",
        calib: npt.NDArray[np.uint8] | None = None,
        recipe: Recipe | None = None,
        builder: Builder | None = None,
    ) -> Path:
        """The path of a new export, which was compared with the model; its figures are in
        `exports`.

        Args:
            calib: images uint8 `[N, H, W, C]`, needed by int8.
            recipe: how int8 is made, kept in the manifest beside the export; None is plain min-max.
        Raises:
            ModelError: the runtime makes int8 in its own way and takes no recipe. [export-recipe]
            ModelError, ParityError: see runtimes.onnx_export.
        """
        made = runtimes.load(runtime)
        if recipe is not None and not (precision == "int8" and getattr(made, "RECIPES", False)):
            raise ModelError(
                f"export: {runtime} {precision} takes no recipe, expected int8 of onnx, openvino or tensorrt. "
                "Export it without (on the command line without --narrow and --quantizer).",
                code="export-recipe",
            )
        parity = require("niwaki.runtimes.parity", extra="train")
        model = self.model(builder)
        name = f"exports/{runtime}/{precision}.{made.SUFFIX}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{precision}.{made.SUFFIX}"
            made.export(
                model,
                self.spec,
                file,
                task=self.task,
                precision=precision,
                calib=calib,
                prove=False,
                **({} if recipe is None else {"recipe": recipe}),
            )
            found = parity.prove(
                model,
                file,
                self.spec,
                task=self.task,
                precision=precision,
                calib=calib,
                runtime=runtime,
            )
            names = [name, *(f"exports/{runtime}/{precision}.{part}" for part in made.PARTS)]
            contents = {one: (Path(folder) / Path(one).name).read_bytes() for one in names}
            size = sum(map(len, contents.values()))
            entry = {"file": name, "bytes": size, "parity": found.to_json()}
            if hasattr(made, "facts"):
                few = None if calib is None else calib[:FEW]
                entry |= made.facts(file, precision=precision, images=few)
            if recipe is not None:
                entry["recipe"] = recipe.to_json()
            if made.PARTS:
                entry["parts"] = names[1:]
            exports = {k: dict(v) for k, v in self.exports.items()}
            exports.setdefault(runtime, {})[precision] = entry
            self._replace({"exports": exports}, contents)
        return self.path / name

    def session(
        self, runtime: str = "onnx", *, precision: str | None = None, threads: int = 1
    ) -> runtimes.Predictor:
        """A predictor, uint8 `[N, H, W, C]` to float32 `[N, K]` (or `[N, K, H, W]`), of an export. Loads no
        torch.

        Args:
            precision: the export to run; None is the artifact's `default`. An int8 file that saturates on this
                CPU runs in ONNX Runtime's exact mode, which is slower; a RuntimeWarning says so.
        Raises:
            ArtifactError: it holds no such export. [artifact-export]
        """
        made = runtimes.load(runtime)
        held = self.exports.get(runtime, {})
        wanted = precision or self.default
        if wanted not in held:
            hint = f"Add it: niwaki export {self.path.name} --runtime {runtime} --precision {wanted}"
            if wanted not in made.PRECISIONS:
                hint = f"There are {', '.join(made.PRECISIONS)}"
            raise ArtifactError(
                f"{self.path.name}: has no {runtime} export of precision {wanted!r}, it has "
                f"{sorted(held) or 'none'}. {hint}.",
                code="artifact-export",
            )
        mode = {}
        if runtime == "onnx" and wanted == "int8":
            isa = timing.isa()
            if processors.safe(held[wanted], isa):
                mode["exact"] = False  # else the runtime goes by the CPU
            if line := processors.exact(self.path.name, held[wanted], isa):
                warnings.warn(line, RuntimeWarning, stacklevel=2)
        session = made.open(self.path / held[wanted]["file"], threads=threads, **mode)
        got = (*session.size_hw, session.channels, *session.answer)
        if got != (*self.spec.size_hw, self.spec.channels, *self.task.shape(self.spec.size_hw)):
            raise ArtifactError(
                f"{self.path.name}: its {wanted} export takes and gives {got} (height, width, "
                "channels, classes, and the map's height and width), "
                "its manifest says otherwise. Export it again.",
                code="artifact-export",
            )
        predictor: runtimes.Predictor = session
        return predictor

    def update(self, **fields: Any) -> Artifact:
        """The same artifact with these fields of its manifest set; they are JSON, such as costs or scores.

        Raises:
            ArtifactError: a field is niwaki's own, or is no JSON. [artifact-field]
        """
        self._replace(manifests.fields(fields), {})
        return self

    def _replace(self, fields: dict[str, Any], contents: dict[str, bytes]) -> None:
        """The folder written again as a whole, unchanged files shared with the old one."""
        present = sealed.check(self.path, ALLOWED)
        manifest = {**self.manifest, **fields}
        whole: dict[str, bytes | Path] = {**present, **contents}
        whole[MANIFEST] = files.dump_json(manifest)
        sealed.write(self.path, whole)
        self.manifest = manifest


def _structure(
    model: nn.Module, spec: Spec, fresh: nn.Module | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any]]:
    """(difference, graph, tensors): what is saved of a model; without `fresh` its graph, else a difference."""
    from niwaki.surgery import difference

    if fresh is not None:
        return difference.diff(fresh, model), None, difference.tensors(model)
    import torch

    from niwaki.surgery import record

    graph, tensors = record.save(model, torch.from_numpy(spec.example(2)))
    return None, graph, tensors


def _fresh(builder: str, spec: Spec, task: Task) -> nn.Module:
    """What a builder makes before surgery. Its random weights are drawn apart from the caller's seed."""
    import torch

    from niwaki import nets

    make = nets.build if _BY_NAME.fullmatch(builder) else nets.build_user
    with torch.random.fork_rng(devices=[]):
        return make(builder, classes=len(task.classes), channels=spec.channels)


def _load(artifact: Artifact, builder: Builder | None) -> nn.Module:
    from niwaki.surgery import difference

    values = _weights(artifact)
    model: nn.Module
    name = artifact.manifest["builder"]
    if name is None:
        from niwaki.surgery import program

        graph = manifests.parse_json(artifact.path / GRAPH, f"{artifact.path.name}/{GRAPH}")
        model = program.load(graph, values)
    else:
        model = _built(artifact, name, builder)
        structure = artifact.manifest["structure"]
        difference.check_sizes(structure, values)
        difference.patch(model, structure)
        difference.load(model, values)
    _check_runs(artifact, model)
    return model


def _check_runs(artifact: Artifact, model: nn.Module) -> None:
    """Raises unless the model gives one row of outputs for one image: numbers in a file can be wrong ones."""
    import torch

    example = torch.from_numpy(artifact.spec.example(1))
    try:
        with torch.no_grad():
            outputs = copy.deepcopy(model).cpu().float().eval()(example)
        if not artifact.task.fits(tuple(outputs.shape)):
            raise ValueError(f"it gives {tuple(outputs.shape)}")
    except Exception as error:  # whatever the model's own code raises on a size that does not fit
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArtifactError(
            f"{artifact.path.name}: the model does not run on one image of its Spec: {reason}. Fetch or make "
            "the artifact again.",
            code="artifact-weights",
        ) from error


def _built(artifact: Artifact, name: str, builder: Builder | None) -> nn.Module:
    if builder is not None:
        return builder()
    if _BY_NAME.fullmatch(name):
        try:
            return _fresh(name, artifact.spec, artifact.task)
        except ModelError as error:
            raise ArtifactError(
                f"{artifact.path.name}: was built by {name[:100]!r}, which cannot be built here: {error}",
                code="artifact-builder",
            ) from error
    raise UnsafeArtifact(
        f"{artifact.path.name}: was built by {name[:100]!r}, and code named by a file is not run. Pass the "
        "function or class that makes the model: .model(builder=...).",
        code="artifact-builder",
    )


def _weights(artifact: Artifact) -> dict[str, Any]:
    """The tensors of weights.safetensors by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(artifact.path / WEIGHTS))
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise ArtifactError(
            f"{artifact.path.name}/{WEIGHTS}: cannot be read ({str(error)[:120]}). Fetch or make the artifact "
            "again.",
            code="artifact-weights",
        ) from error


def _prove_reload(saved: Artifact, model: nn.Module, fresh: nn.Module | None) -> None:
    """Raises if what was saved does not give the same outputs again, bit for bit."""
    import torch

    again = saved.model(builder=(lambda: copy.deepcopy(fresh)) if fresh is not None else None)
    example = torch.from_numpy(saved.spec.example(1))
    with torch.no_grad():
        one, other = (copy.deepcopy(m).cpu().float().eval()(example) for m in (model, again))
    if not torch.equal(one, other):
        raise ModelError(
            "the saved model does not give the same outputs when it is loaded: it holds something that is "
            "neither a parameter nor a buffer nor a plain number. Save it with builder=None, as its graph.",
            code="artifact-structure",
        )
