"""docs/AWS.md: its table of answers is the one that runs, and its commands are ones that the AWS CLI has."""

import re
import shlex

import botocore.session
import pytest
from botocore import xform_name

from modelfs.keys.aws_answers import ANSWERS, Kind
from tests.helpers import REPOSITORY

TEXT = (REPOSITORY / "docs" / "AWS.md").read_text()
OF_THE_CLI = {"--query", "--output"}


def test_the_table_of_answers_is_the_one_that_runs() -> None:
    start = TEXT.index("| answer of KMS | means |")
    rows = TEXT[start : TEXT.index("| any other, a timeout", start)].splitlines()[2:]
    found = {}
    for row in rows:
        parts = re.fullmatch(r"\| ((?:`\w+`(?:, )?)+): (.*) \| (\w+) \|", row)
        assert parts, row
        codes, reason, kind = parts.groups()
        found |= {code: (Kind(kind), reason) for code in re.findall(r"`(\w+)`", codes)}
    assert found == {code: said for code, said in ANSWERS.items() if said[0] is not Kind.ALLOWED}


COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines() if line.startswith("aws ")
]
COMMANDS += re.findall(r"`(aws [^`]+)`", TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_ones_that_the_cli_has(command: str) -> None:
    """The CLI makes its commands and options from the SDK's description of the service."""
    _aws, service, operation, *arguments = shlex.split(command.partition(" > ")[0].replace("$(cat key.arn)", "ARN"))
    model = botocore.session.Session().get_service_model(service)
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    assert operation in operations
    shape = model.operation_model(operations[operation]).input_shape
    members = {f"--{xform_name(name, '-')}": name for name in shape.members}
    options = [argument for argument in arguments if argument.startswith("--")]
    assert set(options) <= {*members, *OF_THE_CLI}
    if arguments:
        assert {members[option] for option in options if option in members} >= set(shape.required_members)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"file://(policies/[\w.-]+)", TEXT):
        assert (REPOSITORY / name).is_file()
