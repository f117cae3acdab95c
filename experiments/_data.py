"""The images of every experiment: scikit-learn's digits, or a folder of IDX files (MNIST and its relatives).

A file that is not what its name says is refused, with what is wrong and where: magic number, counts, sizes, labels.
"""

import contextlib
import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

IMAGES, LABELS = 2051, 2049  # the magic numbers: unsigned bytes in three dimensions, and in one
DIGITS_SPLIT = VALIDATION_SPLIT = 0  # one split for every run: a run's own seed draws parameters and order
_NAME = re.compile(r"(?P<set>.*?)-?(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?")


class Data(NamedTuple):
    """Images, float32 (N, rows, columns, 1), standardized by the training images' mean and deviation; labels (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(rows, columns, 1)."""
        _, rows, columns, channels = self.train_images.shape
        return rows, columns, channels

    def fingerprint(self) -> str:
        """The same for the same images and labels, wherever they were read from; another for others."""
        crc = 0
        for array in self:
            crc = zlib.crc32(array.tobytes(), crc)
        return f"{crc:08x}"


def load(source: str | Path | None = None, *, classes: int = 10, validation: bool = False) -> Data:
    """The images of an experiment.

    Args:
      source: folder of the four IDX files (training and test, images and labels), plain or .gz, of any length; where a
        folder holds several sets, as EMNIST's does, `folder/set`, such as `gzip/emnist-letters`. None: the digits.
      classes: labels must lie in [0, classes).
      validation: the test images stay unseen, and a fifth of the training images, every class in its share, takes
        their place: for choosing a recipe.

    Raises:
      ValueError: no such files, a file that is not what its name says, or fewer classes than the digits have.
    """
    if source is None and classes < 10:
        raise ValueError(f"classes must be at least 10 for the digits, whose labels are 0 to 9, got {classes}")
    train, train_labels, test, test_labels = _digits() if source is None else _idx_folder(Path(source), classes)
    if validation:
        train, train_labels, test, test_labels = _fifth_held_out(train, train_labels, VALIDATION_SPLIT)
    mean, deviation = train.mean(dtype=np.float64), train.std(dtype=np.float64)
    if deviation == 0:
        raise ValueError(f"{source}: every pixel of the training images has the same value")
    train, test = (((pixels - mean) / deviation).astype(np.float32)[..., None] for pixels in (train, test))
    return Data(train, train_labels, test, test_labels)


def epoch_order(key: jax.Array, epoch: int | jax.Array, count: int) -> jax.Array:
    """The order of `count` images in one epoch: drawn anew for each, the same again for the same key and epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def shifted(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Images (N, rows, columns, C), each moved by its own draw of up to `most` pixels; what comes in is background."""
    around = ((0, 0), (most, most), (most, most), (0, 0))
    wide = jnp.pad(images, around, constant_values=images.min())
    down, right = jax.random.randint(key, (2, len(images)), 0, 2 * most + 1)
    return jax.vmap(lambda image, i, j: lax.dynamic_slice(image, (i, j, 0), images.shape[1:]))(wide, down, right)


