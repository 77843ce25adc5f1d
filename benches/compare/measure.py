"""Runs batches of commands one after the other, the commands of a batch at once, and prints as
JSON: wall and CPU in seconds, the largest sum of the peaks of one batch in MiB, and the output.

A program of its own, since Linux counts the peak of the process that starts a command as the
command's own: this one is small."""

import json
import os
import subprocess
import sys
import time


def run(batches, environment):
    cpu = memory = 0
    output = []
    started = time.perf_counter()
    for batch in batches:
        processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, env=environment) for command in batch]
        peaks = 0
        for process in processes:
            output.append(process.stdout.read().decode(errors="replace"))
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{process.args} ended with {process.returncode}:\n{output[-1][-2000:]}")
            cpu += usage.ru_utime + usage.ru_stime
            peaks += usage.ru_maxrss / 1024
        memory = max(memory, peaks)
    return {"wall": time.perf_counter() - started, "cpu": cpu, "memory": memory, "output": "".join(output)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(run(given["batches"], {**os.environ, **given["environment"]})))
