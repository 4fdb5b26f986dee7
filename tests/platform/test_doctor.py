"""The doctor turns whatever happens in a check into one line with its remedy."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from st4vla.platform import doctor
from st4vla.platform.doctor import Line, examine, verdict
from st4vla.platform.doctor_checks import CHECKS, INSTALL, Check


def look(_: Mapping[str, Any]) -> str:
    return "never called here"


def test_a_check_that_works_says_what_it_saw() -> None:
    line = examine(next(check for check in CHECKS if check.name == "disk"))
    assert line.ok and line.text.endswith("GB free here") and line.mend == ""


def test_a_check_that_cannot_even_start_is_a_line_with_its_remedy() -> None:
    line = examine(Check("no-such-check", "nothing", look, "mend it"))
    assert not line.ok and line.text.startswith("ended with code 1") and line.mend == "mend it"


def test_the_remedy_that_installs_removes_what_would_keep_setup_from_running(checkout: Path) -> None:
    script = (checkout / "scripts" / "setup.sh").read_text()
    stamps = set(re.findall(r"\.venv/\.[\w-]+", script))
    assert stamps and stamps <= set(INSTALL.split()) and INSTALL.endswith("&& make setup")


def test_a_check_that_hangs_is_a_line() -> None:
    line = examine(CHECKS[0], timeout_s=0.001)
    assert line.mark == "MISSING" and "did not answer" in line.text


def test_only_what_is_required_fails_the_machine() -> None:
    required, optional = Check("a", "a", look, ""), Check("b", "b", look, "", required=False)
    assert verdict([Line(required, True, ""), Line(optional, False, "")]) == 0
    assert verdict([Line(required, False, "")]) == 1


def test_the_last_report_is_found_among_other_output() -> None:
    assert doctor._last_report('noise\n{"ok": true, "text": "x", "mend": ""}\nmore noise\n') == {
        "ok": True,
        "text": "x",
        "mend": "",
    }
    assert doctor._last_report("noise\n") is None


def test_every_check_has_a_remedy() -> None:
    assert [check.name for check in CHECKS if not check.mend] == []
