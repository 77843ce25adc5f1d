"""A node with a control plane: the processes of Kubernetes, in this network, mount
and process namespace, which `run.sh` has made."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

SCRATCH = Path(os.environ.get("E2E_SCRATCH", "/nowhere"))
TOOLS = Path(os.environ.get("E2E_TOOLS", "/nowhere"))
IMAGES = Path(os.environ.get("E2E_IMAGES", "/nowhere"))
IMAGE = Path(os.environ.get("E2E_IMAGE", "/nowhere"))
CGROUP = os.environ.get("E2E_CGROUP", "")

NODE, ADDRESS = "node1", "10.97.0.1"
API = "https://10.96.0.1:443"
PODS, SERVICES = "10.96.128.0/20", "10.96.0.0/24"
CONTAINERD = "/run/containerd/containerd.sock"
PKI, CONFIG, LOGS = SCRATCH / "pki", SCRATCH / "config", SCRATCH / "logs"
KUBECONFIG = CONFIG / "admin.kubeconfig"
RUNTIME = TOOLS / "runtime"
PATH = ":".join(map(str, [TOOLS / "bin", RUNTIME / "usr/bin", RUNTIME / "usr/sbin", "/usr/sbin:/usr/bin:/sbin:/bin"]))


def run(*command, seconds=60, text=None, fails=False):
    """Runs a command and returns its stdout; or both outputs, where it must fail (or, with None, may)."""
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True,
                          timeout=seconds, env={**os.environ, "PATH": PATH, "KUBECONFIG": str(KUBECONFIG)})
    assert fails is None or (done.returncode != 0) == fails, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if fails is False else done.stdout + done.stderr


def until(what, holds, seconds=60, every=0.2):
    """Waits until `holds()` is true, and returns its result."""
    deadline = time.monotonic() + seconds
    error = None
    while time.monotonic() < deadline:
        try:
            if found := holds():
                return found
        except (AssertionError, LookupError, TypeError, ValueError, OSError, subprocess.TimeoutExpired) as failed:
            error = failed
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds} s" + (f"; the last error: {error}" if error else ""))


class Process:
    """One program of the cluster, which can be killed and started again."""

    def __init__(self, name, *command):
        self.name, self.command = name, [str(part) for part in command]
        self.record = CONFIG / f"{name}.pid"
        self.log = LOGS / f"{name}.log"

    def start(self):
        with self.log.open("a") as log:
            process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True, env={"PATH": PATH, "HOME": str(SCRATCH)})
        self.record.write_text(str(process.pid))

    @property
    def pid(self):
        return int(self.record.read_text())

    def kill(self):
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(f"the end of {self.name}", lambda: not running(pid))

    def tail(self, lines=20):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def running(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def certificates():
    """One authority; the API server and each of its clients have a certificate of it."""
    def openssl(*arguments):
        run("openssl", *arguments)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", PKI / "ca.key", "-out", PKI / "ca.crt", "-subj", "/CN=ca", "-days", 30)
    names = f"IP:127.0.0.1,IP:10.96.0.1,IP:{ADDRESS},DNS:kubernetes.default.svc"
    for name, subject, extension in (
            ("apiserver", "/CN=kube-apiserver", f"subjectAltName={names}"),
            ("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth"),
            ("controllers", "/CN=system:kube-controller-manager", "extendedKeyUsage=clientAuth"),
            ("scheduler", "/CN=system:kube-scheduler", "extendedKeyUsage=clientAuth"),
            ("kubelet", f"/O=system:nodes/CN=system:node:{NODE}", "extendedKeyUsage=clientAuth")):
        write(PKI / f"{name}.extensions", extension)
        openssl("req", *key, "-keyout", PKI / f"{name}.key", "-out", PKI / f"{name}.request", "-subj", subject)
        openssl("x509", "-req", "-in", PKI / f"{name}.request", "-CA", PKI / "ca.crt", "-CAkey", PKI / "ca.key",
                "-CAcreateserial", "-out", PKI / f"{name}.crt", "-days", 30, "-extfile", PKI / f"{name}.extensions")
        write(CONFIG / f"{name}.kubeconfig", {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": API, "certificate-authority": str(PKI / "ca.crt")}}],
            "users": [{"name": "it", "user": {"client-certificate": str(PKI / f"{name}.crt"),
                                              "client-key": str(PKI / f"{name}.key")}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        })
    openssl("genrsa", "-out", PKI / "tokens.key", 2048)


def cgroups():
    """The cluster's own root in each hierarchy."""
    for controllers in hierarchies():
        group = controllers / CGROUP
        group.mkdir(exist_ok=True)
        for needed in ("cpuset.cpus", "cpuset.mems"):
            if (controllers / needed).exists() and (group / needed).exists():
                (group / needed).write_text((controllers / needed).read_text())


def hierarchies():
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():  # version 2
        return [top]
    return [below for below in top.iterdir() if (below / "cgroup.procs").exists() and not below.is_symlink()]


