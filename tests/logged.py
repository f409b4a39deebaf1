"""Reads back what loggers have written: by the tag of a metric and the epoch."""

import collections
import json
import pathlib
import struct

import pytest


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]}


def by_tag(records):
    tags = collections.defaultdict(dict)
    for record in records:
        for name, value in record.items():
            if name not in ("mode", "epoch"):
                tags[f"{record['mode']}/{name}"][record["epoch"]] = pytest.approx(value, rel=1e-6)
    return tags


def records_of(path):
    """The parts of a file of wandb: blocks of 32 KiB, in them a checksum, a length and a kind before each part."""
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:
            position += 2**15 - position % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def written_to_wandb(folder):
    """The metrics in the file of the one offline run in a folder, by name and epoch, and its configuration."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = pathlib.Path(folder).rglob("*.wandb")
    tags, config = collections.defaultdict(dict), {}
    for data in records_of(file):
        record = Record()
        record.ParseFromString(data)
        found = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in found.items():
            if "/" in name:
                tags[name][found["epoch"]] = value
        config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
    return tags, config
