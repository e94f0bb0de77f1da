"""Every error niwaki raises on purpose, the exit code each leads to, and the list of stable codes.

    NiwakiError
    ├── SpecError (ValueError)        an image or its description does not fit
    ├── DataError (ValueError)        a data set cannot be used as given
    ├── ModelError (ValueError)       a model cannot be built, loaded or exported
    ├── PlanError (ValueError)        a plan or one of its knobs is wrong
    ├── RunError (ValueError)         a run folder does not belong to this command
    ├── ArtifactError (ValueError)    an artifact is damaged or not one
    │   └── UnsafeArtifact            an artifact asks for something that is refused
    ├── RuntimeFailed (RuntimeError)  a runtime refused or failed
    ├── BudgetError (RuntimeError)    a budget cannot be met           exit 3
    ├── ParityError (RuntimeError)    an export or a surgery differs   exit 3
    └── MissingExtra (ImportError)    an optional part is not there    exit 4

A message says: what happened where, what came, what was expected, how to fix it; `code` is stable and
explained in docs/errors.md, which a test holds equal to `CODES`.
"""

from __future__ import annotations

from typing import ClassVar


class NiwakiError(Exception):
    """Base of all errors raised on purpose. `code` is one of `CODES`."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class SpecError(NiwakiError, ValueError):
    """An image, or what a Spec says of it, does not fit."""


class DataError(NiwakiError, ValueError):
    """A data set cannot be used as given."""


class ModelError(NiwakiError, ValueError):
    """A model cannot be built, loaded or exported."""


class PlanError(NiwakiError, ValueError):
    """A plan, a step or one of its knobs is wrong."""


class RunError(NiwakiError, ValueError):
    """A run folder does not belong to this command, or is in use."""


class ArtifactError(NiwakiError, ValueError):
    """An artifact is damaged, incomplete or not one."""


class UnsafeArtifact(ArtifactError):
    """An artifact asks for something that niwaki refuses to do for a file."""


class RuntimeFailed(NiwakiError, RuntimeError):
    """A runtime refused a model or failed while it ran."""


class BudgetError(NiwakiError, RuntimeError):
    """A budget cannot be met."""

    exit_code: ClassVar[int] = 3


class ParityError(NiwakiError, RuntimeError):
    """What was exported or pruned does not compute what it should."""

    exit_code: ClassVar[int] = 3


class MissingExtra(NiwakiError, ImportError):
    """An optional part of niwaki is needed and not installed."""

    exit_code: ClassVar[int] = 4


# code -> what it means and what to do. Keep sorted; docs/errors.md lists exactly these.
CODES: dict[str, str] = {
    "artifact-builder": "The artifact was made by own code, which is never run from a file (pass it: .model(builder=...)), or by a builder that is not known here.",
    "artifact-checksum": "A file of the artifact is not the one that was saved. Fetch or make it again.",
    "artifact-export": "The artifact has no such export, or one that is not of its model. Add it: niwaki export.",
    "artifact-extra": "A file lies in the artifact that does not belong there. Remove it.",
    "artifact-field": "A field of the manifest is niwaki's own, or its value is no JSON.",
    "artifact-incomplete": "A file of the artifact is missing. Fetch or make it again.",
    "artifact-json": "A file of the artifact is not the JSON that niwaki writes.",
    "artifact-link": "An artifact holds a link or no plain file, which is refused.",
    "artifact-manifest": "The artifact's manifest is not what niwaki writes.",
    "artifact-missing": "There is no such artifact, or it cannot be read.",
    "artifact-occupied": "Something that is no artifact lies where one should be written.",
    "artifact-structure": "The model cannot be saved as a difference: its reload computes something else. Save it as its graph: builder=None.",
    "artifact-sums": "The artifact's list of checksums is not readable as one.",
    "artifact-version": "The artifact was written in a format that this version does not read.",
    "artifact-weights": "The artifact's weights cannot be read. Fetch or make it again.",
    "bands-count": "An image or scene has another number of bands than the model takes; both are in the message.",
    "bands-differ": "An image has another number of bands or of bits than most files of its set (or than bands.txt names).",
    "bands-file": "bands.txt has a line NAME or NAME LOW HIGH for each band of an image, each name once.",
    "bands-missing": "An image of several files lacks one of its bands or dates.",
    "bands-size": "The bands of one image have sizes that are no multiples of each other. Bring them to one grid.",
    "budget-drop": "No network tried holds the accuracy within --max-drop; the points are kept under points/.",
    "budget-kind": "niwaki doctor counts: it takes a budget of macs or params. Latency and size are measured by niwaki fit.",
    "budget-syntax": "A budget reads KIND=VALUE: latency=50%, latency=4ms, macs=40%, params=1.2M, size=3MB.",
    "budget-unreachable": "Even the narrowest network allowed costs more than the budget. Ask for more, or lower --min-width.",
    "checkpoint-damaged": "A checkpoint cannot be read. Delete it; training starts again from the model given.",
    "checkpoint-other": "A checkpoint was written with other knobs, data or model shapes; the message names what differs.",
    "classes-differ": "The data's classes, or what it is data for, are not the artifact's. Name the classes alike.",
    "clean-graph": "ONNX Runtime cannot load or run the graph that is to be cleaned up.",
    "corrupt-kind": "A corruption is one of noise, blur, brightness, contrast, jpeg, at a severity of 1 to 5.",
    "data-changed": "The images are not those that the stored splits name. Restore them, or start a new run folder.",
    "data-class-empty": "A class has no usable image to learn from. Mend its images, or take the class out.",
    "data-empty": "The data set has no image at all. Check the path and its layout (docs/data.md).",
    "data-few-classes": "A classifier needs at least two classes with images.",
    "data-few-images": "A split would be empty. A class needs three images to be in train, val and test.",
    "data-format": "The path is neither a folder nor a .zip, .npz, .csv or .jsonl file.",
    "data-layout": "Folders are neither classes nor splits of classes (docs/data.md shows both layouts).",
    "data-manifest": "A CSV or JSONL manifest cannot be parsed or lacks the columns path and label.",
    "data-missing": "There is nothing at this path, and it is none of the built-in names (digits, cifar10).",
    "data-no-train": "Splits are given but none of them is train.",
    "data-npz": "An .npz file is damaged, or its arrays are not images uint8 [N,H,W] or [N,H,W,C] with labels [N].",
    "data-shares": "The shares val and test lie in 0..1 and leave something for train.",
    "data-unreadable": "The folder or file exists but cannot be read. Check its permissions.",
    "data-unset": "NIWAKI_DATA does not name a folder that holds this data set; docs/data.md says where to get it.",
    "data-zip": "A zip archive is damaged, encrypted or unpacks to too much.",
    "difference-mismatch": "An artifact's structure or weights do not fit the model its builder makes now.",
    "difference-unsupported": "The model differs from the freshly built one in more than sizes and plain numbers. Save it as its graph: builder=None.",
    "distill-layers": "Modules or attention maps of student and teacher cannot be compared; the message says which and why.",
    "export-boxes": "A two-stage detector cannot be exported: its shapes depend on the image. Deploy niwaki:star_unet.",
    "export-calib": "int8 needs calibration images: uint8 [N, H, W, C] of the Spec's size.",
    "export-failed": "torch cannot export the model; the message holds its reason.",
    "export-precision": "The runtime does not know that precision.",
    "export-recipe": "The runtime makes int8 in its own way: a recipe is for int8 of onnx, openvino and tensorrt.",
    "extra-missing": "An optional part is needed; the message holds the install line.",
    "file-access": "A file or folder could not be opened or written; the message names it and the reason.",
    "file-repeated": "The same name is listed twice; the first entry is kept.",
    "file-stray": "A file lies beside the class folders, so it has no class. Move it into one.",
    "folder-nested": "A folder lies inside a class folder; images are read from the class folder itself only.",
    "folder-unreadable": "A class folder cannot be read. Check its permissions.",
    "gates-budget": "prune.gates holds macs or params while it trains; latency and size are measured afterwards.",
    "gates-knob": "A knob of prune.gates is out of its range; the message says which and what it may be.",
    "gates-none": "The model has no group of channels, heads or units that a gate switches exactly; use prune.channels.",
    "image-corrupt": "The image is damaged or breaks off early. Replace the file or take it out.",
    "image-empty": "The file has no bytes, or the image no pixels.",
    "image-missing": "There is no file at this path.",
    "image-oversized": "The image has more pixels or bytes than are decoded (a decompression bomb would). Make it smaller.",
    "image-unreadable": "The path is no regular file, or it cannot be opened. Check permissions.",
    "image-unsupported": "Not an image format that is read, or one without a scale to 8 bits. Convert it to PNG or JPEG.",
    "instances-tile": "Tile, context and slack leave no core, or the label map given is not int64 of the image's size.",
    "internal": "An error nobody foresaw: a bug in niwaki. Run again with --debug and report the traceback.",
    "interrupted": "Ctrl-C. The same command goes on from the last checkpoint.",
    "loss-auxiliary": "A module named for an auxiliary head is not in the network, or gives no feature map [B, C, h, w].",
    "loss-text": "A loss reads `2*ohem(sure=0.8) + dice`: terms of known names, with weights and knobs; the message says what is wrong.",
    "mask-classes": "A classes file of masks has a line `name`, `id name` or `name r g b` for each class; the message says what is wrong.",
    "mask-many": "Masks hold more than 255 classes. List those to learn in classes.txt; or where values are objects, name the folder instances/.",
    "mask-missing": "An image has no mask of the same name. Add it, or take the image out.",
    "mask-none": "Masks are needed and these images have labels. Lay images/ and masks/ (or instances/) side by side.",
    "mask-outlines": "A file of outlines is no COCO file of images, annotations and categories; or two files have one id for two names.",
    "mask-size": "A mask is not of its image's size. Make them equal.",
    "mask-stray": "A mask has no image of the same name.",
    "mask-value": "A mask holds a value that no class has. Add it to the classes file, or mend the mask.",
    "masks-form": "The masks are none of bool [N, H, W], crops (y, x, mask) or COCO RLE, or one is damaged; the message says which.",
    "masks-labels": "A label map must be whole numbers [H, W] from 0 on; 0 is background.",
    "masks-policy": "There is no such policy of resolving overlaps; the message lists them.",
    "masks-scores": "There must be one score for each mask, and none may be nan.",
    "masks-shape": "Masks, label maps or shape= disagree about the image's size. Give them one size; crops need shape=(H, W).",
    "model-anchors": "A two-stage detector's anchors are fitted to training objects, and there are none.",
    "model-download": "The published weights could not be fetched. Check the network, or start from random weights or a file.",
    "model-export": "torch.export cannot follow the model's forward; the message says why.",
    "model-output": "The model gives no class map [1, K, h, w], and the data has masks. Take a segmentation network.",
    "model-points": "PointRend cannot be put on this network: it gives no map, or no module gives fine features; name one with NAME+pointrend@MODULE.",
    "model-pretrained": "There are no published weights for this model. Use --weights, or train from scratch.",
    "model-unknown": "A model is timm:NAME, niwaki:NAME, smp:ARCHITECTURE-ENCODER, torchvision:NAME or file.py:function; the message lists the nearest names.",
    "model-user": "The user's file, function or what it returned is not a torch.nn.Module.",
    "parity": "An exported file does not compute what the model computes. Do not use it; export again.",
    "plan-file": "The plan file cannot be read as UTF-8 text. Check the path.",
    "plan-knob": "A step has no such knob; the message names the nearest one and lists all.",
    "plan-need": "A step needs something that the Bench does not hold; give it to Bench(...).",
    "plan-rounds": "plan.rounds takes at least one round, a share between 0 and 1, and a pace it knows; the message lists them.",
    "plan-shape": "fit turns the budget into the widths of one prune.channels step; a plan may hold at most one.",
    "plan-step": "There is no step of that name, or a function does not have a step's signature.",
    "plan-toml": 'A plan in TOML is [[step]] tables of plain values: do = "prune.channels" and knobs.',
    "program-export": "torch cannot export the model as a graph; the message holds its reason. Give a builder instead.",
    "program-graph": "The artifact's graph is damaged, or asks for an operator that is not allowed.",
    "program-operator": "The model's graph has an operator that cannot be saved; it is named. Give a builder instead.",
    "prune-compensate": "compensate is none, mean or least-squares; it needs a ridge of at least 0 and calibration images.",
    "prune-empty": "A group must keep at least one atom. Lower the ratio or skip the group.",
    "prune-evidence": "A score made from data needs images with labels, their task and spec; the message says what is missing.",
    "prune-normalise": "No normalisation of scores of that name.",
    "prune-proof": "A pruned model did not compute what the masked original does; nothing was changed.",
    "prune-range": "A group's name or its kept atoms do not exist in this model.",
    "prune-ratio": "ratio is the share of channels that goes, from 0 to below 1; ratios are entries 'pattern=ratio'.",
    "prune-result": "What pruning gives back is auto, module or graph: result=.",
    "prune-scope": "scope is local (each group by itself), global (all ranked together) or isomorphic (like with like).",
    "prune-score": "No pruning criterion of that name, or one that this network has nothing for.",
    "prune-skip": "A name pattern or group name matches nothing in this model.",
    "prune-unmendable": "The model's class cannot run at other sizes; keep sizes in attributes of the module that uses them, or skip the group.",
    "prune-width": "widths are of 1 to the group's size, multiple is at least 1 and min_width a share from 0 to 1.",
    "quantize-grid": "A scale and zero point do not fit the value or weights that they are given for; the message names it.",
    "quantize-images": "int8 takes its ranges from images, and there are none.",
    "quantize-infinite": "A value inside the network is infinite or no number on the calibration images; int8 has no range for it.",
    "quantize-layer": "A name of a layer to quantize otherwise, or to leave float, is none of the model's; the message lists them.",
    "quantize-model": "The model is quantized already, or holds nothing that can be.",
    "quantize-parts": "More stages of quantization than layers or epochs.",
    "quantize-recipe": "A recipe of int8 has no such knob or value; the message lists what there is.",
    "report-missing": "The folder holds no report.json; only a run that was finished by `niwaki fit` has one.",
    "report-record": "report.json is damaged, or the record lacks a required part; run `niwaki fit` again.",
    "row-bad": "A manifest's row lacks a path or label, or names an unknown split.",
    "run-damaged": "A file of the run folder cannot be read. Delete the folder, or give another --out.",
    "run-differs": "The run folder belongs to another command or other data; the message says what differs. Give another --out.",
    "run-first": "Another process of the same job failed first; the first one's message says why.",
    "run-foreign": "The --out folder holds other things and no run of niwaki. Give a new or an empty one.",
    "run-locked": "Another process works in this run folder. Wait for it, or give another --out.",
    "runtime-device": "The runtime needs a processor or device that is not here; the message says which.",
    "runtime-external": "The file keeps tensors in other files, which is refused. Save the model as one file.",
    "runtime-failed": "The runtime failed while it ran; the message holds its reason.",
    "runtime-input": "A predictor takes a numpy array uint8 [N, H, W, C] of the size its file was exported for.",
    "runtime-missing": "The exported file is not there or cannot be read. Export it first.",
    "runtime-refused": "The runtime cannot load the file: it is damaged or no model. Export it again.",
    "runtime-signature": "The file's inputs or outputs are not those that niwaki exports.",
    "runtime-unknown": "niwaki has no runtime of that name.",
    "search-budget": "A search counts: its --budget is one of macs or params, the same as --cost.",
    "search-by": "The way of searching and what it is to search through do not fit together; the message says why.",
    "search-cluster": "A trial failed on the Ray cluster; the message holds the reason.",
    "search-space": "What is searched through reads NAME=VALUE,VALUE or NAME=LOW..HIGH; the message lists the names.",
    "search-storage": "The shared storage holds a study with another space. Give the same --set, or another --storage.",
    "slimming-knob": "A knob of prune.slimming is out of its range; the message says which and what it may be.",
    "slimming-none": "The model has no batch norm over prunable channels; use prune.gates or prune.channels.",
    "spec-bands": "A Spec names each of its bands once, or none.",
    "spec-channels": "A Spec has at least one channel, and one mean and std for each; photographs are decoded to 1 or 3.",
    "spec-resize": "The resize rule in a manifest is not one this version knows.",
    "spec-scale": "A Spec's scale is a pair (low, high) for each channel, low below high: the values that become black and white.",
    "spec-size": "A Spec's size_hw is two whole numbers of at least 1 pixel.",
    "spec-std": "A Spec's std must be above zero.",
    "step-no-effect": "A step of the plan changed nothing. Change its knobs or take it out.",
    "task-knob": "A number of a task is out of its range; the message says which and what it may be.",
    "tile-busy": "Another process writes the same output. Wait for it, or give another one.",
    "tile-corrupt": "A scene's file is damaged or breaks off early. Fetch or write it again.",
    "tile-disk": "The disk has too little room for the prediction while it is written. Make room; the same command goes on.",
    "tile-exact": "The network sees the whole image, has an operator whose reach is not known (it is named), or takes tiles larger than the scene. Leave out --exact.",
    "tile-format": "A scene of a kind that is not read by window, or of a shape that is no image; the message has the conversion command.",
    "tile-geo": "The scene does not say where it lies, or in a CRS that is not known; GeoJSON needs both.",
    "tile-inexact": "Tiles do not give what the whole image gives, so what is known of the network's reach is wrong. Leave out --exact.",
    "tile-invalid": "The file written is not a valid Cloud-Optimised GeoTIFF when it is read back. Check the disk; write it again.",
    "tile-knob": "A knob of tile.predict is out of its range; the message says which and what it may be.",
    "tile-members": "Members of an ensemble, their weights or their outputs do not fit together; the message says how.",
    "tile-memory": "The memory given is too little for even one tile a time; the message says what is needed.",
    "tile-output": "A predictor of tiles takes [N, H, W, C] and gives finite floats [N, K, H, W], a probability for each class and pixel.",
    "tile-overwrite": "The output would take the place of the scene it is made of, or of a folder that is no prediction. Give another name.",
    "tile-scale": "Pixels of this type need a range, black and white, to become 8 bits: scale=(low, high), or --range.",
    "tile-sink": "A prediction is written to .tif, .zarr, .npy, .png (classes), .geojson (classes), or an array of its shape.",
    "tile-whole": "A format that is only read whole takes more memory than there is. Convert it as the message says.",
    "tile-window": "tile, overlap or blend is out of its range; an overlap is below the tile, and a tile a multiple of the network's stride.",
    "train-knob": "A training knob is out of its range; the message says which and what it may be.",
    "train-no-statistics": "train.statistics averages batch norm statistics, and the model has none. Take the step out of the plan.",
    "train-nonfinite": "The training loss is no longer a number. Lower the learning rate, or look at the data.",
    "usage": "The command line does not parse; `niwaki VERB --help` lists what it takes.",
    "web-bands": "The browser page takes photographs; a model of bands is used by niwaki predict or in Python.",
    "web-task": "The browser page shows classes of a whole image; masks and objects are shown by niwaki predict.",
    "weights-format": "A weights file is damaged, of an unknown kind, or holds more than tensors.",
    "weights-mismatch": "Names or shapes in a weights file are not the model's; the first of each are listed.",
    "weights-missing": "There is no weights file at that path.",
    "zip-entry": "An entry of a zip archive is encrypted, damaged or has a path that leaves the archive.",
}