def _fifth_held_out(pixels: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    from sklearn.model_selection import train_test_split  # takes a second to import

    rest, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return pixels[rest], labels[rest], pixels[held_out], labels[held_out]


def _digits() -> tuple[np.ndarray, ...]:
    """scikit-learn's 1,797 digits, every pixel enlarged to 4×4: 32×32. A fifth of each class is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(a) for a in load_digits(return_X_y=True))
    pixels = np.kron(pixels.reshape(-1, 8, 8), np.ones((1, 4, 4)))
    return _fifth_held_out(pixels, labels.astype(np.int32), DIGITS_SPLIT)


def _idx_folder(source: Path, classes: int) -> tuple[np.ndarray, ...]:
    """Training images and labels, test images and labels, of the set that `source` names."""
    files = _four_files(source)
    train, test = (
        (read_images(files[f"{part} images"]), read_labels(files[f"{part} labels"], classes))
        for part in ("train", "test")
    )
    for part, (images, labels) in (("train", train), ("test", test)):
        if len(images) != len(labels):
            there, beside = files[f"{part} images"], files[f"{part} labels"].name
            raise ValueError(f"{there}: {len(images)} images, but {len(labels)} labels in {beside}")
    (_, *size), (_, *other) = train[0].shape, test[0].shape
    if size != other:
        sizes = "training images of {}×{}, test images of {}×{}".format(*size, *other)
        raise ValueError(f"{source}: {sizes}; they must have the same size")
    return *train, *test


def _four_files(source: Path) -> dict[str, Path]:
    """The files of one set by what is in them: "train images", "train labels", "test images", "test labels"."""
    folder, wanted = (source, "") if source.is_dir() else (source.parent, source.name)
    if not folder.is_dir():
        raise ValueError(f"{source}: no such folder")
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # a plain file comes after its .gz, and is taken
        if found := _NAME.fullmatch(path.name):
            part = "train" if found["part"] == "train" else "test"
            sets.setdefault(found["set"], {})[f"{part} {found['what']}"] = path
    if not wanted and len(sets) > 1:
        raise ValueError(f"{folder} holds several sets, add one to the path: {', '.join(map(repr, sorted(sets)))}")
    files = sets.get(wanted, {}) if wanted else next(iter(sets.values()), {})
    for missing in sorted({"train images", "train labels", "test images", "test labels"} - files.keys()):
        part, what = missing.replace("test", "t10k").split()
        name = f"{wanted}{'-' * bool(wanted)}{part}-{what}-idx{3 if what == 'images' else 1}-ubyte"
        raise ValueError(f"{source}: no file of {missing}, such as {name} (or {name}.gz)")
    return files


def read_images(path: Path) -> np.ndarray:
    """An IDX file of images: uint8, shape (N, rows, columns).

    Raises:
      ValueError: what is wrong with the file.
    """
    return _read(path, IMAGES, ("images", "rows", "columns"))


def read_labels(path: Path, classes: int = 10) -> np.ndarray:
    """An IDX file of labels: int32, shape (N,), each in [0, classes).

    Raises:
      ValueError: what is wrong with the file.
    """
    labels = _read(path, LABELS, ("labels",)).astype(np.int32)
    if labels.max() >= classes:
        first = int(np.argmax(labels >= classes))
        raise ValueError(
            f"{path}: label {first} is {labels[first]}, but {classes} classes are numbered 0 to {classes - 1}"
        )
    return labels


def _read(path: Path, magic: int, dimensions: tuple[str, ...]) -> np.ndarray:
    """Big-endian: the magic number, the sizes, then one byte for each element, and nothing after."""
    with _opened(path) as file:
        length = 4 * (1 + len(dimensions))
        header = file.read(length)
        if len(header) >= 4 and (found := struct.unpack(">I", header[:4])[0]) != magic:
            kind = {IMAGES: " (images)", LABELS: " (labels)"}
            raise ValueError(f"{path}: magic number {found}{kind.get(found, '')}, must be {magic}{kind[magic]}")
        if len(header) < length:
            raise ValueError(f"{path}: {len(header)} bytes, shorter than the header of {length}")
        shape = struct.unpack(f">{len(dimensions)}I", header[4:])
        for name, size in zip(dimensions, shape, strict=True):
            if size < 1:
                raise ValueError(f"{path}: the header says {size} {name}, must be at least 1")
        size = int(np.prod(shape, dtype=object))
        content = file.read(size + 1)  # one more than there may be, never all that a bad file unpacks to
    if len(content) != size:
        there = "more" if len(content) > size else f"only {len(content)}"
        sizes = " × ".join(f"{n} {name}" for name, n in zip(dimensions, shape, strict=True))
        raise ValueError(f"{path}: the header says {sizes}, {size} bytes; there are {there}")
    return np.frombuffer(content, np.uint8).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path):
    """The file, unpacked where its name ends in .gz; all that goes wrong while reading becomes a ValueError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error})") from error
    except (OSError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
