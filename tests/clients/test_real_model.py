"""A real model, from its files through oci-cli, Object Storage and the driver
into the library that serves it."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
import traceback
from pathlib import Path

import pytest
import wordllama
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from wordllama.inference import WordLlamaInference

from driver import INSIDE, Driver, in_mount_namespace

UNPRIVILEGED = 65534
CAT, KITTEN, RATES = (
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "The central bank raised interest rates by a quarter point.",
)


def lay_out_the_model(directory):
    """Copies the files of the wordllama wheel, under the usual names of a model."""
    package = Path(wordllama.__file__).parent
    directory.mkdir()
    shutil.copy(package / "weights/l2_supercat_256.safetensors", directory / "model.safetensors")
    shutil.copy(package / "tokenizers/l2_supercat_tokenizer_config.json",
                directory / "tokenizer.json")
    (directory / "config.json").write_text(json.dumps({"model_type": "wordllama", "dim": 256}))
    return directory


def similarities(directory):
    """The similarity of the kitten and of the interest rates to the cat, by this model."""
    weights = load_file(directory / "model.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = WordLlamaInference(weights, tokenizer)
    return model.similarity(CAT, KITTEN), model.similarity(CAT, RATES)


def in_a_container(target, work):
    """The result of `work(directory)` in another process that sees `target` as a
    container does: bound to a directory that all users reach, and not as root
    where this is root. Forked, since that user may not reach this Python."""
    # A user namespace of one user has no other user.
    user = UNPRIVILEGED if os.environ[INSIDE] == "root" else os.geteuid()
    place = Path(tempfile.mkdtemp(prefix="container-"))
    place.chmod(0o755)
    subprocess.run(["mount", "--bind", target, place], check=True)
    try:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if user != os.geteuid():
                    os.setgroups([])
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                os.write(writer, json.dumps([float(value) for value in work(place)]).encode())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        assert text, "the process in the container failed, see above"
        return json.loads(text)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@in_mount_namespace
def test_a_model_uploaded_by_the_oci_cli_is_served_from_its_volume(request):
    request.getfixturevalue("monkeypatch").setenv("TOKENIZERS_PARALLELISM", "false")
    tmp_path = request.getfixturevalue("tmp_path")
    store = request.getfixturevalue("store")
    files = lay_out_the_model(tmp_path / "files")
    store.create_bucket("ai-models")
    store.object("bulk-upload", "ai-models", "--src-dir", files,
                 "--object-prefix", "models/wordllama/")
    driver = Driver(tmp_path / "driver", store)
    try:
        first = driver.publish("embedder-0", bucket="ai-models", prefix="models/wordllama/")
        near, far = in_a_container(first, similarities)
        assert near > far + 0.1, "a kitten is nearer to a cat than interest rates are"
        assert [near, far] == pytest.approx(similarities(files)), "as from the files themselves"
        with pytest.raises(OSError) as refused:
            (first / "new").touch()
        assert refused.value.errno == errno.EROFS

        # A second pod: a hit.
        downloads = store.answered("get") + store.answered("get", 206)
        assert downloads > 0
        second = driver.publish("embedder-1", bucket="ai-models", prefix="models/wordllama/")
        assert store.answered("get") + store.answered("get", 206) == downloads
        assert in_a_container(second, similarities) == [near, far]
        shared = [(pod / "model.safetensors").stat().st_ino for pod in (first, second)]
        assert shared[0] == shared[1]

        driver.unpublish("embedder-0")
        driver.unpublish("embedder-1")
        assert not first.exists() and not second.exists()
        assert store.stats()["refusals"] == {}, "every request was signed as it must be"
    finally:
        driver.stop()
