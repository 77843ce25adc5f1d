"""Models in all formats, opened from volumes by the libraries that read these formats."""

import http.server
import inspect
import re
import threading

import pytest

import loader_models as models
from conftest import REPOSITORY, read_tree
from container import UNPRIVILEGED, container
from driver import in_one_mount_namespace
from loader_cases import CASES, digest, load_onnx, tokenizer_file
from loader_volumes import PLACES, Mounted, listing, push

DOCUMENT = REPOSITORY / "docs/loaders.md"

# The files of the model that a case maps.
MAPPED = {
    "safetensors, safe_open": set(models.SHARDS),
    "GGUF, GGUFReader": {"tiny-Q8_0.gguf"},
    "ONNX with external data, onnxruntime": {"onnx/model.onnx_data"},
}

# What a library refuses to open, and what it answers: the files of a volume are hard links.
REFUSED = {"ONNX with external data, onnx.load": "multiple hard links"}

# A case that makes a copy in a directory for temporary files.
COPIES = "ONNX with external data, onnx.load of a copy"


def expected(files):
    """What each case must read, by the arrays that were written, and by the tokenizer that is
    in `files`."""
    weights = {name: digest(array) for name, array in models.weights().items()}
    gguf = {name: digest(array) for name, array in {
        "embed.weight": models.quantized(),
        "layers.0.weight": models.weights()["layers.0.weight"],
        "layers.0.bias": models.weights()["layers.0.bias"]}.items()}
    matrix = {"matrix": digest(models.matrix())}
    by_format = {
        "safetensors": weights,
        "GGUF": {**gguf, "tokens": models.SENTENCES},
        "ONNX": matrix,
    }
    read = {name: by_format.get(name.split(",")[0].removesuffix(" with external data"))
            for name in CASES}
    read["ONNX with external data, onnxruntime"] = {"y": digest(models.inputs() @ models.matrix())}
    text = read["tokenizer.json, tokenizers"] = tokenizer_file(files)
    read["config.json and tokenizer.json, transformers"] = {"vocab_size": 400, **text}
    return read


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    one = Mounted(tmp_path_factory.mktemp("loaders") / "x")
    yield one
    one.stop()


def documented_environment(place):
    """The environment of the Deployment in docs/loaders.md, whose volumes are below `place`."""
    sample = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.S)[1]
    pairs = dict(re.findall(r"- \{name: (\w+), value: \"?([^\"}]*)\"?\}", sample))
    assert len(pairs) > 5, sample
    roots = {"/hub": str(place / "hub"), "/scratch": str(place / "home")}
    return {name: re.sub("^(/hub|/scratch)(?=/|$)", lambda root: roots[root[0]], value)
            for name, value in pairs.items()}


def run_cases(target, place, *cases, fails=False):
    """What cases read, mapped and wrote in a container that sees `target`, or their error."""
    with container(hub=target) as one:
        model = one.place / "hub" / PLACES[place][1]
        answer = one.python("loader_cases.py", model, *cases, fails=fails,
                            **documented_environment(one.place))
        assert one.written() == []
    return answer


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
@in_one_mount_namespace
def test_a_loader_reads_from_a_volume_what_was_written_there_and_writes_nothing(request, case, place):
    mounted = request.getfixturevalue("mounted")
    target = mounted.target(place)
    before = listing(target)
    if case in REFUSED:
        error = run_cases(target, place, case, fails=True)
        assert REFUSED[case] in error, error
    else:
        answer = run_cases(target, place, case)
        assert answer["read"] == {case: expected(mounted.files)[case]}
        assert set(answer["mapped"]) == MAPPED.get(case, set())
        assert answer["written"] == [] or case == COPIES
    assert listing(target) == before


@in_one_mount_namespace
def test_a_second_pod_shares_the_files_also_while_the_driver_is_down_and_after_it(request):
    mounted = request.getfixturevalue("mounted")
    first = mounted.target("directory")
    downloads = mounted.downloads()
    second = mounted.publish("directory")
    wanted = {case: read for case, read in expected(mounted.files).items() if case not in REFUSED}

    def reads(target):
        assert run_cases(target, "directory", *wanted)["read"] == wanted

    reads(second)
    mounted.restart(between=lambda: reads(second))
    third = mounted.publish("directory")
    reads(third)
    assert mounted.downloads() == downloads
    assert listing(first) == listing(second) == listing(third)


@pytest.mark.parametrize("user", [UNPRIVILEGED, 0])
@in_one_mount_namespace
def test_no_user_changes_anything_in_a_volume(request, user):
    mounted = request.getfixturevalue("mounted")
    target = mounted.target("directory")
    before = listing(target)
    with container(user=user, model=target) as one:
        errors = one.python("write_cases.py", one.place / "model", "config.json")
        if one.user != 0:
            assert errors.pop("open to write") == errors.pop("truncate") == "EACCES"
    assert len(errors) >= 9 and set(errors.values()) == {"EROFS"}, errors
    assert listing(target) == before
    assert read_tree(target) == read_tree(mounted.files)


