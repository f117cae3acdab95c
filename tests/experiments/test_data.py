"""The images of the experiments: what a good folder of IDX files gives, and what is said about a bad one."""

import gzip
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _command, _data

RNG = np.random.default_rng(0)


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """The array in the IDX format, written as the format's page describes it."""
    magic = {3: 0x0803, 1: 0x0801}[array.ndim] if magic is None else magic
    return b"".join(n.to_bytes(4, "big") for n in (magic, *array.shape)) + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    """Training and test images and labels, fewer than the classic 60,000 and 10,000."""
    return {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (20, 5, 4)),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (7, 5, 4)),
        "t10k-labels-idx1-ubyte": np.arange(7)[::-1],
    }


@pytest.fixture
def folder(arrays, tmp_path):
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def check_images(data: _data.Data, arrays) -> None:
    train, train_labels, test, test_labels = arrays.values()
    mean, deviation = train.mean(), train.std()
    for images, pixels in ((data.train_images, train), (data.test_images, test)):
        np.testing.assert_array_equal(images, pixels[..., None])
        wanted = ((pixels - mean) / deviation)[..., None]
        np.testing.assert_allclose(data.standardized(images), wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(data.train_labels, train_labels)
    np.testing.assert_array_equal(data.test_labels, test_labels)
    assert [a.dtype for a in data] == [np.uint8, np.int32, np.uint8, np.int32, np.float32]


@pytest.mark.parametrize("style", ["plain", "gz", "dots", "emnist", "test", "both"])
def test_a_folder_under_every_name_it_comes_with(style, arrays, tmp_path):
    prefix = "emnist-letters-" if style == "emnist" else ""
    for name, array in arrays.items():
        name = name.replace("-idx", ".idx") if style == "dots" else name
        name = name.replace("t10k", "test") if style in ("emnist", "test") else name
        path = tmp_path / (prefix + name)
        if style in ("gz", "emnist", "both"):
            path.with_name(path.name + ".gz").write_bytes(b"bad" if style == "both" else gzip.compress(idx(array)))
        if style not in ("gz", "emnist"):
            path.write_bytes(idx(array))
    (tmp_path / "README.md").write_text("not a set")
    data = _data.load(tmp_path)
    check_images(data, arrays)
    assert data.image_shape == (5, 4, 1)


def test_one_of_several_sets(arrays, tmp_path):
    for name, array in arrays.items():
        (tmp_path / f"emnist-digits-{name}").write_bytes(idx(array))
        (tmp_path / f"emnist-mnist-{name}").write_bytes(idx(array[::-1]))
    check_images(_data.load(tmp_path / "emnist-digits"), arrays)
    check_images(_data.load(tmp_path / "emnist-mnist"), {name: array[::-1] for name, array in arrays.items()})
    with pytest.raises(_command.Refused, match="several sets, add one to the path: 'emnist-digits', 'emnist-mnist'"):
        _data.load(tmp_path)


def test_more_classes(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(20)))
    with pytest.raises(_command.Refused, match="label 10 is 10, but 10 classes are numbered 0 to 9"):
        _data.load(folder)
    assert _data.load(folder, classes=20).train_labels.max() == 19
    with pytest.raises(_command.Refused, match="label 19 is 19, but 19 classes"):
        _data.load(folder, classes=19)
    with pytest.raises(_command.Refused, match=r"classes must be at least 10 for the digits, .* got 9"):
        _data.load(classes=9)


def test_the_fingerprint_is_of_all_images_and_labels():
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32)
    data = _data.Data(images, labels, images, labels, np.zeros(256, np.float32))
    found = {data.fingerprint(), data._replace().fingerprint()}
    assert len(found) == 1
    for name, array in data._asdict().items():
        other = array.copy()
        other.flat[1] = 1
        found.add(data._replace(**{name: other}).fingerprint())
    assert len(found) == 6


