"""Files damaged at random, also below their checksums and compression."""

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**31 - 1, 2**32 - 1, 2**63, -1)
_WORDS = (
    *("0", "-1", "1e999", "NaN", "null", "true", "[]", "{}", '""', '"x"'),
    *(str(10**15), str(10**400), "[" * 5000, '{"a":' * 5000, "\0", "é", ","),
    *('"../../x"', '"/x"', "0.5", '"keras"', '"float16"', "\n"),
)
_TOKEN = re.compile(r'"[^"]*"|-?[\d.]+|\w+|[^\w\s]')
# The second is in the working directory, whatever that is.
_NAMES = ("../outside", "/proc/self/cwd/outside", "a/../../outside", "a\\..\\b")
_COMPRESSIONS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)


def damage_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Changes, cuts off, inserts, swaps, repeats; once or a few times."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        i, j, k = sorted(rng.integers(0, len(found) + 1, 3))
        match rng.integers(8):
            case 0 | 1 | 2:
                found[i : i + 1] = rng.bytes(1)
            case 3:
                width = int(rng.choice([1, 2, 4, 8]))
                number = int(rng.choice(len(_NUMBERS)))
                number = _NUMBERS[number] % 2 ** (8 * width)
                order = "big" if rng.integers(2) else "little"
                found[i : i + width] = number.to_bytes(width, order)
            case 4:
                del found[i:]
            case 5:
                found[i:i] = rng.bytes(rng.integers(1, 20))
            case 6:
                found[i:k] = found[j:k] + found[i:j]
            case 7:
                found[i:i] = found[j:k]
    return bytes(found)


def damage_text(rng: np.random.Generator, content: bytes) -> bytes:
    """Replaces some words by others, or damages the file as bytes."""
    if rng.random() < 0.3:
        return damage_bytes(rng, content)
    text = content.decode(errors="surrogateescape")
    for _ in range(rng.integers(1, 4)):
        tokens = list(_TOKEN.finditer(text))
        if not tokens:
            break
        place = tokens[rng.integers(len(tokens))]
        other = tokens[rng.integers(len(tokens))].group()
        word = other if rng.random() < 0.4 else str(rng.choice(_WORDS))
        text = text[: place.start()] + word + text[place.end() :]
    return text.encode(errors="surrogateescape")


def damage_npy(rng: np.random.Generator, content: bytes) -> bytes:
    """Damages the values, the header, or the words of the header."""
    if rng.random() < 0.3 or len(content) < 10:  # cut off before
        return damage_bytes(rng, content)
    (length,) = struct.unpack_from("<H", content, 8)
    header, values = content[10 : 10 + length], content[10 + length :]
    header = damage_text(rng, header.rstrip()) + b"\n"
    return (
        content[:8] + struct.pack("<H", len(header) % 2**16) + header + values
    )


def damage_member(rng: np.random.Generator, name: str, content: bytes) -> bytes:
    """Damages a file by its suffix."""
    if name.endswith(".npy"):
        return damage_npy(rng, content)
    if name.endswith((".json", ".csv", ".txt")):
        return damage_text(rng, content)
    return damage_bytes(rng, content)


def damage_zip(rng: np.random.Generator, content: bytes) -> bytes:
    """Damages, renames, repeats, drops or swaps members, with right sums."""
    if rng.random() < 0.15:
        return damage_bytes(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.integers(1, 3)):
        i, j = rng.integers(0, len(members), 2)
        (name, inner), (other, theirs) = members[i], members[j]
        match rng.integers(10):
            case 0:
                members[i] = (str(rng.choice([*_NAMES, other])), inner)
            case 1:
                members.insert(j, (name, damage_member(rng, name, inner)))
            case 2:
                members[i], members[j] = (name, theirs), (other, inner)
            case 3 if len(members) > 1:
                del members[i]
            case 4:
                members.append((str(rng.choice(_NAMES)), inner))
            case _:
                members[i] = (name, damage_member(rng, name, inner))
    file = io.BytesIO()
    kind = _COMPRESSIONS[rng.choice(4, p=[0.6, 0.3, 0.05, 0.05])]
    with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are there twice
        for name, inner in members:
            archive.writestr(name, inner)
    found = file.getvalue()
    return damage_bytes(rng, found) if rng.random() < 0.1 else found


def damage_gzip(rng: np.random.Generator, content: bytes) -> bytes:
    """Damages what is compressed, or the compressed bytes."""
    if rng.random() < 0.3:
        return damage_bytes(rng, content)
    return gzip.compress(damage_bytes(rng, gzip.decompress(content)), 1)


def damage_png(rng: np.random.Generator, content: bytes) -> bytes:
    """Damages chunks, and pixels below their compression, with right sums."""
    if rng.random() < 0.3:
        return damage_bytes(rng, content)
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind = content[place + 4 : place + 8]
        chunks.append((kind, content[place + 8 : place + 8 + length]))
        place += length + 12
    i, j = rng.integers(0, len(chunks), 2)
    kind, body = chunks[i]
    match rng.integers(5):
        case 0:
            chunks[i], chunks[j] = chunks[j], chunks[i]
        case 1:
            chunks.insert(j, (rng.bytes(4), body))
        case 2 if kind == b"IDAT":
            body = zlib.compress(damage_bytes(rng, zlib.decompress(body)))
            chunks[i] = kind, body
        case _:
            chunks[i] = kind, damage_bytes(rng, body)
    return content[:8] + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def json_bytes(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
