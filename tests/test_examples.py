"""Every example runs as its docstring says, as a program of its own in an empty folder, and prints what it is there to
show; and the demo, which kills a worker and lets another one finish."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modules import REPO
from tests.support.snippets import BLOCK_TIMEOUT_S, environment

EXAMPLES = {path.stem: path for path in sorted((REPO / "examples").glob("*.py")) if path.stem != "__init__"}

PRINTS = {
    "bulk_import": ["attempt 1 begins behind row 0\nattempt 2 begins behind row 4\n10 rows, 2 attempts"],
    "concurrent_fetch": ["https://example.com/0 32", "https://example.com/9 32"],
    "deadlines": [
        "Ada pays 3.5 %\nBen has not answered in time\n2,000 tickets have run out, 0 of them too early\n",
        "the last one: timer.started timer.fired timer.started timer.fired",
    ],
    "deployments": [
        "before the second deployment, exit code 1: 2 histories checked, 1 diverged\n",
        "history says wait.started wait:1 (truck.came), the code now does activity.scheduled step:2 (step)\n",
        "before the third deployment, exit code 0: 2 histories checked, 0 diverged\n['o-1 packed', 'o-1 shipped']\n",
        "['o-2 packed', 'o-2 inspected', 'o-2 shipped']\n",
        "price without a version 1\nprice 2027 1\n119 120\n",
    ],
    "deliveries": [
        "a book delivered\no-1:1:2 failed: it broke\na lamp delivered\n",
        "6 tours in 3 runs\n4 events in the first of them",
    ],
    "job_queue": ["sum of the jobs: 66", "thank you: some jobs"],
    "loan_approval": ["applicant_id='good-1' status='approved'", "applicant_id='other-2' status='rejected'"],
    "order_saga": [
        "shipped as TRACK-o-1\n  instance o-1 has finished: it is completed",
        "refunded payment-of-o-2\n  released 2 x book\n  told the customer: o-2 is off\n  failed: the truck broke down",
        "refunded payment-of-o-3\n  released 2 x book\n  told the customer: o-3 is off\n  cancelled: changed my mind",
    ],
    "loan_desk": [
        "changed to 6000\n",
        "refused: an amount is more than nothing",
        "6000, approved by 0 of 2",
        "6000 for Ada",
        "customer='Ada' amount=6000 approved_by=['ben', 'eve']",
    ],
    "mail_queue": ["statement 1 to ada\nstatement 2 to ada\nstatement 3 to ada\na new password to bob"],
    "order_tables": ["all orders together: 12.50"],
    "orders": ["order_id='o-1' status='shipped' tracking='TRACK-o-1'", "['order_workflow-"],
    "payment_retries": [
        "charged 42.00 with key payment-",
        "called once",
        "gave up after 2 attempts: down for the day",
        "activity.attempt_failed call_payment_api:1 2",
    ],
    "private_orders": [
        "0 files have 'Ada Lovelace' in them\nAda Lovelace has signed 260,000 characters\n",
        "without the new key: a payload was encrypted with key 'new', which this process lacks",
    ],
    "repairs": [
        "the carrier does not answer\n5 retried, 0 refused\npayment-of-o-1 TRACK-o-1 in run 2\n",
        "5 charges for 5 orders\n5 charged\n5 completed\n5 failed: 2 attempts failed",
    ],
    "reports": ["report about sales\n7 nights made up for\n", "0 3 * * * in Europe/Berlin, next at 03:00"],
    "user_registration": ["creating the account of Ada", "account_id='ACC-123' status='completed'"],
    "wait_for_payment": ["o-1: 20.00 paid, signed by Ada", "o-2: 5.00 paid, nobody has signed"],
    "validation": ["order_id='o-1' valid=True", "o-2: romancy_stream.errors:TerminalError: order o-2 is cancelled"],
}
ELSEWHERE = {
    "crash": "the app that the demo kills a worker of",
    "demo": "has a test of its own below",
    "test_orders": "tests of an example; they run below",
}


def run(command: list[str], folder: Path) -> str:
    env = environment() | {"PYTHONPATH": str(REPO), "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=BLOCK_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_example_has_its_test() -> None:
    assert EXAMPLES.keys() == PRINTS.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs_as_its_docstring_says(name: str, tmp_path: Path) -> None:
    doc = ast.get_docstring(ast.parse(EXAMPLES[name].read_text(encoding="utf-8"))) or ""
    [told] = re.findall(r"^\s*python -m (\S+)$", doc, re.MULTILINE)
    assert told == f"examples.{name}"
    printed = run([sys.executable, "-W", "error", "-m", told], tmp_path)
    for expected in PRINTS[name]:
        assert expected in printed
    if name == "concurrent_fetch":
        assert printed.count("\n") == 10


def test_the_tests_of_an_example_run_as_their_docstring_says(tmp_path: Path) -> None:
    doc = ast.get_docstring(ast.parse(EXAMPLES["test_orders"].read_text(encoding="utf-8"))) or ""
    assert "python -m pytest examples/test_orders.py" in doc
    path = str(EXAMPLES["test_orders"])
    printed = run([sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", path], tmp_path)
    assert "5 passed" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(600)
def test_the_demo_prints_its_proof_and_leaves_nothing_behind(tmp_path: Path) -> None:
    printed = run([sys.executable, "-W", "error", str(EXAMPLES["demo"])], tmp_path)
    assert "user_registration returned" in printed
    assert "order_workflow returned" in printed
    killed = re.search(r"kill -9 of worker (\d+), \d legs recorded", printed)
    finished = re.search(r"worker (\d+) finished it", printed)
    assert killed is not None
    assert finished is not None
    assert killed[1] != finished[1]
    # A result may lie in the log when its worker dies: how the legs are shared is not exactly known.
    assert re.search(rf"each recorded once: \d by worker {killed[1]} and \d by worker {finished[1]}\n", printed)
    assert "no differences" in printed
    assert not list(tmp_path.iterdir())
    for pid in (killed[1], finished[1]):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
