"""A real model, loaded by its library in a pod."""

import json
import shutil
from pathlib import Path

import pytest
import wordllama
from kube import inline

# How near a kitten and interest rates are to a cat, by the model in /model.
PROGRAM = """
import json
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from wordllama.inference import WordLlamaInference

weights = load_file("/model/model.safetensors")["embedding.weight"]
model = WordLlamaInference(weights, Tokenizer.from_file("/model/tokenizer.json"))
cat = "The cat sleeps on the sofa."
print(json.dumps([float(model.similarity(cat, other)) for other in (
    "A kitten is napping on the couch.", "The central bank raised interest rates by a quarter point.")]))
"""


@pytest.mark.core
def test_a_model_is_loaded_by_python_in_an_unprivileged_pod(team, store, tmp_path):
    package = Path(wordllama.__file__).parent
    shutil.copy(package / "weights/l2_supercat_256.safetensors", tmp_path / "model.safetensors")
    shutil.copy(package / "tokenizers/l2_supercat_tokenizer_config.json", tmp_path / "tokenizer.json")
    store.copy("models", "wordllama", tmp_path)
    team.start("embedder", {"model": inline("wordllama/")}, image="python", condition="jsonpath={.status.phase}=Succeeded",
               command=["-c", PROGRAM], seconds=180,
               spec={"restartPolicy": "Never", "securityContext": {"runAsUser": 65534, "runAsNonRoot": True}})
    near, far = json.loads(team.logs("embedder"))
    assert near > far + 0.1, "a kitten is nearer to a cat than interest rates are"
