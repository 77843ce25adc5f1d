"""What a container does with a model: `loader_cases.py MODEL CASE...` opens it with the
library of each case, and prints what it read, what it mapped and where it would write, as JSON.

Runs without this project, as a user who can read only the model and the libraries."""

import hashlib
import json
import mmap
import os
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link",
           "os.truncate", "os.chmod", "os.utime", "shutil.copyfile")


def digest(array):
    return f"{array.dtype.str} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"


def digests(arrays):
    return {name: digest(array) for name, array in sorted(arrays.items())}


def shards(model):
    """The shards that the index names, each once."""
    index = json.loads((model / "model.safetensors.index.json").read_text())
    return [model / name for name in sorted(set(index["weight_map"].values()))]


def safe_open_mmap(model):
    return open_shards(model, "mmap")


def safe_open_pread(model):
    return open_shards(model, "pread")


def open_shards(model, backend):
    from safetensors import safe_open
    found = {}
    for path in shards(model):
        with safe_open(path, framework="np", backend=backend) as file:
            found |= digests({name: file.get_tensor(name) for name in file.keys()})
            note_maps(model)
    return found


def load_bytes(model):
    from safetensors.numpy import load
    found = {}
    for path in shards(model):
        found |= digests(load(path.read_bytes()))
    return found


def load_direct(model):
    from safetensors.numpy import load
    found = {}
    for path in shards(model):
        found |= digests(load(read_direct(path)))
    return found


def read_direct(path, chunk=1 << 20):
    """The content of a file by O_DIRECT: into aligned memory, from aligned offsets; only
    the last read is short."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        content, memory = bytearray(), mmap.mmap(-1, chunk)
        while count := os.preadv(file, [memory], len(content)):
            content += memory[:count]
        return bytes(content)
    finally:
        os.close(file)


def gguf_reader(model):
    import gguf
    reader = gguf.GGUFReader(model / "tiny-Q8_0.gguf")
    note_maps(model)
    found = digests({tensor.name: tensor.data for tensor in reader.tensors})
    found["tokens"] = reader.get_field("tokenizer.ggml.tokens").contents()
    return found


def onnx_inside(model):
    return onnx_matrix(model / "onnx/inside.onnx")


def onnx_external(model):
    return onnx_matrix(model / "onnx/model.onnx")


def onnx_by_hand(model):
    """As `onnx_external`, with the function of docs/loaders.md."""
    return onnx_tensors(load_onnx(model / "onnx/model.onnx"))


def load_onnx(path):
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    directory = Path(path).resolve().parent
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            data = ExternalDataInfo(tensor)
            file = (directory / data.location).resolve()
            if not file.is_relative_to(directory):
                raise ValueError(f"{tensor.name} is outside of {directory}")
            with open(file, "rb") as opened:
                opened.seek(data.offset or 0)
                tensor.raw_data = opened.read(-1 if data.length is None else data.length)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def onnx_matrix(path):
    import onnx
    return onnx_tensors(onnx.load(path))


def onnx_tensors(loaded):
    import onnx
    from onnx import numpy_helper
    onnx.checker.check_model(loaded)
    [tensor] = loaded.graph.initializer
    return digests({tensor.name: numpy_helper.to_array(tensor)})


def onnx_copied(model):
    """As `onnx_external`, of a copy in a directory that is removed afterwards."""
    import shutil
    import tempfile
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(model / "onnx", copy, dirs_exist_ok=True)
        return onnx_matrix(Path(copy) / "model.onnx")


def onnxruntime_session(model):
    import numpy
    import onnxruntime
    path, providers = model / "onnx/model.onnx", ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, providers=providers)
    x = numpy.arange(128, dtype=numpy.float32).reshape(2, 64)
    [y] = session.run(None, {"x": x})
    # Weights that it packs for its processor are mapped only while it loads them.
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    unpacked = onnxruntime.InferenceSession(path, options, providers=providers)
    note_maps(model)
    [again] = unpacked.run(None, {"x": x})
    assert numpy.array_equal(y, again)
    return digests({"y": y})


def tokenizer_file(model):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode("Weights are read. ünï").ids
    return {"ids": ids, "text": tokenizer.decode(ids)}


def transformers_auto(model):
    from transformers import AutoConfig, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer("Weights are read. ünï").input_ids
    return {"vocab_size": AutoConfig.from_pretrained(model).vocab_size,
            "ids": ids, "text": tokenizer.decode(ids)}


CASES = {
    "safetensors, safe_open": safe_open_mmap,
    "safetensors, safe_open, backend=\"pread\"": safe_open_pread,
    "safetensors, load of bytes": load_bytes,
    "safetensors, O_DIRECT": load_direct,
    "GGUF, GGUFReader": gguf_reader,
    "ONNX, onnx.load": onnx_inside,
    "ONNX with external data, onnx.load": onnx_external,
    "ONNX with external data, onnx.load of a copy": onnx_copied,
    "ONNX with external data, load_onnx (below)": onnx_by_hand,
    "ONNX with external data, onnxruntime": onnxruntime_session,
    "tokenizer.json, tokenizers": tokenizer_file,
    "config.json and tokenizer.json, transformers": transformers_auto,
}

mapped, written = set(), []


def note_maps(model):
    """Notes the files of the model that this process has mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith(f"{model}/"):
            mapped.add(os.path.relpath(path[0], model))


def note_write(event, arguments):
    """Notes a call of Python code that creates or changes a file."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, int) and flags & WRITES and os.fsdecode(path) != "/dev/null":
            written.append(f"open {os.fsdecode(path)}")
    elif event in CHANGES:
        written.append(f"{event} {arguments[0]}")


def main():
    model = Path(sys.argv[1])
    sys.addaudithook(note_write)
    read = {name: CASES[name](model) for name in sys.argv[2:]}
    print(json.dumps({"read": read, "mapped": sorted(mapped), "written": written}))


if __name__ == "__main__":
    main()