class Hub:
    """A Hub whose branch `main` is at `commit`: it answers HEAD requests for files."""

    def __init__(self, commit):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                for name, value in {"X-Repo-Commit": commit, "ETag": '"e7a9"',
                                    "Content-Length": "4"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub_at():
    """Starts a Hub at a commit."""
    hubs = []

    def start(commit):
        hubs.append(Hub(commit))
        return hubs[-1].endpoint

    yield start
    for hub in hubs:
        hub.stop()


@in_one_mount_namespace
def test_huggingface_hub_uses_a_pushed_cache_with_the_documented_settings(request):
    mounted = request.getfixturevalue("mounted")
    target = mounted.target("Hub snapshot")
    before = listing(target)
    with container(hub=target) as one:
        answer = one.python("hub_cases.py", "snapshot_download", "snapshot_download, local_files_only",
                            "hf_hub_download", "scan_cache_dir", **documented_environment(one.place))
        snapshot = str(one.place / "hub" / PLACES["Hub snapshot"][1])
        assert one.written() == answer["written"] == []
    assert answer["answers"] == {
        "snapshot_download": snapshot,
        "snapshot_download, local_files_only": snapshot,
        "hf_hub_download": f"{snapshot}/onnx/model.onnx_data",
        "scan_cache_dir": {"repositories": ["org/tiny"], "warnings": []},
    }
    assert listing(target) == before


@pytest.mark.parametrize("commit", [models.COMMIT, "f" * 40, None])
@in_one_mount_namespace
def test_without_offline_mode_a_newer_commit_on_the_hub_makes_a_pushed_cache_unusable(request, commit):
    mounted = request.getfixturevalue("mounted")
    endpoint = request.getfixturevalue("hub_at")(commit) if commit else "http://127.0.0.1:1"
    with container(hub=mounted.target("Hub snapshot")) as one:
        settings = documented_environment(one.place) | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
        answer = one.python("hub_cases.py", "hf_hub_download", **settings)["answers"]["hf_hub_download"]
    if commit == "f" * 40:
        assert answer.startswith("OSError: [Errno 30] Read-only file system"), answer
    else:
        assert answer.endswith("/onnx/model.onnx_data"), answer


@in_one_mount_namespace
def test_a_mount_is_no_local_dir_for_hf_hub_download(request):
    mounted = request.getfixturevalue("mounted")
    with container(hub=mounted.target("directory")) as one:
        settings = documented_environment(one.place) | {"LOCAL_DIR": str(one.place / "hub")}
        answer = one.python("hub_cases.py", "hf_hub_download, local_dir", "snapshot_download, local_dir",
                            **settings)["answers"]
    assert answer["snapshot_download, local_dir"].endswith("/hub"), answer
    assert "Read-only file system" in answer["hf_hub_download, local_dir"], answer


@in_one_mount_namespace
def test_a_filtered_hub_cache_is_complete_without_its_listing_of_the_repository(request):
    mounted = request.getfixturevalue("mounted")
    for exclude, complete in [("*.gguf", False), ("*.gguf, */trees/", True)]:
        with container(hub=mounted.publish("Hub snapshot", exclude=exclude)) as one:
            settings = documented_environment(one.place)
            [answer] = one.python("hub_cases.py", "snapshot_download", **settings)["answers"].values()
        assert answer.endswith(models.COMMIT) == complete, answer
        assert answer.startswith("IncompleteSnapshotError") != complete, answer


@in_one_mount_namespace
def test_code_that_comes_with_a_model_needs_a_home_of_the_hub_outside_the_mount(request):
    mounted = request.getfixturevalue("mounted")
    with container(hub=mounted.target("directory")) as one:
        settings = documented_environment(one.place) | {"LOCAL_DIR": str(one.place / "hub")}
        answer = one.python("hub_cases.py", "trust_remote_code", **settings)["answers"]
        assert answer["trust_remote_code"] == "tiny"
        assert any(name.endswith("configuration_tiny.py") for name in one.written())
        settings |= {"HF_HOME": str(one.place / "hub")}
        answer = one.python("hub_cases.py", "trust_remote_code", **settings)["answers"]
        assert "Read-only file system" in answer["trust_remote_code"], answer


@in_one_mount_namespace
def test_a_snapshot_of_a_hub_cache_is_pushed_as_its_files(request):
    mounted = request.getfixturevalue("mounted")
    push(mounted.store, mounted.snapshot, "oci://b/snapshot/")
    target = mounted.driver.publish("of-a-snapshot", bucket="b", prefix="snapshot/")
    assert read_tree(target) == read_tree(mounted.files)


def test_the_documented_function_is_the_one_that_was_tried():
    [documented] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    imports, function = documented.split("\n\n\n")
    # Each case imports its own library.
    lines = inspect.getsource(load_onnx).splitlines(keepends=True)
    assert "".join(line for line in lines if "import" not in line) == function
    assert {line.strip() for line in lines if "import" in line} < set(imports.splitlines())


def test_the_documented_table_has_every_case_with_its_result():
    row = r"^\| (.+?) \| (.+?) \| (read|mmap) \| (\w+) \| (\w+) \|$"
    documented = {f"{form}, {loader}": (reads, {first, second}) for form, loader, reads, first, second
                  in re.findall(row, DOCUMENT.read_text().replace("`", ""), re.M)}
    assert documented == {case: ("mmap" if case in MAPPED else "read",
                                 {"refused" if case in REFUSED else "passed"}) for case in CASES}