BAD_IMAGES = {
    "labels' number": (lambda good: struct.pack(">I", 2049) + good[4:], r"2049 \(labels, .*\), must be 2051 \(images"),
    "floats' magic number": (lambda good: b"\0\0\x0d\x03" + good[4:], r"3331 \(float32, 3 dimensions: 20 × 5 × 4\)"),
    "RGB": (
        lambda good: struct.pack(">5I", 2052, 20, 5, 4, 3) + good[16:] * 3,
        r"2052 \(unsigned bytes, 4 dimensions: 20 × 5 × 4 × 3\), must be 2051 \(images, unsigned bytes, 3 dimensions\)",
    ),
    "packed once more": (lambda good: gzip.compress(good), "packed by gzip, so its name must|packed twice by gzip"),
    "little-endian": (lambda good: struct.pack("<I", 2051) + good[4:], "magic number 50855936, must be 2051"),
    "not IDX at all": (lambda good: b"<!doctype html><html>", "magic number 1008821359, must be 2051"),
    "empty": (lambda good: b"", "0 bytes, shorter than the header of 16"),
    "no sizes": (lambda good: good[:9], "9 bytes, shorter than the header of 16"),
    "no image": (lambda good: struct.pack(">4I", 2051, 0, 5, 4), "0 images, must be at least 1"),
    "no pixel": (lambda good: struct.pack(">4I", 2051, 20, 0, 4), "0 rows, must be at least 1"),
    "truncated": (lambda good: good[:-1], "20 images × 5 rows × 4 columns, 400 bytes; there are only 399"),
    "too long": (lambda good: good + b"\0", "400 bytes; there are more"),
    "absurd sizes": (lambda good: struct.pack(">4I", 2051, *[2**32 - 1] * 3), "only 0|--memory 7922816245892410538"),
    "a hundred million": (
        lambda good: struct.pack(">4I", 2051, 10**8, 28, 28),
        "78400000000 bytes.*(only 0|1 GB are allowed; --memory 79 allows it)",
    ),
    "fewer images": (lambda good: struct.pack(">4I", 2051, 19, 5, 4) + good[16:-20], "19 images, but 20 labels"),
    "another size": (
        lambda good: struct.pack(">4I", 2051, 20, 4, 5) + good[16:],
        "training images of 4×5, test images of 5×4",
    ),
    "one gray level": (lambda good: good[:16] + bytes(400), "every pixel of the training images has the same value"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_IMAGES)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_images(what, packed, folder):
    spoil, message = BAD_IMAGES[what]
    path = folder / "train-images-idx3-ubyte"
    content = spoil(path.read_bytes())
    path.unlink()
    path = path.with_name(path.name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(_command.Refused, match=message) as refused:
        _data.load(folder)
    if "training" not in message:
        assert str(path) in str(refused.value)


def test_bad_labels(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    for content, message in (
        (idx(np.arange(7), 2051), r"ubyte: magic number 2051 \(images, .*\), must be 2049 \(labels, "),
        (idx(np.array([0, 1, 255, 3, 4, 5, 99])), "label 2 is 255"),
        (idx(np.arange(8)), "t10k-images-idx3-ubyte: 7 images, but 8 labels in t10k-labels-idx1-ubyte"),
    ):
        path.write_bytes(content)
        with pytest.raises(_command.Refused, match=message):
            _data.load(folder)


@pytest.mark.parametrize(
    "spoil", [lambda good: good[:40], lambda good: b"not gzip", lambda good: good[:30] + b"x" * 30]
)
def test_damaged_gzip(spoil, arrays, folder):
    path = folder / "train-images-idx3-ubyte"
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(spoil(gzip.compress(idx(arrays[path.name]))))
    with pytest.raises(_command.Refused, match=r"train-images-idx3-ubyte\.gz: damaged or truncated gzip file"):
        _data.load(folder)


def test_missing(folder, tmp_path):
    with pytest.raises(_command.Refused, match="here: no such folder"):
        _data.load(tmp_path / "nowhere" / "here")
    with pytest.raises(
        _command.Refused, match=r"letters: no such folder; the sets beside it are ''; experiments/data.md"
    ):
        _data.load(folder / "letters")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(_command.Refused, match=r"no file of test labels, such as t10k-labels-idx1-ubyte \(or .*\.gz\)"):
        _data.load(folder)
    (folder / "t10k-labels-idx1-ubyte").mkdir()
    with pytest.raises(_command.Refused, match="t10k-labels-idx1-ubyte: cannot be read"):
        _data.load(folder)


def test_not_a_folder(folder, arrays):
    (folder / "mnist.npz").write_bytes(b"PK")
    (folder / "link").symlink_to(folder / "gone")
    for place, message in (
        ("mnist.npz", "mnist.npz: a file; it must be the folder of the four IDX files"),
        ("mnist.npz/set", r"cannot be read \(.*mnist.npz is a file\)"),
        ("link", "link: .*link is a link to .*gone, which does not exist; the sets"),
        ("t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte: a file; it must be"),
    ):
        with pytest.raises(_command.Refused, match=message):
            _data.load(folder / place)


def test_a_folder_that_must_not_be_read(folder, another_user):
    with another_user(folder), pytest.raises(_command.Refused, match=r"cannot be read \(Permission denied\)"):
        _data.load(folder)
    _data.load(folder)


def test_letters_hint_at_their_classes(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(1 + np.arange(20)))
    with pytest.raises(
        _command.Refused, match=r"label 9 is 10, .* 0 to 9; experiments.lenet.run takes .* with --classes 21"
    ):
        _data.load(folder)
    assert _data.load(folder, classes=21).train_labels.max() == 20


@pytest.mark.parametrize(("labels", "message"), [([3], "1 images of 1 classes"), ([0, 0, 1, 1, 1, 2] * 5, "")])
def test_validation_needs_enough_of_each_class(labels, message, folder):
    (folder / "train-images-idx3-ubyte").write_bytes(idx(RNG.integers(0, 256, (len(labels), 5, 4))))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))
    if not message:
        assert np.bincount(_data.load(folder, validation=True).test_labels).tolist() == [2, 3, 1]
        return
    with pytest.raises(_command.Refused, match=f"{message}, 1 of the smallest. Leave --validation out"):
        _data.load(folder, validation=True)


def test_a_small_file_that_honestly_holds_much(folder, capsys, monkeypatch):
    """Refused before memory is taken; allowed, it takes a byte for each pixel and says so before."""
    path = folder / "train-images-idx3-ubyte.gz"
    images = np.zeros((20, 1000, 1000), np.uint8)
    path.write_bytes(gzip.compress(idx(images), 1))
    assert path.stat().st_size < images.size / 100
    tracemalloc.start()
    with pytest.raises(
        _command.Refused, match=r"20000000 bytes of memory, and 0\.01 GB are allowed; --memory 1 allows"
    ):
        _data.read_images(path, memory=0.01)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    monkeypatch.setattr(_data, "WORTH_A_WORD", 10**7)
    found = _data.read_images(path)
    assert tracemalloc.get_traced_memory()[1] < 1.3 * images.size
    tracemalloc.stop()
    np.testing.assert_array_equal(found, images)
    assert capsys.readouterr().err == f"reading {path}, 20 MB in memory …\n"


def test_the_digits():
    data = _data.load()
    assert data.train_images.shape == (1437, 32, 32, 1)
    assert data.test_images.shape == (360, 32, 32, 1)
    assert [a.dtype for a in data] == [np.uint8, np.int32, np.uint8, np.int32, np.float32]
    assert abs(data.standardized(data.train_images).mean()) < 1e-4
    assert abs(data.standardized(data.train_images).std() - 1) < 1e-4
    blocks = data.test_images.reshape(360, 8, 4, 8, 4)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))  # 4×4 enlarged
    assert np.bincount(data.test_labels).min() >= 34  # every class in its share
    assert data.fingerprint() == _data.load().fingerprint()  # the same split every time
    assert data.fingerprint() != _data.load(validation=True).fingerprint()


