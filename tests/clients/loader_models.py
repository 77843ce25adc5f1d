"""A model in every format, written by the libraries of these formats, and the layout
that huggingface_hub gives it in its cache."""

import hashlib
import json
import os

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

REPOSITORY_ID = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SENTENCES = ["The cat sleeps on the sofa.", "Weights are read, never written.", "ünï 世界"]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def weights():
    """Tensors of several types and sizes, also one without dimensions and one without bytes."""
    random = np.random.default_rng(12)
    return {
        "embed.weight": random.standard_normal((512, 256), dtype=np.float32),
        "layers.0.weight": random.standard_normal((256, 256)).astype(np.float16),
        "layers.0.bias": random.standard_normal(33, dtype=np.float32),
        "layers.1.weight": random.integers(-128, 128, (511, 257), dtype=np.int8),
        "layers.1.empty": np.zeros((0, 4), dtype=np.float32),
        "steps": np.array(12, dtype=np.int64),
    }


def matrix():
    """Of whole numbers, so that products are exact in any order of summation."""
    return np.random.default_rng(13).integers(-8, 9, (64, 512)).astype(np.float32)


def inputs():
    return np.arange(128, dtype=np.float32).reshape(2, 64)


def quantized():
    """What a GGUF file of 8 bits holds of a tensor."""
    return gguf.quants.quantize(weights()["embed.weight"], gguf.GGMLQuantizationType.Q8_0)


def write_safetensors(directory):
    """Two shards and their index."""
    tensors = weights()
    names = list(tensors)
    weight_map = {name: SHARDS[number % 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in names if weight_map[name] == shard},
                  directory / shard, metadata={"format": "np"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def write_gguf(directory):
    writer = gguf.GGUFWriter(directory / "tiny-Q8_0.gguf", "llama")
    writer.add_context_length(128)
    writer.add_token_list(SENTENCES)
    writer.add_tensor("embed.weight", quantized(), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("layers.0.weight", weights()["layers.0.weight"])
    writer.add_tensor("layers.0.bias", weights()["layers.0.bias"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(directory):
    """A product of matrices: one model with its weights inside, and one with them beside it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 512])],
        [numpy_helper.from_array(matrix(), "matrix")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (directory / "onnx").mkdir()
    onnx.save_model(model, directory / "onnx/inside.onnx")
    onnx.save_model(model, directory / "onnx/model.onnx", save_as_external_data=True,
                    location="model.onnx_data", size_threshold=0)


def write_tokenizer(directory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=alphabet, special_tokens=["<s>"]))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}))


def write_custom(directory):
    """A configuration that comes with code of its own."""
    (directory / "custom").mkdir()
    (directory / "custom/config.json").write_text(json.dumps(
        {"model_type": "tiny", "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}))
    (directory / "custom/configuration_tiny.py").write_text(
        "from transformers import PreTrainedConfig\n\n\n"
        "class TinyConfig(PreTrainedConfig):\n    model_type = \"tiny\"\n")


def write_model(directory):
    """All formats in one directory, as many repositories of the Hub have them."""
    directory.mkdir(parents=True)
    write_safetensors(directory)
    write_gguf(directory)
    write_onnx(directory)
    write_tokenizer(directory)
    write_custom(directory)
    (directory / "config.json").write_text(json.dumps(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 400}))
    return directory


def lay_out_hub_cache(model, cache):
    """Copies the files of `model` into a cache as huggingface_hub 2 fills it: blobs, links
    from a snapshot, and the large blobs in the store that repositories share. Returns
    the directory of the snapshot."""
    repository = cache / ("models--" + REPOSITORY_ID.replace("/", "--"))
    snapshot, blobs, shared = repository / "snapshots" / COMMIT, repository / "blobs", cache / "blobs"
    for directory in (snapshot, blobs, shared, repository / "refs", repository / "trees",
                      cache / ".locks" / repository.name):
        directory.mkdir(parents=True)
    (shared / ".huggingface-shared-blobs").write_text("1\n")
    (repository / "refs/main").write_text(COMMIT)
    files = {}
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(model)), path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        (cache / ".locks" / repository.name / f"{digest}.lock").touch()
        files[name] = {"size": len(content), "blob_id": hashlib.sha1(content).hexdigest()}
        if len(content) > 100_000:
            stored = shared / digest[:2] / digest
            stored.parent.mkdir(exist_ok=True)
            stored.write_bytes(content)
            (blobs / digest).symlink_to(os.path.relpath(stored, blobs))
        else:
            (blobs / digest).write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / digest, link.parent))
    (repository / "trees" / f"{COMMIT}.json").write_text(
        json.dumps({"format_version": 1, "files": files}))
    return snapshot
