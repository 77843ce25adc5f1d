"""What a container can change in a model: `write_cases.py MODEL FILE` tries everything, and
prints the name of each error, or `null` where there was none, as JSON."""

import errno
import json
import os
import sys
from pathlib import Path

model = Path(sys.argv[1])
file = model / sys.argv[2]
new = model / "new"

ATTEMPTS = {
    "create": lambda: os.close(os.open(new, os.O_CREAT | os.O_WRONLY)),
    "lock": lambda: os.close(os.open(model / f"{sys.argv[2]}.lock", os.O_CREAT | os.O_RDWR)),
    "mkdir": lambda: os.mkdir(new),
    "symlink": lambda: os.symlink(file, new),
    "link": lambda: os.link(file, new),
    "rename": lambda: os.rename(file, new),
    "remove": lambda: os.remove(file),
    "open to write": lambda: os.close(os.open(file, os.O_WRONLY)),
    "truncate": lambda: os.truncate(file, 0),
    "chmod": lambda: os.chmod(file, 0o666),
    "utime": lambda: os.utime(file),
}


def attempt(change):
    try:
        change()
    except OSError as error:
        return errno.errorcode[error.errno]


print(json.dumps({name: attempt(change) for name, change in ATTEMPTS.items()}))
