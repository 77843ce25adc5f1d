"""The stages of .ci/run, with fakes of the tools that it calls, and what a release requires of it."""

import os
import shutil
import subprocess

import pytest
import yaml
from conftest import REPOSITORY

STAGES = ["tools", "lint", "doc", "site", "msrv", "arm", "deny", "feature", "demo", "deploy", "test", "cluster"]
# Behaves like a machine that has everything. Each call is a line of the log.
MAKE = """#!/bin/sh
echo "$1 seed=$OCI_MODEL_CSI_TEST_SEED" >>"$LOG"
echo "1 passed"
case " $FAIL " in *" $1 "*) exit 1 ;; esac
"""
CHECK = """#!/bin/sh
[ -z "$NO_CLUSTER" ] || { echo "no cgroups here" >&2; exit 1; }
"""


class Machine:
    """A repository with the scripts of .ci/, and the programs that they find."""

    def __init__(self, directory):
        self.root, self.programs = directory / "repository", directory / "bin"
        self.log = directory / "log"
        shutil.copytree(REPOSITORY / ".ci", self.root / ".ci")
        shutil.copy(REPOSITORY / ".gitignore", self.root)
        (self.root / "Cargo.toml").write_text('rust-version = "1.89"\n')
        self.script(self.root / "tests/cluster/run.sh", CHECK)
        self.script(self.programs / "make", MAKE)
        for name in ("cargo", "rustc", "rustup", "go", "apt-get", "shellcheck", "mkfs.xfs", "ip", "curl",
                     "aarch64-linux-gnu-gcc", "qemu-aarch64", "groff", "script", "zsh", "fish", "node"):
            self.script(self.programs / name, "#!/bin/sh\n")
        self.script(self.programs / "ldconfig", "#!/bin/sh\necho libseccomp.so.2\n")
        self.git("init", "--quiet")
        self.commit()

    @staticmethod
    def script(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def git(self, *arguments):
        who = "-c", "user.name=a", "-c", "user.email=a@example.com"
        subprocess.run(["git", *who, *arguments], cwd=self.root, check=True, capture_output=True)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a")

    def run(self, *command, **environment):
        path = f"{self.programs}:{os.environ['PATH']}"
        known = {key: value for key, value in os.environ.items() if not key.startswith(("OCI_MODEL_CSI_", "CARGO_"))}
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True,
                              env={**known, "PATH": path, "LOG": str(self.log), **environment})

    def ci(self, **environment):
        return self.run(".ci/run", **environment)

    def ran(self, *stages):
        return self.run(".ci/ran", *(stages or ["cluster"]))

    def asked(self):
        return [line.split()[0] for line in self.log.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_run_with_all_stages_is_recorded_and_released(machine):
    done = machine.ci()
    assert done.returncode == 0, done.stderr
    assert "SKIPPED" not in done.stdout
    assert "e2e-core" in machine.asked()
    ran = machine.ran(*STAGES)
    assert ran.returncode == 0, ran.stderr
    assert (machine.root / "target/ci-stages").read_text().splitlines() == [
        "tools ran", f"commit {machine.run('git', 'rev-parse', 'HEAD').stdout.strip()}",
        *(f"{stage} ran" for stage in STAGES[1:])]


def test_the_build_of_the_clusters_programs_starts_before_anything_slow(machine):
    machine.ci()
    # It runs beside the first stages; two lines show that it started before its own stage.
    assert machine.asked().count("e2e-tools") == 2
    assert machine.asked().index("e2e-tools") <= 2


@pytest.mark.parametrize("over, runs", [(2750, True), (3100, True), (3200, False)])
def test_the_cluster_has_its_time_within_an_hour(machine, over, runs):
    # bash counts on from this.
    done = machine.ci(SECONDS=str(over))
    assert done.returncode == 0, done.stderr
    assert ("e2e-core" in machine.asked()) == runs
    assert ("this machine is too slow" in done.stdout) != runs
    assert (machine.ran().returncode == 0) == runs


def test_a_commit_whose_cluster_stage_did_not_run_is_not_released(machine):
    assert "target/ci-stages is missing" in machine.ran().stderr
    assert machine.ci(NO_CLUSTER="1").returncode == 0
    refused = machine.ran()
    assert refused.returncode == 1
    assert "the stage cluster did not run" in refused.stderr
    assert "this machine cannot run one: no cgroups here" in refused.stderr
    assert machine.ran("lint").returncode == 0
    assert machine.ran("lint", "cluster").returncode == 1


def test_a_run_on_other_files_does_not_count_for_this_commit(machine):
    assert machine.ci().returncode == 0
    machine.commit()
    assert "but this is" in machine.ran().stderr
    (machine.root / "new.rs").write_text("")
    assert machine.ci().returncode == 0
    assert machine.ran().returncode == 0, "the premise"
    machine.git("clean", "--force", "--quiet")
    assert "-changed, but this is" in machine.ran().stderr


@pytest.mark.parametrize("stage", ["lint", "test", "e2e-tools", "e2e-core"])
def test_a_stage_that_fails_ends_the_run_and_is_not_recorded(machine, stage):
    done = machine.ci(FAIL=stage)
    assert done.returncode != 0
    name = "cluster" if stage.startswith("e2e") else stage
    assert machine.ran(name).returncode == 1
    assert "=== all stages" not in done.stdout


def test_the_seed_of_ci_is_fixed_and_that_of_the_night_is_not(machine):
    machine.ci()
    seeds = {line.split("seed=")[1] for line in machine.log.read_text().splitlines()}
    assert len(seeds) == 1 and seeds.pop().isdigit()
    machine.log.unlink()
    machine.ci(OCI_MODEL_CSI_TEST_SEED="7")
    assert "test seed=7" in machine.log.read_text()
    made = subprocess.run(["make", "--dry-run", "nightly"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for test in ("kill_points", "power_loss"):
        [line] = [line for line in made.replace("\\\n", " ").splitlines() if f"--test it {test}::" in line]
        assert "env --unset=OCI_MODEL_CSI_TEST_SEED" in line
        rounds = int(line.split("OCI_MODEL_CSI_TEST_ROUNDS=")[1].split()[0])
        assert rounds >= 5 * 4


def workflow(name):
    # YAML 1.1 takes the key `on` for true.
    return yaml.safe_load((REPOSITORY / f".github/workflows/{name}.yml").read_text())


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_a_release_is_made_and_published_only_after_the_cluster_stage_ran():
    jobs = workflow("release")["jobs"]
    [run, ran] = [number for number, command in enumerate(commands(jobs["check"])) if ".ci/" in command]
    assert commands(jobs["check"])[run].endswith(".ci/run")
    assert commands(jobs["check"])[ran] == ".ci/ran cluster"
    assert all("if" not in step and not step.get("continue-on-error") for step in jobs["check"]["steps"])
    assert jobs["make"]["needs"] == "check" and jobs["publish"]["needs"] == "make"
    assert "continue-on-error" not in str(jobs) and "always()" not in str(jobs)


def test_the_night_has_a_workflow_and_no_job_ends_before_ci_is_through():
    nightly = workflow("nightly")
    assert nightly[True]["schedule"]
    [job] = nightly["jobs"].values()
    assert any(command.endswith("make nightly") for command in commands(job))
    assert "SEED" not in str(nightly)
    limit = int((REPOSITORY / ".ci/run").read_text().split("limit=")[1].split()[0])
    assert limit == 60 * 60
    for name, job in (("ci", "all"), ("release", "check")):
        assert workflow(name)["jobs"][job]["timeout-minutes"] * 60 > limit
