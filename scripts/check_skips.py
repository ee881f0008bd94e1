"""Fail if a test run passed over anything but the long forms: `check_skips.py REPORT...`, JUnit files of pytest."""

import sys
from xml.etree import ElementTree

LONG_FORM = "long form: run with --slow"


def main() -> int:
    """List what was skipped; 1 if there is anything, or if no test ran."""
    cases = [case for report in sys.argv[1:] for case in ElementTree.parse(report).iter("testcase")]
    skips = [(case, skip) for case in cases for skip in case.iter("skipped") if skip.get("type") != "pytest.xfail"]
    wrong = [
        f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}" for case, skip in skips if skip.get("message") != LONG_FORM
    ]
    for line in wrong:
        print(f"skipped: {line}")
    if wrong or len(skips) == len(cases):
        print(f"check_skips: {len(wrong)} of {len(cases)} tests were skipped: every test must run here")
        return 1
    print(f"check_skips: {len(cases) - len(skips)} tests ran, {len(skips)} long forms were left out")
    return 0


sys.exit(main())
