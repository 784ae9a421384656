"""Our archives as plain structures: the fields of every tar header, and what follows it."""

import hashlib
import json
from typing import Any

import zstandard

from tests.robustness.support.samples import sealed

_BLOCK = 512
_SEAL_HEAD = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")


def entries(tar: bytes) -> list[dict[str, Any]]:
    found, at = [], 0
    while any(tar[at : at + _BLOCK]):
        header = tar[at : at + _BLOCK]
        name, size = header[:100].rstrip(b"\0").decode(), int(header[124:135], 8)
        data = tar[at + _BLOCK : at + _BLOCK + size]
        entry: dict[str, Any] = {"name": name, "size": size, "type": "0", "bytes": len(data)}
        entry["data"] = json.loads(data) if name == "manifest.json" else data.hex()
        found.append(entry)
        at += _BLOCK + size + -size % _BLOCK
    return found


def packed(values: Any) -> bytes:
    """An archive with the seal that belongs to it, whatever is inside."""
    listed = values if isinstance(values, list) else [values]
    tar = b"".join(_entry(item) for item in listed) + bytes(2 * _BLOCK)
    compressed = zstandard.ZstdCompressor(write_checksum=True).compress(tar)
    return compressed + _SEAL_HEAD + hashlib.sha256(compressed).digest()


def _entry(item: Any) -> bytes:
    if not isinstance(item, dict):
        return str(item).encode("utf-8", "replace")
    content = item.get("data", "")
    data = _data(content)
    # A manifest that was changed has another size than its header said.
    size = len(data) if isinstance(content, dict) else item.get("size", 0)
    return (
        header(str(item.get("name", "")), size, str(item.get("type", "0")))
        + data
        + bytes(-len(data) % _BLOCK)
    )


def _data(content: Any) -> bytes:
    if isinstance(content, dict):
        return sealed(content)
    try:
        return bytes.fromhex(content)
    except (TypeError, ValueError):
        return str(content).encode("utf-8", "replace")


def header(name: str, size: Any, kind: str = "0") -> bytes:
    """With any size, negative ones too."""
    block = bytearray(_BLOCK)
    block[:100] = name.encode("utf-8", "replace")[:100].ljust(100, b"\0")
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = _octal(size)
    block[136:148], block[156:157] = b"00000000000\0", (kind.encode("utf-8", "replace") + b"0")[:1]
    block[257:265], block[148:156] = b"ustar  \0", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(size: Any) -> bytes:
    if not isinstance(size, int) or isinstance(size, bool):
        return str(size).encode("utf-8", "replace")[:12].ljust(12, b"\0")
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    # The other way of writing it: two's complement, with the highest bit set.
    low = size & ((1 << 88) - 1)
    return (b"\xff" if size < 0 else b"\x80") + low.to_bytes(11, "big")
