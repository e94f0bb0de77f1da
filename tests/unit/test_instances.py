"""niwaki.instances: overlaps as the naive loop has them; the rest against references."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki import instances as own
from niwaki.errors import DataError
from niwaki.instances.crops import packed, unpacked
from niwaki.instances.pairs import meeting

SIZE = (13, 17)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random overlapping masks [N, H, W], empty ones among them, and scores with ties."""
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(0, 9))
    random = np.random.default_rng(seed)
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        y, x = random.integers(0, SIZE[0]), random.integers(0, SIZE[1])
        h, w = random.integers(0, 9, 2)
        mask[y : y + h, x : x + w] = random.random(mask[y : y + h, x : x + w].shape) < 0.8
    return masks, random.integers(0, 4, count) / 4


def naive(masks: np.ndarray[Any, Any], order: list[int]) -> np.ndarray[Any, Any]:
    """The common loop: the first in order that claims a pixel has it."""
    labels, used = np.zeros(SIZE, np.int32), np.zeros(SIZE, bool)
    for k in order:
        labels[masks[k] & ~used] = k + 1
        used |= masks[k]
    return labels


def as_crops(masks: np.ndarray[Any, Any]) -> list[Any]:
    """Crops with a margin, so that they are no bounding boxes."""
    return [(-1, -2, np.pad(mask, ((1, 3), (2, 0)))) for mask in masks]


def as_rles(masks: np.ndarray[Any, Any], *, compressed: bool) -> list[Any]:
    out = []
    for mask in masks:
        flat = np.concatenate(([False], mask.ravel(order="F")))
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        lengths = np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
        out.append({"size": list(SIZE), "counts": packed(lengths) if compressed else lengths})
    return out


@given(scenes())
@settings(max_examples=60, deadline=None)
def test_score_policy_is_the_naive_loop_from_every_form(scene: Any) -> None:
    masks, scores = scene
    wanted = naive(masks, sorted(range(len(masks)), key=lambda k: (-scores[k], k)))
    assert np.array_equal(own.resolve_overlaps(masks, scores), wanted)
    assert np.array_equal(own.resolve_overlaps(as_crops(masks), scores, shape=SIZE), wanted)
    for compressed in (False, True):
        got = own.resolve_overlaps(as_rles(masks, compressed=compressed), scores, shape=SIZE)
        assert np.array_equal(got, wanted)
    assert wanted.dtype == own.resolve_overlaps(masks, scores).dtype == np.int32


@given(scenes())
@settings(max_examples=40, deadline=None)
def test_other_policies_are_their_definitions(scene: Any) -> None:
    masks, scores = scene
    areas = masks.sum((1, 2))
    smaller = naive(masks, sorted(range(len(masks)), key=lambda k: (areas[k], -scores[k], k)))
    assert np.array_equal(own.resolve_overlaps(masks, scores, policy="smaller"), smaller)

    random = np.random.default_rng(int(areas.sum()))
    probable = np.where(masks, random.integers(1, 8, masks.shape) / 8, 0).astype(np.float32)
    got = own.resolve_overlaps(probable, scores, policy="probability")
    near = own.resolve_overlaps(masks, scores, policy="nearest")
    centres = [np.argwhere(m).mean(0) if m.any() else np.zeros(2) for m in masks]
    for y, x in itertools.product(*map(range, SIZE)):
        claim = [k for k in range(len(masks)) if masks[k, y, x]]
        best = min(claim, key=lambda k: (-probable[k, y, x], -scores[k], k), default=-1)
        assert got[y, x] == best + 1
        if not claim:
            assert near[y, x] == 0
        else:
            gaps = {k: float(((centres[k] - (y, x)) ** 2).sum()) for k in claim}
            assert gaps[int(near[y, x]) - 1] == pytest.approx(min(gaps.values()), rel=1e-5, abs=1e-5)


def test_an_unexpected_painter_would_be_seen() -> None:
    """The comparison above is not empty: the order of scores changes the result."""
    masks = np.ones((2, *SIZE), bool)
    assert (own.resolve_overlaps(masks, [0.1, 0.9]) == 2).all()
    assert (own.resolve_overlaps(masks, [0.9, 0.1]) == 1).all()
    assert (own.resolve_overlaps(masks, [0.5, 0.5]) == 1).all()


