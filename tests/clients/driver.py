"""The driver as a process, and a client that speaks CSI to it as kubelet does."""

import functools
import os
import socket as socket_module
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest
from grpc_tools import protoc

from conftest import REPOSITORY

BINARY = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")
INSIDE = "OCI_MODEL_CSI_TEST_INSIDE"
MAY_SKIP = "OCI_MODEL_CSI_TEST_MAY_SKIP"
MOUNTS = ["--mount", "--propagation", "private"]


def in_mount_namespace(test):
    """Runs a test again, alone, where it may mount: as root in a mount namespace
    of its own, as anybody else in a user namespace besides. The test's only
    fixture is `request`, so that the outer run starts nothing."""

    @functools.wraps(test)
    def run(request):
        if INSIDE in os.environ:
            return test(request)
        again = run_inside(request, request.node.nodeid)
        assert again.returncode == 0 and "1 passed" in again.stdout, again.stdout + again.stderr

    return run


def in_one_mount_namespace(test):
    """As `in_mount_namespace`, for tests that share what is mounted: all tests of the module
    run again together, once, and each passes as it passed there. Besides `request` they have
    only parameters."""

    @functools.wraps(test)
    def run(request, **parameters):
        if INSIDE in os.environ:
            return test(request, **parameters)
        error = errors_inside(request).get(request.node.name, "it did not run")
        assert error is None, error

    return run


INSIDE_ERRORS = pytest.StashKey()


def errors_inside(request):
    """The errors of this module's tests in a mount namespace, by name; `None` for those that
    passed."""
    known = request.session.stash.setdefault(INSIDE_ERRORS, {})
    if request.path not in known:
        names = [item.nodeid for item in request.session.items if item.path == request.path]
        report = request.getfixturevalue("tmp_path") / "report.xml"
        again = run_inside(request, f"--junitxml={report}", *names)
        assert report.exists(), again.stdout + again.stderr
        cases = ElementTree.parse(report).iter("testcase")
        known[request.path] = {case.get("name"): "\n".join(
            problem.text or problem.get("message") for problem in case) or None for case in cases}
    return known[request.path]


def may_mount():
    """The flags of unshare for a mount namespace; skips the test where there are none."""
    flags = MOUNTS if os.geteuid() == 0 else ["--user", "--map-root-user", *MOUNTS]
    possible = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True)
    if possible.returncode != 0:
        assert os.environ.get(MAY_SKIP) == "1", possible.stderr
        pytest.skip(f"no namespaces here: {possible.stderr.strip()}")
    return flags


def run_inside(request, *arguments):
    """Runs pytest in a mount namespace."""
    flags = may_mount()
    environment = {**os.environ, INSIDE: "root" if os.geteuid() == 0 else "user"}
    return subprocess.run(
        ["unshare", *flags, sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=request.config.rootpath, env=environment,
        capture_output=True, text=True, timeout=300)


def csi_modules(directory):
    """The messages and stubs of proto/csi.proto, made by protoc in `directory`."""
    includes = Path(protoc.__file__).parent / "_proto"
    failed = protoc.main(["protoc", f"-I{REPOSITORY / 'proto'}", f"-I{includes}",
                          f"--python_out={directory}", f"--grpc_python_out={directory}",
                          "csi.proto"])
    assert not failed
    sys.path.insert(0, str(directory))
    try:
        import csi_pb2
        import csi_pb2_grpc
    finally:
        sys.path.pop(0)
    return csi_pb2, csi_pb2_grpc


def free_port():
    with socket_module.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Driver:
    """A running driver that reads from `store` with the API key of the oci CLI's file."""

    def __init__(self, directory, store, settings="cache: {minFree: 1MiB, minFreeInodes: 0%}\n", arguments=()):
        self.directory, self.kubelet = directory, directory / "kubelet"
        (self.kubelet / "pods").mkdir(parents=True, exist_ok=True)
        self.socket = directory / "csi.sock"
        self.metrics = f"127.0.0.1:{free_port()}"
        config = directory / "config.yaml"
        config.write_text(settings)
        self.log = directory / "driver.log"
        self.log.write_text("")
        self.command = [
            BINARY, "all", "--csi-endpoint", f"unix://{self.socket}", "--node-id", "node-1",
            "--cache-dir", directory / "cache", "--kubelet-dir", self.kubelet,
            "--config", config, "--auth", "api_key", "--config-file", store.config,
            "--oci-endpoint", store.endpoint, "--metrics-address", self.metrics, *arguments]
        self.csi, self.stubs = csi_modules(directory)
        self.channels = []
        self.start()

    def start(self):
        """Starts the program; again after `terminate` or `kill`, with the same cache and mounts."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, env={}, stderr=log)
        self.until_listening()
        # A channel of its own: an old one pauses for up to a second before it connects again.
        # Without this option grpcio sends the percent-encoded path as authority.
        self.channels.append(grpc.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.default_authority", "localhost")]))
        self.node = self.stubs.NodeStub(self.channels[-1])
        self.identity = self.stubs.IdentityStub(self.channels[-1])
        self.until_ready()

    def until_listening(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket_module.socket(socket_module.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            time.sleep(0.005)
        raise AssertionError(f"the driver does not listen:\n{self.log.read_text()}")

    def until_ready(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                probe = self.identity.Probe(self.csi.ProbeRequest(), timeout=5, wait_for_ready=True)
                if probe.ready.value:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the driver is not ready:\n{self.log.read_text()}")

    def until_logged(self, text, times):
        """Waits until the log has this text so many times."""
        deadline = time.monotonic() + 20
        while self.log.read_text().count(text) < times:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def target(self, pod):
        return self.kubelet / "pods" / f"uid-of-{pod}" / "volumes/kubernetes.io~csi/model/mount"

    def publish(self, pod, **attributes):
        """Publishes an inline volume and returns its target path."""
        target = self.target(pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        capability = self.csi.VolumeCapability(
            mount={}, access_mode={"mode": "SINGLE_NODE_WRITER"})
        self.node.NodePublishVolume(self.csi.NodePublishVolumeRequest(
            volume_id=f"csi-{pod}", target_path=str(target), readonly=True,
            volume_capability=capability, volume_context={
                "csi.storage.k8s.io/pod.name": pod,
                "csi.storage.k8s.io/pod.namespace": "team-a",
                "csi.storage.k8s.io/pod.uid": f"uid-of-{pod}",
                "csi.storage.k8s.io/serviceAccount.name": "default",
                "csi.storage.k8s.io/ephemeral": "true",
                **attributes,
            }), timeout=120)
        return target

    def unpublish(self, pod):
        self.node.NodeUnpublishVolume(self.csi.NodeUnpublishVolumeRequest(
            volume_id=f"csi-{pod}", target_path=str(self.target(pod))), timeout=60)

    def peak_memory(self):
        """The most that was resident since the program started, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024

    def terminate(self):
        """Ends the program as kubelet does; mounts stay."""
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0, self.log.read_text()

    def kill(self):
        """Ends the program as a crash does: with SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self):
        for channel in self.channels:
            channel.close()
        self.terminate()
