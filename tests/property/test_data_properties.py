"""Properties of decoding, splitting and augmenting that hold for every input."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from niwaki import images
from niwaki.data import Samples, augment
from niwaki.data.splits import counts, divide
from niwaki.spec import Spec

seeds = st.integers(-(2**70), 2**70)
epochs = st.integers(0, 10_000)
shares = st.floats(0, 0.49)
sizes = st.integers(1, 12)


@st.composite
def pictures(draw: st.DrawFn, channels: tuple[int, ...] = (1, 2, 3, 4)) -> np.ndarray:
    shape = (draw(sizes), draw(sizes), draw(st.sampled_from(channels)))
    return draw(hnp.arrays(np.uint8, shape))


@given(pictures())
def test_lossless_files_come_back_by_the_rules(pixels: np.ndarray) -> None:
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    file = io.BytesIO()
    Image.fromarray(flat).save(file, "PNG")
    want = pixels.astype(int)
    if want.shape[2] in (2, 4):
        alpha = want[..., -1:]
        exact = (want[..., :-1] * alpha + 255 * (255 - alpha)) / 255
        want = np.rint(exact).astype(int)  # no ties: 255 is odd
    colour = images.decode(file.getvalue(), channels=3)
    assert np.array_equal(colour, np.broadcast_to(want, colour.shape))
    grey = images.decode(file.getvalue(), channels=1)
    if want.shape[2] == 1:
        assert np.array_equal(grey, want)
    else:
        luma = (want @ np.array([19595, 38470, 7471]) + 32768) // 65536
        assert np.array_equal(grey[..., 0], luma)


@given(st.binary(max_size=300))
def test_bytes_decode_or_are_refused(content: bytes) -> None:
    try:
        out = images.decode(content, channels=1)
    except images.DataError as error:
        assert error.code.startswith("image-")
    else:
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 1


@given(st.text())
def test_printable_is_printable_and_keeps_what_already_is(text: str) -> None:
    clean = images.printable(text)
    assert clean.isprintable()
    clean.encode()
    if text.isprintable():
        assert clean == text


@given(st.integers(1, 500), shares, shares)
def test_counts_leave_something_for_train(size: int, val: float, test: float) -> None:
    in_val, in_test = counts(size, val=val, test=test)
    assert in_val >= 0 and in_test >= 0 and in_val + in_test < size
    assert abs(in_val - size * val) <= 1 and abs(in_test - size * test) <= 1
    if size >= 3:
        assert (in_val > 0 or val == 0) and (in_test > 0 or test == 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1), seeds, st.data())
def test_splits_do_not_depend_on_order_and_keep_copies_together(
    items: list[tuple[str, int]], seed: int, data: st.DataObject
) -> None:
    def split(rows: list[tuple[str, int]]) -> list[str]:
        labels, digests = [label for label, _ in rows], [str(digest) for _, digest in rows]
        return divide(labels, digests, seed=seed, val=0.2, test=0.3)

    made = split(items)
    shuffled = data.draw(st.permutations(items))
    whole, again = zip(items, made, strict=True), zip(shuffled, split(shuffled), strict=True)
    assert Counter(whole) == Counter(again)
    where: dict[tuple[str, int], set[str]] = {}
    for item, name in zip(items, made, strict=True):
        where.setdefault(item, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    for label in {label for label, _ in items}:
        assert "train" in {name for (k, _), name in zip(items, made, strict=True) if k == label}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 90), st.integers(0, 99))
def test_take_is_a_stratified_subset(labels: list[int], count: int, seed: int) -> None:
    whole = Samples(
        sources=[bytes([i]) for i in range(len(labels))],
        names=tuple(map(str, range(len(labels)))),
        labels=np.array(labels, dtype=np.int64),
    )
    part = whole.take(count, seed=seed)
    assert len(part) == min(count, len(labels)) == len(set(part.names))
    assert [labels[int(name)] for name in part.names] == part.labels.tolist()
    have, were = Counter(part.labels.tolist()), Counter(labels)
    if count >= len(were):
        assert set(have) == set(were)
        ideal = {k: n * len(part) / len(labels) for k, n in were.items()}
        assert all(have[k] < ideal[k] + 1 or have[k] == 1 for k in were)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=8),
    seeds,
    epochs,
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(0, 7),
)
def test_an_augmented_image_depends_on_its_own_index_only(
    index: list[int], seed: int, epoch: int, flip: bool, channels: int, alone: int
) -> None:
    shape = (len(index), 9, 12, channels)
    batch = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    one = alone % len(index)
    for method in (augment.weak, augment.strong):
        whole = method(batch, np.array(index), seed=seed, epoch=epoch, flip=flip)
        part = method(batch[one : one + 1], np.array(index[one : one + 1]), seed=seed, epoch=epoch, flip=flip)
        assert np.array_equal(whole[one], part[0])


@given(st.lists(st.integers(-(2**62), 2**62), max_size=20), seeds, epochs, st.integers(1, 9))
def test_uniforms_lie_in_range_and_more_columns_change_none(
    index: list[int], seed: int, epoch: int, count: int
) -> None:
    draws = augment.uniforms(np.array(index, dtype=np.int64), seed=seed, epoch=epoch, count=count)
    assert draws.shape == (len(index), count)
    assert (draws >= 0).all() and (draws < 1).all()
    more = augment.uniforms(np.array(index, dtype=np.int64), seed=seed, epoch=epoch, count=count + 3)
    assert np.array_equal(more[:, :count], draws)


@given(st.integers(0, 200), seeds, epochs)
def test_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = augment.order(count, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), max_size=30))
def test_batches_are_the_same_whatever_was_asked_before(first: list[int], then: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    labels = np.zeros(10, dtype=np.int64)
    samples = Samples(sources=pixels, names=tuple("abcdefghij"), labels=labels)
    spec = Spec(size_hw=(4, 7))
    samples.batch(first, spec)
    want = [spec.pack(pixels[i]) for i in then]
    got = samples.batch(then, spec)
    assert got.shape == (len(then), 4, 7, 3)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
