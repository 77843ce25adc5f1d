#!/usr/bin/env python3
"""Compares the tests that csi-sanity skipped with those that it may skip.

    skipped.py REPORT.json SKIPS.txt

REPORT.json is ginkgo's JSON report. Prints the counts. Exits with 1 if no line
covers a skipped test, if a line covers no skip, or if a test failed.
"""

import json
import re
import sys
from collections import Counter


def allowances(path):
    """(line number, pattern, reason) of each line that is not a comment."""
    for number, line in enumerate(open(path, encoding="utf-8"), start=1):
        line = line.rstrip("\n")
        if not line or line.startswith("#"):
            continue
        pattern, tab, reason = line.partition("\t")
        if not tab or not reason.strip():
            sys.exit(f"{path}:{number}: expected a pattern, a tab and a reason")
        yield number, re.compile(pattern), reason.strip()


def tests(path):
    """(full name, state, message of csi-sanity) of each test."""
    for suite in json.load(open(path, encoding="utf-8")):
        for spec in suite["SpecReports"] or []:
            if spec["LeafNodeType"] == "It":
                name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
                yield name, spec["State"], spec.get("Failure", {}).get("Message", "")


def main(report, skips):
    allowed = list(allowances(skips))
    used, counts, problems = Counter(), Counter(), []
    for name, state, said in tests(report):
        counts[state] += 1
        if state not in ("skipped", "pending"):
            continue
        covering = [number for number, pattern, _ in allowed if pattern.search(name)]
        used.update(covering)
        if not covering:
            problems.append(f"skipped, but {skips} has no line for it: {name} ({said or state})")
    for number, pattern, _ in allowed:
        if not used[number]:
            problems.append(f"{skips}:{number}: no test is skipped for '{pattern.pattern}'")
    for number, pattern, reason in allowed:
        print(f"  {used[number]:3} skipped: {reason}")
    for problem in problems:
        print(f"csi-sanity: {problem}", file=sys.stderr)

    passed, skipped, pending = counts["passed"], counts["skipped"], counts["pending"]
    failed = sum(counts.values()) - passed - skipped - pending
    if pending:
        print(f"csi-sanity: {pending} pending upstream")
    print(f"csi-sanity: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if problems or failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