def containerd():
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    write(CONFIG / "containerd.toml", f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
# It would create its directory on the machine.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{CONTAINERD}"
[{cri}]
sandbox_image = "localhost/pause:e2e"
# Without CAP_SYS_RESOURCE no score can be lowered.
restrict_oom_score_adj = true
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
BinaryName = "{RUNTIME}/usr/sbin/runc"
[{cri}.cni]
bin_dir = "{RUNTIME}/usr/lib/cni"
conf_dir = "{CONFIG}/cni"
""")
    (CONFIG / "cni").mkdir(exist_ok=True)
    write(CONFIG / "cni/bridge.conflist", {"cniVersion": "0.4.0", "name": "pods", "plugins": [{
        "type": "bridge", "bridge": "pods0", "isGateway": True, "ipam": {
            "type": "host-local", "dataDir": "/run/addresses", "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}]}}]})
    return Process("containerd", "containerd", "--config", CONFIG / "containerd.toml")


def kubelet(**changes):
    write(CONFIG / "kubelet.yaml", {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": ADDRESS, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{CGROUP}", "failCgroupV1": False,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}", "failSwapOn": False, "resolvConf": "",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(PKI / "ca.crt")}},
        # The machine that runs tests may be fuller than a node should be.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
        "imageGCHighThresholdPercent": 100, "maxPods": 250, "syncFrequency": "10s",
        "registryPullQPS": 0, "eventRecordQPS": 0,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins", "clusterDNS": [ADDRESS], **changes,
    })
    return Process("kubelet", "kubelet", "--config", CONFIG / "kubelet.yaml", "--kubeconfig", CONFIG / "kubelet.kubeconfig",
                   "--hostname-override", NODE, "--node-ip", ADDRESS, "--root-dir", "/var/lib/kubelet", "--v=2")


def control_plane():
    etcd = "http://127.0.0.1:2379"
    yield Process("etcd", "etcd", "--data-dir", SCRATCH / "etcd", "--listen-client-urls", etcd,
                  "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380",
                  "--unsafe-no-fsync", "--log-level", "warn")
    yield Process(
        "kube-apiserver", "kube-apiserver", "--etcd-servers", etcd, "--advertise-address", ADDRESS, "--secure-port", 443,
        "--tls-cert-file", PKI / "apiserver.crt", "--tls-private-key-file", PKI / "apiserver.key",
        "--client-ca-file", PKI / "ca.crt", "--kubelet-client-certificate", PKI / "admin.crt",
        "--kubelet-client-key", PKI / "admin.key", "--kubelet-preferred-address-types", "InternalIP",
        "--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", PKI / "tokens.key",
        "--service-account-signing-key-file", PKI / "tokens.key", "--service-cluster-ip-range", SERVICES,
        "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged")
    for name, user, more in (
            ("kube-controller-manager", "controllers", ["--service-account-private-key-file", PKI / "tokens.key",
                                                        "--root-ca-file", PKI / "ca.crt", "--use-service-account-credentials"]),
            ("kube-scheduler", "scheduler", [])):
        config = CONFIG / f"{user}.kubeconfig"
        yield Process(name, name, "--kubeconfig", config, "--authentication-kubeconfig", config,
                      "--authorization-kubeconfig", config, "--bind-address", "127.0.0.1", "--leader-elect=false", *more)


def ctr(*arguments, seconds=120):
    return run("ctr", "--address", CONTAINERD, "--namespace", "k8s.io", *arguments, seconds=seconds)


class Node:
    """The whole node. Starts the processes that an earlier run has not left running."""

    def __init__(self):
        for directory in (PKI, CONFIG, LOGS):
            directory.mkdir(exist_ok=True)
        self.kubelet, self.containerd = kubelet(), containerd()
        self.etcd, self.api, *self.controllers = control_plane()

    def up(self):
        if self.kubelet.record.exists() and running(self.kubelet.pid):
            return
        started = time.monotonic()
        cgroups()
        certificates()
        for process in (self.etcd, self.containerd, self.api):
            process.start()
        until("containerd", lambda: ctr("version"))
        for archive in (*sorted(IMAGES.glob("*.tar")), IMAGE):
            ctr("images", "import", archive)
        until("the API server", lambda: run("kubectl", "get", "--raw", "/readyz") == "ok", seconds=120)
        for process in (*self.controllers, self.kubelet):
            process.start()
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        until("the node", lambda: run("kubectl", "get", "node", NODE, "-o", ready) == "True", seconds=120)
        until("service accounts", lambda: run("kubectl", "get", "serviceaccount", "default"))
        print(f"figure: the cluster was up {time.monotonic() - started:.1f} s after its start")

    def restart_kubelet(self, **changes):
        """Kills kubelet and starts it again with this configuration in place of the ordinary one."""
        self.kubelet.kill()
        self.kubelet = kubelet(**changes)
        self.kubelet.start()

    def diagnosis(self):
        """The last log lines of each process."""
        processes = (self.kubelet, self.containerd, self.etcd, self.api, *self.controllers)
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes if process.log.exists())
