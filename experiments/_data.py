"""The images of every experiment: scikit-learn's digits, or a folder of IDX files (MNIST and its relatives).

A file that is not what its name says is refused, with what is wrong and where: magic number, counts, sizes, labels.
"""

import contextlib
import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import _command

BYTES = 8  # of the magic number: the code of the dtype, before the number of dimensions
DTYPES = {8: "unsigned bytes", 9: "signed bytes", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
SPLIT = 0  # one for every run: a run's own seed draws parameters and order
MEMORY = 1.0  # GB: ten times MNIST's training images and more, and EMNIST's largest set
WORTH_A_WORD = 10**8  # bytes
_CHUNK = 2**20
_PACKED = b"\x1f\x8b"  # how a gzip file begins
_NAME = re.compile(r"(?P<set>.*?)-?(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx\d-[a-z]+(\.gz)?")


class Data(NamedTuple):
    """Images, uint8 (N, rows, columns, 1), labels, int32 (N,), and what a network is given for each gray level."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    levels: np.ndarray  # float32 (256,): standardized by the mean and the deviation of the training images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(rows, columns, 1)."""
        _, rows, columns, channels = self.train_images.shape
        return rows, columns, channels

    def standardized(self, images: Any) -> Any:
        """A batch of images as a network takes them, float32, of NumPy or JAX as these are. Whole sets stay uint8."""
        return self.levels[images]

    def fingerprint(self) -> str:
        """The same for the same images and labels, wherever they were read from; another for others."""
        crc = 0
        for array in self:
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return f"{crc:08x}"


def load(
    source: str | Path | None = None, *, classes: int = 10, validation: bool = False, memory: float = MEMORY
) -> Data:
    """The images of an experiment.

    Args:
      source: folder of the four IDX files (training and test, images and labels), plain or .gz, of any length; where a
        folder holds several sets, as EMNIST's does, `folder/set`, such as `gzip/emnist-letters`. None: the digits.
      classes: labels must lie in [0, classes).
      validation: the test images stay unseen, and a fifth of the training images, every class in its share, takes
        their place: for choosing a recipe.
      memory: the most that the images of one file may take, in GB (10⁹ bytes).

    Raises:
      Refused: no such files, a file that is not what its name says, or fewer classes than the digits have.
    """
    _command.say("reading the images …")
    if source is None and classes < 10:
        raise _command.Refused(f"classes must be at least 10 for the digits, whose labels are 0 to 9, got {classes}")
    train, train_labels, test, test_labels = _digits() if source is None else _idx_folder(Path(source), classes, memory)
    if validation:
        few = np.bincount(train_labels)[np.unique(train_labels)]
        if few.min() < 2 or len(train_labels) < 5 * len(few):
            raise _command.Refused(
                f"{source}: validation takes a fifth of the training images, every class in its share; there are "
                f"{len(train_labels)} images of {len(few)} classes, {few.min()} of the smallest. Leave --validation out"
            )
        train, train_labels, test, test_labels = _fifth_held_out(train, train_labels)
    levels = np.arange(256.0)
    parts = np.array_split(train, len(train) // 1000 + 1)
    weights = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / train.size
    mean = weights @ levels
    deviation = np.sqrt(weights @ (levels - mean) ** 2)
    if deviation == 0:
        raise _command.Refused(f"{source}: every pixel of the training images has the same value")
    levels = ((levels - mean) / deviation).astype(np.float32)
    return Data(train[..., None], train_labels, test[..., None], test_labels, levels)


def epoch_order(key: jax.Array, epoch: int | jax.Array, count: int) -> jax.Array:
    """The order of `count` images in one epoch: drawn anew for each, the same again for the same key and epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def shifted(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Images (N, rows, columns, C), each moved by its own draw of up to `most` pixels; what comes in is background."""
    around = ((0, 0), (most, most), (most, most), (0, 0))
    wide = jnp.pad(images, around, constant_values=images.min())
    down, right = jax.random.randint(key, (2, len(images)), 0, 2 * most + 1)
    return jax.vmap(lambda image, i, j: lax.dynamic_slice(image, (i, j, 0), images.shape[1:]))(wide, down, right)


def _fifth_held_out(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    from sklearn.model_selection import train_test_split  # takes a second to import

    rest, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=SPLIT)
    return pixels[rest], labels[rest], pixels[held_out], labels[held_out]


def _digits() -> tuple[np.ndarray, ...]:
    """scikit-learn's 1,797 digits, every pixel enlarged to 4×4: 32×32. A fifth of each class is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(a) for a in load_digits(return_X_y=True))
    pixels = np.kron(pixels.reshape(-1, 8, 8).astype(np.uint8), np.ones((1, 4, 4), np.uint8))
    return _fifth_held_out(pixels, labels.astype(np.int32))


def _idx_folder(source: Path, classes: int, memory: float) -> tuple[np.ndarray, ...]:
    """Training images and labels, test images and labels, of the set that `source` names."""
    files, found = _four_files(source), []
    for part in ("train", "test"):
        there, beside = files[f"{part} images"], files[f"{part} labels"]
        images, labels = read_images(there, memory), read_labels(beside, classes)
        if len(images) != len(labels):
            raise _command.Refused(f"{there}: {len(images)} images, but {len(labels)} labels in {beside.name}")
        found += [images, labels]
    (_, *size), (_, *other) = found[0].shape, found[2].shape
    if size != other:
        sizes = "training images of {}×{}, test images of {}×{}".format(*size, *other)
        raise _command.Refused(f"{source}: {sizes}; they must have the same size")
    return tuple(found)


def _four_files(source: Path) -> dict[str, Path]:
    """The files of one set by what is in them: "train images", "train labels", "test images", "test labels"."""
    sets: dict[str, dict[str, Path]] = {}
    with (
        _command.refusing(f"{source}: cannot be read", source),
        _command.refusing(f"{source}: no such folder", source, f"; {_WHERE}", errors=FileNotFoundError),
    ):
        if source.is_file():
            raise _command.Refused(f"{source}: a file; it must be the folder of the four IDX files ({_WHERE})")
        folder, wanted = (source, "") if source.is_dir() else (source.parent, source.name)
        for path in sorted(folder.iterdir(), reverse=True):  # a plain file comes after its .gz, and is taken
            if found := _NAME.fullmatch(path.name):
                part = "train" if found["part"] == "train" else "test"
                sets.setdefault(found["set"], {})[f"{part} {found['what']}"] = path
    names = ", ".join(map(repr, sorted(sets)))
    if wanted and not any(name.startswith(wanted) for name in sets):
        missing = _command.why(FileNotFoundError(0, "no such folder"), source)
        there = f"; the sets beside it are {names}" if sets else ""
        raise _command.Refused(f"{source}: {missing}{there}; {_WHERE}")
    if not wanted and len(sets) > 1:
        raise _command.Refused(f"{folder} holds several sets, add one to the path: {names}")
    files = sets.get(wanted, {}) if wanted else next(iter(sets.values()), {})
    for missing in sorted({"train images", "train labels", "test images", "test labels"} - files.keys()):
        part, what = missing.replace("test", "t10k").split()
        name = f"{wanted}{'-' * bool(wanted)}{part}-{what}-idx{3 if what == 'images' else 1}-ubyte"
        raise _command.Refused(f"{source}: no file of {missing}, such as {name} (or {name}.gz); {_WHERE}")
    return files


_WHERE = "experiments/data.md says where to get them"


def read_images(path: Path, memory: float = MEMORY) -> np.ndarray:
    """An IDX file of images, of at most `memory` GB: uint8, shape (N, rows, columns)."""
    return _read(path, ("images", "rows", "columns"), memory)


def read_labels(path: Path, classes: int = 10) -> np.ndarray:
    """An IDX file of labels: int32, shape (N,), each in [0, classes)."""
    labels = _read(path, ("labels",), MEMORY).astype(np.int32)
    if labels.max() >= classes:
        first = int(np.argmax(labels >= classes))
        raise _command.Refused(
            f"{path}: label {first} is {labels[first]}, but {classes} classes are numbered 0 to {classes - 1}; "
            f"experiments.lenet.run takes all labels there with --classes {labels.max() + 1}"
        )
    return labels


def _read(path: Path, dimensions: tuple[str, ...], memory: float) -> np.ndarray:
    """Big-endian: the magic number, the sizes, then one byte for each element, and nothing after."""
    with _opened(path) as file:
        rank = len(dimensions)
        length = 4 * (1 + rank)
        header = file.read(length)
        if len(header) >= 4 and header[:4] != bytes([0, 0, BYTES, rank]):
            raise _command.Refused(f"{path}: {_not_this(path, header + file.read(32), rank)}")
        if len(header) < length:
            raise _command.Refused(f"{path}: {len(header)} bytes, shorter than the header of {length}")
        shape = struct.unpack(f">{rank}I", header[4:])
        sizes = [f"{n} {name}" for name, n in zip(dimensions, shape, strict=True)]
        if 0 in shape:
            raise _command.Refused(f"{path}: the header says {sizes[shape.index(0)]}, must be at least 1")
        size = math.prod(shape)
        says = f"the header says {' × '.join(sizes)}, {size} bytes"
        if path.suffix != ".gz" and (there := path.stat().st_size - length) < size:
            raise _command.Refused(f"{path}: {says}; there are only {there}")
        if size > memory * 1e9:
            raise _command.Refused(
                f"{path}: {says} of memory, and {memory:g} GB are allowed; --memory {-(-size // 10**9)} allows it"
            )
        if size > WORTH_A_WORD:
            _command.say(f"reading {path}, {size / 1e6:,.0f} MB in memory …")
        content = np.empty(size, np.uint8)  # takes memory as it fills
        filled = 0
        while filled < size and (read := file.readinto(content[filled : filled + _CHUNK])):
            filled += read
        if filled < size or file.read(1):
            raise _command.Refused(f"{path}: {says}; there are {'more' if filled == size else f'only {filled}'}")
    return content.reshape(shape)


def _not_this(path: Path, header: bytes, rank: int) -> str:
    """What a file is that does not begin as one of unsigned bytes in so many dimensions."""
    if header.startswith(_PACKED):
        twice = path.suffix == ".gz"
        return "packed twice by gzip; unpack it" if twice else "packed by gzip, so its name must end in .gz"
    number, *words = (int(word) for word in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
    kinds = {(BYTES, 3): "images, ", (BYTES, 1): "labels, "}
    code, count = number >> 8, number & 255
    says = f"magic number {number}"
    if code in DTYPES and 0 < count < 9:
        sizes = " × ".join(map(str, words[:count]))
        says += f" ({kinds.get((code, count), '')}{DTYPES[code]}, {count} dimensions: {sizes})"
    return f"{says}, must be {BYTES << 8 | rank} ({kinds[BYTES, rank]}{DTYPES[BYTES]}, {rank} dimensions)"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, unpacked where its name ends in .gz; all that goes wrong while reading is refused."""
    damage = (EOFError, gzip.BadGzipFile, zlib.error)
    with (
        _command.refusing(f"{path}: cannot be read", path),
        _command.refusing(f"{path}: there is not enough memory for it", path, errors=MemoryError),
        _command.refusing(f"{path}: damaged or truncated gzip file", path, errors=damage),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        yield file
