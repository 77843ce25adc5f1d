"""Pre-authenticated requests that the oci CLI creates, read by anything that speaks HTTP and by us."""

import datetime
import json
import os
import subprocess
import urllib.error
import urllib.request

from conftest import REPOSITORY, read_tree

BINARY = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")


def in_an_hour(seconds=3600):
    now = datetime.datetime.now(datetime.timezone.utc)
    return (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def create(store, *arguments, expires=None, **options):
    """`oci os preauth-request create` in the bucket b; the URL, or the error text."""
    made = store.oci("os", "preauth-request", "create", "-ns", store.namespace, "-bn", "b",
                     "--name", "trial", "--time-expires", expires or in_an_hour(), *arguments,
                     **options)
    return made if options.get("fails") else store.endpoint + made["data"]["access-uri"]


def get(url):
    """Status and body, as curl would see them."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def uploaded(store, tree):
    store.create_bucket("b")
    store.object("bulk-upload", "b", "--src-dir", tree, "--object-prefix", "m/", "--overwrite",
                 "--part-size", "1")


def test_what_the_oci_cli_creates_permits_what_it_says_and_no_more(store, tree):
    uploaded(store, tree)
    many = create(store, "--access-type", "AnyObjectRead", "--bucket-listing-action", "ListObjects",
                  "--object-name", "m/")
    status, body = get(f"{many}?prefix=m/&fields=name,size&limit=2")
    page = json.loads(body)
    assert (status, len(page["objects"])) == (200, 2) and page["nextStartWith"]
    assert get(f"{many}m/config.json") == (200, b"{}")
    assert get(f"{many}?prefix=")[0] == 404, "a prefix that it does not cover"
    assert get(f"{many}other/x")[0] == 404

    one = create(store, "--access-type", "ObjectRead", "--object-name", "m/config.json")
    assert get(one) == (200, b"{}")
    assert get(one.replace("config.json", "empty.bin"))[0] == 404

    deaf = create(store, "--access-type", "AnyObjectRead")
    assert get(f"{deaf}m/config.json") == (200, b"{}")
    assert get(f"{deaf}?prefix=m/")[0] == 404, "it may not list"

    listed = store.oci("os", "preauth-request", "list", "-ns", store.namespace, "-bn", "b")["data"]
    assert [entry["name"] for entry in listed] == ["trial"] * 3
    assert not any(entry.get("access-uri") for entry in listed), "the secret is shown once"
    for entry in listed:
        store.oci("os", "preauth-request", "delete", "-ns", store.namespace, "-bn", "b",
                  "--par-id", entry["id"], "--force")
    assert get(f"{many}m/config.json")[0] == 404

    refused = create(store, "--access-type", "AnyObjectRead", expires=in_an_hour(-60), fails=True)
    assert "in the past" in refused
    token = many.split("/p/")[1].split("/")[0]
    assert all(token not in request["target"] for request in store.admin("requests"))


def test_we_fetch_and_list_with_a_request_of_the_oci_cli(store, tree, tmp_path):
    uploaded(store, tree)
    url = create(store, "--access-type", "AnyObjectRead", "--bucket-listing-action", "ListObjects",
                 "--object-name", "m/")
    file = tmp_path / "url.txt"
    file.write_text(f"{url}m/\n")
    command = [BINARY, "fetch", "--par-file", file, "--output", "json", tmp_path / "model"]
    run = subprocess.run(command, env={}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["uri"] == f"oci://b@{store.namespace}/m/"
    assert read_tree(tmp_path / "model") == read_tree(tree)
    command = [BINARY, "ls", "--par-file", "-", "--objects"]
    run = subprocess.run(command, env={}, input=file.read_text(), capture_output=True, text=True,
                         timeout=120)
    assert run.returncode == 0 and "config.json" in run.stdout, run.stderr