@pytest.mark.parametrize(
    ("masks", "scores", "more", "code"),
    [
        (np.zeros((2, 3)), [1, 1], {}, "masks-form"),
        (np.zeros((2, 3, 4), np.uint8), [1, 1], {}, "masks-form"),
        (np.zeros((2, 3, 4), bool), [1], {}, "masks-scores"),
        (np.zeros((1, 3, 4), bool), [float("nan")], {}, "masks-scores"),
        (np.zeros((1, 3, 4), bool), [1], {"shape": (4, 3)}, "masks-shape"),
        (np.zeros((1, 3, 4), bool), [1], {"policy": "best"}, "masks-policy"),
        ([(0, 0, np.ones((2, 2), bool))], [1], {}, "masks-shape"),
        ([(0, 0)], [1], {"shape": (3, 3)}, "masks-form"),
        ([(0, 0, np.ones(3, bool))], [1], {"shape": (3, 3)}, "masks-form"),
        ([{"size": [3, 3], "counts": [1, 2]}], [1], {}, "masks-form"),
        ([{"size": [3], "counts": [9]}], [1], {}, "masks-form"),
        ([{"size": [3, 3], "counts": "\x7f"}], [1], {}, "masks-form"),
        ([{"size": [3, 3], "counts": [9]}, {"size": [2, 2], "counts": [4]}], [1, 1], {}, "masks-shape"),
    ],
)
def test_bad_masks_are_refused_by_code(masks: Any, scores: Any, more: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        own.resolve_overlaps(masks, scores, **more)
    assert caught.value.code == code


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_packed_counts_read_back(lengths: list[int]) -> None:
    assert unpacked(packed(lengths)).tolist() == lengths


@given(scenes())
@settings(max_examples=40, deadline=None)
def test_rles_of_a_label_map_give_its_masks_back(scene: Any) -> None:
    masks, scores = scene
    labels = own.resolve_overlaps(masks, scores).astype(np.int64) * 7  # numbers with gaps
    for compressed in (False, True):
        for number, rle in own.rles(labels, compressed=compressed).items():
            back = own.resolve_overlaps([rle], [1.0])
            assert np.array_equal(back == 1, labels == number)
    assert own.areas(labels) == {n: int((labels == n).sum()) for n in np.unique(labels) if n}
    numbers, cut = own.object_crops(labels)
    for number, (y, x, mask) in zip(numbers, cut, strict=True):
        whole = np.zeros(SIZE, bool)
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        assert np.array_equal(whole, labels == number)
    assert [entry["area"] for entry in own.to_coco(labels, image=3)] == list(own.areas(labels).values())


def test_rles_agree_with_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed (niwaki[dev] has it)")
    random = np.random.default_rng(0)
    masks = random.random((20, *SIZE)) < random.random((20, 1, 1))
    for mask in masks:
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = own.rles(mask.astype(np.int32))
        if mask.any():
            assert ours[1]["counts"] == theirs["counts"].decode()
        assert np.array_equal(own.resolve_overlaps([theirs], [1.0]) == 1, mask)


def test_cleaned_keeps_the_largest_piece_and_drops_the_small() -> None:
    labels = np.zeros((6, 12), np.int32)
    labels[0, 0] = labels[2:5, 2:5] = 5  # two pieces
    labels[5, 11] = 9
    labels[0, 1] = 7  # splits nothing
    out = own.cleaned(labels, min_area=2, largest=True)
    assert own.areas(out) == {5: 9}
    assert labels[0, 0] == 5  # the input is untouched
    diagonal = np.eye(3, dtype=np.int32)
    assert own.areas(own.cleaned(diagonal, largest=True)) == {1: 3}


def brute_pairs(truth: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[tuple[int, int], float]:
    out = {}
    for t, p in itertools.product(np.unique(truth[truth > 0]), np.unique(predicted[predicted > 0])):
        a, b = truth == t, predicted == p
        if (a & b).any():
            out[int(t), int(p)] = (a & b).sum() / (a | b).sum()
    return out


@given(scenes(), scenes())
@settings(max_examples=40, deadline=None)
def test_pairs_and_their_metrics_equal_brute_force(one: Any, other: Any) -> None:
    truth = own.resolve_overlaps(*one).astype(np.int64) ** 2  # numbers with gaps
    predicted = own.resolve_overlaps(*other)
    table = own.pairs(truth, predicted)
    wanted = brute_pairs(truth, predicted)
    found = {
        (int(table.truth[t]), int(table.predicted[p])): iou
        for (t, p), iou in zip(table.pair.tolist(), table.iou, strict=True)
    }
    assert found == pytest.approx(wanted)
    tiles = [own.pairs(truth[:, a:b], predicted[:, a:b]) for a, b in ((0, 5), (5, 11), (11, SIZE[1]))]
    joined = own.joined(tiles)
    assert np.array_equal(joined.pair, table.pair) and np.array_equal(joined.shared, table.shared)
    assert np.array_equal(joined.truth_area, table.truth_area)

    t_count, p_count = len(np.unique(truth[truth > 0])), len(np.unique(predicted[predicted > 0]))
    hits = [v for v in wanted.values() if v > 0.5]
    if t_count + p_count:
        pq = own.panoptic_quality(table)
        assert pq["pq"] == pytest.approx(2 * sum(hits) / (t_count + p_count))
        precision = [
            sum(v > t for v in wanted.values()) / (t_count + p_count - sum(v > t for v in wanted.values()))
            for t in own.THRESHOLDS
        ]
        assert own.mean_precision(table) == pytest.approx(np.mean(precision))
    assert own.aji(table) == pytest.approx(brute_aji(truth, predicted, wanted))


def boxes_drawn(seed: int, count: int, side: int) -> Any:
    """Boxes of all sizes from one pixel on, a few as large as the image, with gaps and off the corner."""
    draw = np.random.default_rng(seed)
    corner = draw.integers(7, 7 + side, (count, 2))
    size = np.minimum(
        2 ** draw.integers(0, 1 + int(np.log2(side)), (count, 1)), draw.integers(1, side, (count, 2))
    )
    return np.concatenate([corner, corner + size], 1)


def meets_naively(one: Any, other: Any) -> list[tuple[int, int]]:
    return [
        (t, p)
        for t, (y, x, b, r) in enumerate(one.tolist())
        for p in np.flatnonzero(
            (other[:, 0] < b) & (other[:, 2] > y) & (other[:, 1] < r) & (other[:, 3] > x)
        ).tolist()
    ]


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (1, 1), (40, 300), (5000, 30)])
@pytest.mark.parametrize("side", [2, 50, 3000])
def test_boxes_that_meet_are_all_found_in_order(counts: tuple[int, int], side: int) -> None:
    one, other = (boxes_drawn(k, count, side) for k, count in enumerate(counts))
    found = [pair for t, p in meeting(one, other) for pair in zip(t.tolist(), p.tolist(), strict=True)]
    assert found == meets_naively(one, other)


