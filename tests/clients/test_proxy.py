"""The program behind a proxy that others wrote, proxy.py: tunnels with a login, a proxy that speaks
https, and one that inspects TLS. Its log says what went through it."""

import datetime
import os
import signal
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from conftest import REPOSITORY, TOOLS

MIB = 1024 * 1024
OURS = os.environ.get("OCI_MODEL_CSI_BIN", REPOSITORY / "target/debug/oci-model-csi")
USER, PASSWORD = "me", "s3cret@#pass"
LOGIN = "me:s3cret%40%23pass"


def write_key(path):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption()))
    return key


def write_certificate(path, name, key, issuer, issuer_key, is_ca):
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True))
    if not is_ca:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    path.write_bytes(
        builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return subject


class Authority:
    """A CA, and a certificate of it for localhost."""

    def __init__(self, directory):
        directory.mkdir()
        self.ca, self.ca_key = directory / "ca.pem", directory / "ca-key.pem"
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        ca_key = write_key(self.ca_key)
        issuer = write_certificate(self.ca, "proxy CA", ca_key, None, ca_key, True)
        write_certificate(
            self.certificate, "localhost", write_key(self.key), issuer, ca_key, False)


class Proxy:
    def __init__(self, directory, *arguments):
        directory.mkdir()
        self.log_file, port_file = directory / "log", directory / "port"
        self.process = subprocess.Popen(
            [TOOLS / "proxy", "--hostname", "127.0.0.1", "--port", "0", "--port-file", port_file,
             "--basic-auth", f"{USER}:{PASSWORD}", "--log-file", self.log_file,
             "--num-workers", "1", "--num-acceptors", "1", "--data-dir", directory, *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": str(directory)})
        bound = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().strip()):
            assert self.process.poll() is None and time.monotonic() < bound, self.log()
            time.sleep(0.05)
        self.port = int(port_file.read_text())

    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""

    def requests(self):
        """Method and server of each request, as the log names them."""
        lines = [line.split(" - ") for line in self.log().splitlines() if "access_log" in line]
        return {tuple(parts[3].split()[:2]) for parts in lines}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture
def proxy(tmp_path):
    started = []

    def begin(*arguments):
        started.append(Proxy(tmp_path / f"proxy{len(started)}", *arguments))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def at_localhost(store):
    return f"https://localhost:{store.endpoint.rsplit(':', 1)[1]}"


def run(store, environment, *arguments, fails=False):
    command = [OURS, *arguments, "--oci-endpoint", at_localhost(store)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    output = ran.stdout + ran.stderr
    assert (ran.returncode != 0) == fails, output
    assert "s3cret" not in output
    return output


def fetch(store, environment, directory, *arguments, **options):
    uri = f"oci://models@{store.namespace}/m/"
    return run(store, environment, "fetch", uri, directory, *arguments, **options)


@pytest.fixture
def store(start):
    store = start("--tls")
    store.synthetic("models", "m/weights", 9 * MIB)
    return store


def test_a_model_is_fetched_through_tunnels_with_a_login_and_imds_is_not(store, proxy, tmp_path):
    through = proxy()
    url = f"http://{LOGIN}@127.0.0.1:{through.port}"
    environment = store.as_instance() | {
        "OCI_CLI_FEDERATION_ENDPOINT": store.federation.replace("127.0.0.1", "localhost"),
        "HTTPS_PROXY": url, "HTTP_PROXY": url, "http_proxy": url}
    fetch(store, environment, tmp_path / "m", "--auth", "instance_principal",
          "--ca-file", store.ca_file)
    assert len((tmp_path / "m/weights").read_bytes()) == 9 * MIB
    assert store.answered("imds") > 0, "the premise: the metadata service was asked"
    through.stop()
    server = at_localhost(store).removeprefix("https://")
    assert through.requests() == {("CONNECT", server)}, through.log()


def test_a_wrong_password_is_named_and_the_right_one_is_not_shown(store, proxy, tmp_path):
    through = proxy()
    environment = store.environment(
        OCI_CLI_CONFIG_FILE=str(store.config),
        HTTPS_PROXY=f"http://me:other-s3cret@127.0.0.1:{through.port}")
    said = fetch(store, environment, tmp_path / "m", "--ca-file", store.ca_file, fails=True)
    assert "407" in said and "correct user and password of the proxy in HTTPS_PROXY" in said, said


def test_a_proxy_that_speaks_https_needs_its_ca(store, proxy, tmp_path):
    authority = Authority(tmp_path / "authority")
    through = proxy("--cert-file", authority.certificate, "--key-file", authority.key)
    environment = store.environment(
        OCI_CLI_CONFIG_FILE=str(store.config),
        HTTPS_PROXY=f"https://{LOGIN}@localhost:{through.port}")
    uri = f"oci://models@{store.namespace}/m/"
    said = run(store, environment, "doctor", uri, "--ca-file", store.ca_file, fails=True)
    assert "UnknownIssuer" in said, said
    assert "name the CA that signed the proxy's certificate with objectStorage.proxyCaFile" in said
    both = tmp_path / "both.pem"
    both.write_bytes(authority.ca.read_bytes() + open(store.ca_file, "rb").read())
    fetch(store, environment, tmp_path / "m", "--ca-file", both)
    assert len((tmp_path / "m/weights").read_bytes()) == 9 * MIB
    # A name that the certificate does not have.
    environment["HTTPS_PROXY"] = f"https://{LOGIN}@127.0.0.1:{through.port}"
    said = run(store, environment, "doctor", uri, "--ca-file", both, fails=True)
    assert "write the proxy in HTTPS_PROXY with a name that is in its certificate" in said, said


def test_a_proxy_that_inspects_tls_works_with_its_ca_and_is_named_without(store, proxy, tmp_path):
    authority = Authority(tmp_path / "authority")
    certificates = tmp_path / "made"
    certificates.mkdir()
    signing = tmp_path / "authority/signing.pem"
    write_key(signing)
    through = proxy(
        "--ca-key-file", authority.ca_key, "--ca-cert-file", authority.ca,
        "--ca-signing-key-file", signing, "--ca-cert-dir", certificates,
        "--ca-file", store.ca_file)
    environment = store.environment(
        OCI_CLI_CONFIG_FILE=str(store.config),
        HTTPS_PROXY=f"http://{LOGIN}@127.0.0.1:{through.port}")
    uri = f"oci://models@{store.namespace}/m/"
    said = run(store, environment, "doctor", uri, "--ca-file", store.ca_file, fails=True)
    assert "that of a proxy that inspects TLS with objectStorage.proxyCaFile" in said, said
    fetch(store, environment, tmp_path / "m", "--ca-file", authority.ca)
    assert len((tmp_path / "m/weights").read_bytes()) == 9 * MIB
