"""Processes as in a container: of another user, with other paths, and with one place to write."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path

from driver import INSIDE

UNPRIVILEGED = 65534


class Container:
    """Runs Python programs that see `mounts`, by name, below `place`, besides the installed
    libraries, and that may write to `place / "home"`."""

    def __init__(self, place, user):
        self.place = place
        self.home = place / "home"
        # A user namespace of one user has no other user.
        self.user = user if os.environ[INSIDE] == "root" else os.geteuid()

    def python(self, script, *arguments, fails=False, **environment):
        """The output of a program of this directory; its error text where it must fail."""
        for program in Path(__file__).parent.glob("*_cases.py"):
            shutil.copy(program, self.place)
        python = self.place / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        user = {} if self.user == os.geteuid() else {
            "user": self.user, "group": self.user, "extra_groups": []}
        run = subprocess.run(
            [python / "bin" / version, self.place / script, *arguments],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHOME": str(python),
                 "PYTHONPATH": str(self.place / "libraries"), "PYTHONDONTWRITEBYTECODE": "1",
                 "LD_LIBRARY_PATH": str(python / "lib"), "HOME": str(self.home),
                 "TMPDIR": str(self.home), **environment},
            cwd=self.place, capture_output=True, text=True, timeout=120, **user)
        assert (run.returncode != 0) == fails, f"{script} {arguments}\n{run.stdout}\n{run.stderr}"
        return run.stderr if fails else json.loads(run.stdout)

    def written(self):
        """The names below its home directory."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*"))


@contextmanager
def container(user=UNPRIVILEGED, **mounts):
    """A Container with these directories, each by its name."""
    place = Path(tempfile.mkdtemp(prefix="container-"))
    place.chmod(0o755)
    bound = []
    try:
        one = Container(place, user)
        # The programs may lie where that user may not look.
        programs = {"python": sys.base_prefix, "libraries": sysconfig.get_path("purelib")}
        for name, directory in {**programs, **mounts}.items():
            (place / name).mkdir()
            subprocess.run(["mount", "--bind", directory, place / name], check=True)
            bound.append(place / name)
        one.home.mkdir()
        os.chown(one.home, one.user, -1)
        yield one
    finally:
        # Only what is no longer mounted there may be removed with it.
        for directory in bound:
            subprocess.run(["umount", directory], check=True)
        shutil.rmtree(place)