@pytest.mark.parametrize(("count", "seconds"), [(20_000, 2), (80_000, 8)])
def test_many_objects_meet_in_a_moment(count: int, seconds: float) -> None:
    """All boxes against all take some 3 and 50 seconds."""
    corner = np.random.default_rng(0).integers(0, int(20 * count**0.5), (count, 2))
    boxes = np.concatenate([corner, corner + 12], 1)
    began = time.perf_counter()
    pairs = sum(len(t) for t, _ in meeting(boxes, boxes))
    assert time.perf_counter() - began < seconds
    assert count < pairs < 3 * count


def brute_aji(truth: Any, predicted: Any, pairs: dict[tuple[int, int], float]) -> float:
    shared = union = 0
    taken = set()
    for t in np.unique(truth[truth > 0]):
        near = {p: v for (q, p), v in pairs.items() if q == t}
        a = truth == t
        if not near:
            union += int(a.sum())
            continue
        p = min(near, key=lambda p: (-near[p], p))
        taken.add(p)
        shared += int((a & (predicted == p)).sum())
        union += int((a | (predicted == p)).sum())
    union += sum(int((predicted == p).sum()) for p in np.unique(predicted[predicted > 0]) if p not in taken)
    empty = not truth.any() and not predicted.any()
    return 1.0 if empty else shared / union