def test_validation_never_sees_a_test_image():
    def pictures(images):
        """Each picture by the order of its gray levels, which standardizing by other constants keeps."""
        small = images[:, ::4, ::4, 0].reshape(len(images), -1)
        return [tuple(np.unique(np.round(row, 3), return_inverse=True)[1]) for row in small]

    data, validation = _data.load(), _data.load(validation=True)
    test, train = set(pictures(data.test_images)), set(pictures(data.train_images))
    seen = pictures(validation.train_images) + pictures(validation.test_images)
    assert len(seen) == 1437
    assert not test & set(seen)
    assert set(seen) <= train


def test_every_epoch_has_an_order_of_its_own():
    orders = [np.asarray(_data.epoch_order(jax.random.key(seed), e, 50)) for seed in (0, 1) for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 6
    np.testing.assert_array_equal(orders[4], _data.epoch_order(jax.random.key(1), 1, 50))


def test_shifted_images_are_the_images_moved():
    images = np.random.default_rng(0).standard_normal((40, 6, 5, 2)).astype(np.float32)
    moved = _data.shifted(jax.random.key(1), jnp.asarray(images), 2)
    assert moved.dtype == jnp.float32
    offsets = set()
    for image, result in zip(images, np.asarray(moved), strict=True):
        wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=images.min())
        places = [(i, j) for i in range(5) for j in range(5) if (wide[i : i + 6, j : j + 5] == result).all()]
        assert len(places) == 1
        offsets.update(places)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))
    assert len(offsets) > 10  # both ways by draws of their own
    np.testing.assert_array_equal(_data.shifted(jax.random.key(1), jnp.asarray(images), 0), images)
