"""A reader of TensorBoard's event files that shares nothing with the writer: TFRecord framing with CRC-32C, and the wire
format of protocol buffers."""

import struct
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """What an event file holds."""

    points: list[tuple[str, int, float, float]]
    """(tag, step, value, wall time), in order."""
    restarts: list[int]
    """Steps of the events that make a reader forget what comes at or after them."""
    version: str
    plugins: dict[str, bytes]
    """Tag -> value of a summary of a plugin, as it is on the wire."""


def read(path):
    points, restarts, plugins, version = [], [], {}, ""
    for record in records(path.read_bytes()):
        event = fields(record)
        (wall_time,) = struct.unpack("<d", event[1][0])
        step = event.get(2, [0])[0]
        version = event.get(3, [version.encode()])[0].decode()
        restarts += [step for log in event.get(7, []) if fields(log)[1] == [1]]
        for summary in event.get(5, []):
            for value in map(fields, fields(summary).get(1, [])):
                tag = value[1][0].decode()
                if 2 in value:
                    points.append((tag, step, struct.unpack("<f", value[2][0])[0], wall_time))
                else:
                    plugins[tag] = b"".join(value.get(9, []) + value.get(8, []))
    return Seen(points, restarts, version, plugins)


def records(data):
    """The records of a TFRecord file."""
    while data:
        length, body = data[:8], data[12 : 12 + struct.unpack("<Q", data[:8])[0]]
        assert struct.unpack("<I", data[8:12])[0] == masked(length)
        assert struct.unpack("<I", data[12 + len(body) : 16 + len(body)])[0] == masked(body)
        yield body
        data = data[16 + len(body) :]


def masked(data):
    """CRC-32C (Castagnoli), bit by bit, rotated and offset as TFRecord asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fields(message) -> dict[int, list[Any]]:
    """Field number -> its values: whole numbers, or bytes for everything else."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            found.setdefault(number, []).append(varint())
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        found.setdefault(number, []).append(message[at : at + size])
        at += size
    return found