def test_known_metrics() -> None:
    """Labels {0, 1, 9}, empty predictions, touching objects."""
    truth = np.zeros((4, 8), np.int32)
    truth[:2, :4], truth[2:, :4] = 1, 9  # they touch
    perfect = own.pairs(truth, truth)
    assert own.mean_precision(perfect) == own.aji(perfect) == own.aji(perfect, variant="plus") == 1
    assert own.panoptic_quality(perfect) == {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    nothing = own.pairs(truth, np.zeros_like(truth))
    assert own.mean_precision(nothing) == own.aji(nothing) == own.panoptic_quality(nothing)["pq"] == 0
    neither = own.pairs(np.zeros_like(truth), np.zeros_like(truth))
    assert own.mean_precision(neither) == own.aji(neither) == own.panoptic_quality(neither)["pq"] == 1
    both = own.pairs(truth, (truth > 0).astype(np.int32))  # one blob over two: IoU of 0.5 with each, no hit
    assert own.mean_precision(both) == 0
    assert own.aji(both) == pytest.approx(16 / 32)  # the blob is taken twice
    assert own.aji(both, variant="plus") == pytest.approx(8 / 24)


def test_true_positives_among_overlapping_masks_are_a_matching() -> None:
    """Two predictions on one object count once; greedy counting would count both."""
    truth, predicted = np.ones((1, 4, 4), bool), np.ones((2, 4, 4), bool)
    table = own.pairs_of_masks(truth, predicted)
    assert len(table.pair) == 2
    assert own.mean_precision(table) == pytest.approx(1 / 2)


def brute_nms(masks: Any, scores: Any, threshold: float) -> list[int]:
    kept: list[int] = []
    for k in sorted(range(len(masks)), key=lambda k: (-scores[k], k)):
        ious = [(masks[k] & masks[j]).sum() / max(1, (masks[k] | masks[j]).sum()) for j in kept]
        if all(iou <= threshold for iou in ious):
            kept.append(k)
    return kept


@given(scenes(), st.sampled_from([0.1, 0.3, 0.5]))
@settings(max_examples=40, deadline=None)
def test_nms_equals_brute_force(scene: Any, threshold: float) -> None:
    masks, scores = scene
    assert own.nms(masks, scores, threshold=threshold).tolist() == brute_nms(masks, scores, threshold)
    decayed = own.matrix_nms(masks, scores)
    assert (decayed <= scores + 1e-12).all()


def test_ios_removes_parts_and_matrix_nms_lowers_duplicates() -> None:
    masks = np.zeros((3, *SIZE), bool)
    masks[0, :8, :8] = masks[1, 2:4, 2:4] = masks[2, :8, :8] = True
    assert own.nms(masks, [0.9, 0.8, 0.7]).tolist() == [0, 1]
    assert own.nms(masks, [0.9, 0.8, 0.7], by="ios").tolist() == [0]
    decayed = own.matrix_nms(masks, [0.9, 0.8, 0.7])
    assert decayed[0] == 0.9 and decayed[2] == pytest.approx(0.7 * np.exp(-2.0)) and decayed[1] > 0.79


def coco_images(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    out = []
    for _ in range(4):
        truth = random.random((5, 24, 24)) < 0.0
        for mask in truth:
            y, x, h, w = *random.integers(0, 16, 2), *random.integers(3, 9, 2)
            mask[y : y + h, x : x + w] = True
        moved = [np.roll(m, tuple(random.integers(-1, 2, 2)), (0, 1)) for m in truth[random.random(5) < 0.9]]
        extra = [np.roll(truth[0], (9, 9), (0, 1))]
        predicted = np.stack([*moved, *moved[:1], *extra])
        out.append((truth, predicted, random.integers(1, 6, len(predicted)) / 6))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_pycocotools(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed (niwaki[dev] has it)")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    images = coco_images(seed)
    truth, results = coco.COCO(), []
    truth.dataset = {"images": [], "categories": [{"id": 1, "name": "x"}], "annotations": [], "info": {}}
    for i, (masks, predicted, scores) in enumerate(images, start=1):
        truth.dataset["images"].append({"id": i, "height": 24, "width": 24})
        for mask in masks:
            truth.dataset["annotations"].append(
                {**entry(mask, i), "id": len(truth.dataset["annotations"]) + 1, "iscrowd": 0}
            )
        results += [{**entry(m, i), "score": float(s)} for m, s in zip(predicted, scores, strict=True)]
    truth.createIndex()
    run = evaluation.COCOeval(truth, truth.loadRes(results), "segm")
    run.evaluate(), run.accumulate(), run.summarize()
    ours = own.average_precision([(own.pairs_of_masks(t, p), s) for t, p, s in images])
    assert ours["ap"] == pytest.approx(run.stats[0], abs=1e-12)
    assert ours["ap50"] == pytest.approx(run.stats[1], abs=1e-12)
    assert 0.05 < ours["ap"] < 0.95  # the comparison is not about nothing


def entry(mask: Any, image: int) -> dict[str, Any]:
    return own.to_coco(mask.astype(np.int32), image=image)[0]


def test_average_precision_has_no_cap_unless_asked() -> None:
    """120 true objects, all found: COCO's cap of 100 would hide a sixth of them."""
    masks = np.zeros((120, 12, 10), bool)
    masks.reshape(120, 120)[np.arange(120), np.arange(120)] = True
    table, scores = own.pairs_of_masks(masks, masks), np.linspace(1, 0.5, 120)
    assert own.average_precision([(table, scores)])["ap"] == 1
    assert own.average_precision([(table, scores)], max_dets=100)["ap"] < 0.9


# --- polygons in, GeoJSON out


def test_polygons_are_masks_like_any_other() -> None:
    square, hole = [2, 3, 12, 3, 12, 9, 2, 9], [20, 5, 30, 5, 25, 14]
    objects = [
        [square],
        [hole, [40, 1, 44, 1, 44, 5, 40, 5]],
        [[8, 1, 70, 1, 70, 40, 8, 40]],
        [[80, 80, 90, 80, 85, 90]],
    ]
    shape = (20, 50)
    given, found = own.crops(objects, shape=shape)
    assert found == shape
    dense = np.zeros((4, *shape), bool)
    for canvas, (y, x, mask) in zip(dense, given, strict=True):
        canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert dense[0].sum() == 60 and dense[1, 1:5, 40:44].all() and dense[1].sum() > 16 and not dense[3].any()
    for policy in ("score", "smaller", "nearest", "probability"):
        labels = own.resolve_overlaps(objects, [0.5, 0.9, 0.7, 1.0], shape=shape, policy=policy)
        np.testing.assert_array_equal(labels, own.resolve_overlaps(dense, [0.5, 0.9, 0.7, 1.0], policy=policy))
    np.testing.assert_array_equal(
        own.nms(objects, [0.5, 0.9, 0.7, 1.0], shape=shape), own.nms(dense, [0.5, 0.9, 0.7, 1.0])
    )
    for wrong in ([[1, 2, 3]], [[1, 2, 3, 4, 5, float("nan")]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6]):
        with pytest.raises(DataError) as caught:
            own.crops([wrong], shape=shape)
        assert caught.value.code == "masks-form"


@pytest.mark.parametrize("seed", range(4))
def test_geojson_gives_the_label_map_back(seed: int) -> None:
    labels = (
        np.random.default_rng(seed).choice([0, 0, 3, 9], (9, 11)).astype(np.int32)
    )  # pieces, holes, corners
    labels[2:7, 2:7], labels[4, 4] = 5, 0
    found = own.to_geojson(labels, scores=[0.1, 0.2, 0.3])
    assert [f["properties"] for f in found["features"]] == [
        {"id": 3, "score": 0.1}, {"id": 5, "score": 0.2}, {"id": 9, "score": 0.3}
    ]  # fmt: skip
    again = np.zeros_like(labels)
    for feature in found["features"]:
        geometry = feature["geometry"]
        several = geometry["type"] == "MultiPolygon"
        for rings in geometry["coordinates"] if several else [geometry["coordinates"]]:
            assert all(ring[0] == ring[-1] for ring in rings)
            areas = [sum(a * d - c * b for (a, b), (c, d) in itertools.pairwise(ring)) for ring in rings]
            assert areas[0] > 0 and max(areas[1:], default=-1) < 0  # turned as RFC 7946 says
            covers = [own.crops([[np.ravel(ring).tolist()]], shape=labels.shape)[0][0] for ring in rings]
            whole = np.zeros(labels.shape, int)
            for k, (y, x, mask) in enumerate(covers):
                whole[y : y + mask.shape[0], x : x + mask.shape[1]] += np.where(mask, 1 if k == 0 else -1, 0)
            again[whole == 1] = feature["properties"]["id"]
    np.testing.assert_array_equal(again, labels)
    with pytest.raises(DataError, match="scores"):
        own.to_geojson(labels, scores=[0.5])


def test_geojson_is_put_where_a_scene_lies() -> None:
    labels = np.zeros((4, 4), np.int64)
    labels[1:3, 1:3] = 1
    (feature,) = own.to_geojson(labels, project=lambda p: p * [0.5, -0.5] + [10, 50])["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert feature["properties"] == {"id": 1}
    np.testing.assert_allclose([ring.min(0), ring.max(0)], [[10.5, 48.5], [11.5, 49.5]])
