"""What a container does with a Hub cache: `hub_cases.py CASE...` calls huggingface_hub, and
prints what each call returned, or its error, and where it would write, as JSON.

The directories are those of the environment; LOCAL_DIR is one with a model's files."""

import json
import os
import sys
import warnings

from loader_cases import note_write, written

REPOSITORY_ID = "org/tiny"


def snapshot_download(**options):
    import huggingface_hub
    return huggingface_hub.snapshot_download(REPOSITORY_ID, **options)


def hf_hub_download(**options):
    import huggingface_hub
    return huggingface_hub.hf_hub_download(REPOSITORY_ID, "onnx/model.onnx_data", **options)


def code_of_the_model():
    from transformers import AutoConfig
    directory = os.path.join(os.environ["LOCAL_DIR"], "custom")
    return AutoConfig.from_pretrained(directory, trust_remote_code=True).model_type


def scan_cache_dir():
    import huggingface_hub
    found = huggingface_hub.scan_cache_dir()
    return {"repositories": [one.repo_id for one in found.repos],
            "warnings": [str(warning) for warning in found.warnings]}


CASES = {
    "snapshot_download": snapshot_download,
    "snapshot_download, local_files_only": lambda: snapshot_download(local_files_only=True),
    "snapshot_download, local_dir": lambda: snapshot_download(local_dir=os.environ["LOCAL_DIR"]),
    "hf_hub_download": hf_hub_download,
    "hf_hub_download, local_dir": lambda: hf_hub_download(local_dir=os.environ["LOCAL_DIR"]),
    "trust_remote_code": code_of_the_model,
    "scan_cache_dir": scan_cache_dir,
}


def answer(case):
    try:
        return CASES[case]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    warnings.simplefilter("ignore")
    sys.addaudithook(note_write)
    answers = {case: answer(case) for case in sys.argv[1:]}
    print(json.dumps({"answers": answers, "written": written}))


if __name__ == "__main__":
    main()
