"""Objects as masks: overlaps resolved, label maps, RLE and COCO, NMS and metrics; any number of them.

crops.py     the inner form of a mask, made of dense masks and RLE
overlaps.py  `resolve_overlaps`: one label map out of masks that overlap
labels.py    areas, clean-up, RLE and COCO of a label map
polygons.py  polygons as crops; outlines.py: label maps as GeoJSON
pairs.py     which true and predicted objects share pixels, as a sparse table
metrics.py   mean precision, PQ, AJI and COCO's AP from that table
nms.py       which of many overlapping predictions stay
stars.py     star-convex predictions as objects; star_loss.py: what a network learns from a label map (torch)
regions.py   boxes and small masks of a two-stage detector as objects
task.py      `Instances`, the task; tally.py: its scores
tiled.py     images of any size, each object owned by one tile; turned.py: the mean over mirrored windows
"""

from niwaki.instances.crops import Crop, crops
from niwaki.instances.labels import areas, cleaned, object_crops, rles, to_coco
from niwaki.instances.metrics import THRESHOLDS, aji, average_precision, mean_precision, panoptic_quality
from niwaki.instances.nms import matrix_nms, nms
from niwaki.instances.outlines import to_geojson
from niwaki.instances.overlaps import Policy, resolve_overlaps
from niwaki.instances.pairs import Pairs, joined, pairs, pairs_of_masks
from niwaki.instances.stars import Found
from niwaki.instances.task import Instances
from niwaki.instances.tiled import Tiled, finder, tiled
from niwaki.instances.turned import turned

__all__ = [
    "THRESHOLDS",
    "Crop",
    "Found",
    "Instances",
    "Pairs",
    "Policy",
    "Tiled",
    "aji",
    "areas",
    "average_precision",
    "cleaned",
    "crops",
    "finder",
    "joined",
    "matrix_nms",
    "mean_precision",
    "nms",
    "object_crops",
    "pairs",
    "pairs_of_masks",
    "panoptic_quality",
    "resolve_overlaps",
    "rles",
    "tiled",
    "to_coco",
    "to_geojson",
    "turned",
]
