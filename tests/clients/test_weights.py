"""Files of weights that libraries refuse, and what the driver answers to their volumes."""

import json
import struct

import grpc
from safetensors import safe_open

from driver import Driver, in_mount_namespace
from loader_volumes import push


def tensor(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def file(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


ONE = json.dumps({"a": tensor()}).encode()
SAFETENSORS = {
    "good": file({"a": tensor()}, 8),
    "without tensors": file({}, 0),
    "spaces around the header": file(b" " + ONE + b"  ", 8),
    "metadata of null": file({"__metadata__": None, "a": tensor()}, 8),
    "another key": file({"a": tensor(more=1)}, 8),
    "in another order": file({"a": tensor(data_offsets=[8, 16]), "b": tensor()}, 16),
    "without bytes": file({"a": tensor(), "z": tensor(shape=[0], data_offsets=[8, 8])}, 8),
    "half bytes": file({"a": tensor(dtype="F4", shape=[16])}, 8),
    "metadata of numbers": file({"__metadata__": {"x": 1}, "a": tensor()}, 8),
    "metadata of a list": file({"__metadata__": [], "a": tensor()}, 8),
    "another shape": file({"a": tensor(shape=[3])}, 8),
    "no shape": file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "no type": file({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "a negative shape": file({"a": tensor(shape=[-2])}, 8),
    "too large a shape": file({"a": tensor(shape=[2**40, 2**40])}, 8),
    "an odd number of half bytes": file({"a": tensor(dtype="F4", shape=[15])}, 8),
    "a hole": file({"a": tensor(), "b": tensor(data_offsets=[12, 20])}, 20),
    "an overlap": file({"a": tensor(), "b": tensor(data_offsets=[4, 12])}, 12),
    "too long": file({"a": tensor()}, 9),
    "cut short": file({"a": tensor()}, 7),
    "not UTF-8": file(ONE.replace(b'"a"', b'"\xff"'), 8),
    "a list": file(b"[]", 0),
    "zeros behind the header": file(ONE + b"\0", 8),
    "no header": b"abc",
    "an unknown type": file({"a": tensor(dtype="X9")}, 8),
    "without bytes between bytes": file(
        {"a": tensor(), "z": tensor(shape=[0], data_offsets=[4, 4])}, 8),
}

# What the driver leaves to the library: a newer one may know the type.
LEFT_TO_THE_LIBRARY = {"an unknown type", "without bytes between bytes"}


def opens(path):
    """Whether the library opens a file."""
    try:
        with safe_open(path, framework="np"):
            return True
    except Exception:
        return False


def publishes(driver, number, prefix):
    """Whether the driver publishes a model; it may refuse only its weights."""
    try:
        driver.publish(f"pod-{number}", bucket="b", prefix=prefix)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert "cannot be loaded: model.safetensors: " in error.details(), error
        return False
    return True


@in_mount_namespace
def test_the_driver_refuses_what_the_library_refuses_and_nothing_else(request):
    tmp_path = request.getfixturevalue("tmp_path")
    files = tmp_path / "files"
    for number, content in enumerate(SAFETENSORS.values()):
        (files / str(number)).mkdir(parents=True)
        (files / str(number) / "model.safetensors").write_bytes(content)
    store = request.getfixturevalue("store")
    store.create_bucket("b")
    push(store, files, "oci://b/models/")
    driver = Driver(tmp_path / "driver", store)
    try:
        verdicts = {name: (opens(files / str(number) / "model.safetensors"),
                           publishes(driver, number, f"models/{number}/"))
                    for number, name in enumerate(SAFETENSORS)}
    finally:
        driver.stop()
    assert verdicts["good"] == (True, True) and verdicts["cut short"] == (False, False)
    differs = {name for name, (library, own) in verdicts.items() if library != own}
    assert differs == LEFT_TO_THE_LIBRARY, verdicts
    assert all(verdicts[name] == (False, True) for name in differs), verdicts
