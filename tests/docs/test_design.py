"""docs/DESIGN.md draws the lease from the table that runs."""

from modelfs.control.lease import TRANSITIONS
from tests.helpers import REPOSITORY


def test_the_lease_s_table_is_the_one_that_runs() -> None:
    text = (REPOSITORY / "docs" / "DESIGN.md").read_text()
    rows = [f"| {state} | {event} | {after} | {', '.join(actions) or '-'} |" for (state, event), (after, actions) in TRANSITIONS.items()]
    start = text.index("| state | event | then | what is done |")
    table = text[start : text.index("\n\n", start)].splitlines()[2:]
    assert table == rows
