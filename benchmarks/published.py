"""Published runs of other stacks beside the planner: how large their peaks, whether they fit, how fast they are.

    python benchmarks/published.py setup ROWS... [--stack NAME]
    python benchmarks/published.py truth|verdicts|speed trace ROWS... [--stack NAME] [--only TEXT] [--missing]
    python benchmarks/published.py truth|verdicts|speed table ROWS... [--out FILE]

What each stack did is said in benchmarks/stacks, from its own source; nothing is fitted. `setup` installs each stack's
own versions, or those that the rows name, beside this project's torch. `trace` runs each stack in a process of its own
that finds them first, and keeps the answers in benchmarks/truth.jsonl, verdicts.jsonl and speed.jsonl: one trace
answers every question that it can. `table` writes the page of the documentation from that. A row that is not
reproduced is listed with the reason.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import speed, stacks, truth, verdicts  # found from the line above
from benchmarks.rows import read_rows
from benchmarks.runner import KEPT, Question, answer_all, answers_of_today, read_answers, run_child

QUESTIONS = {question.name: question for question in (truth.QUESTION, verdicts.QUESTION, speed.QUESTION)}


def main() -> int:
    """Read the command line, and do what it says."""
    arguments = _parser().parse_args()
    if arguments.question == "setup":
        rows = read_rows(arguments.rows)
        named = {judge for row in rows for judge in stacks.tracers(row)}
        stacks.install(sorted(judge for judge in named if arguments.stack in (None, stacks.stack_name(judge))))
        return 0
    question = QUESTIONS[arguments.question]
    match arguments.command:
        case "trace":
            return int(trace(question, arguments) > 0)
        case "child":
            rows = [json.loads(line) for line in sys.stdin.read().splitlines()]
            others = [other for other in QUESTIONS.values() if other is not question]
            return int(answer_all(question, others, arguments.judge, rows, arguments.kept) > 0)
    rows = read_rows(arguments.rows)
    kept = read_answers(question.kept(arguments.kept))
    page = question.table(rows, answers_of_today(question, rows, kept))
    (arguments.out or question.page).write_text(page, encoding="utf-8")
    return 0


def trace(question: Question, arguments: argparse.Namespace) -> int:
    """Answer a question about rows, each judge in a process of its own; return how many processes failed."""
    known = read_answers(question.kept(arguments.kept)) if arguments.missing else {}
    rows = [row for row in read_rows(arguments.rows) if arguments.only in row["id"]]
    failed = 0
    for judge in sorted({judge for row in rows for judge in question.judges(row)}):
        chosen = [row for row in rows if judge in question.judges(row) and question.key(judge, row) not in known]
        if chosen and arguments.stack in (None, stacks.stack_name(judge)):
            failed += not run_child(question, judge, chosen, arguments.kept)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = parser.add_subparsers(dest="question", required=True)
    installs = questions.add_parser("setup", help="install the versions that rows are traced with")
    installs.add_argument("rows", type=Path, nargs="+")
    installs.add_argument("--stack", choices=stacks.names())
    for name in QUESTIONS:
        commands = questions.add_parser(name).add_subparsers(dest="command", required=True)
        traces, tables, child = (commands.add_parser(command) for command in ("trace", "table", "child"))
        for command in (traces, tables):
            command.add_argument("rows", type=Path, nargs="+")
        for command in (traces, tables, child):
            command.add_argument("--kept", type=Path, default=KEPT, help="the folder of the answers")
        traces.add_argument("--stack", choices=[*stacks.names(), verdicts.OWN])
        traces.add_argument("--only", default="", help="part of a row's id")
        traces.add_argument("--missing", action="store_true", help="only what nobody has answered yet")
        tables.add_argument("--out", type=Path, help="another file than the page of the documentation")
        child.add_argument("judge")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
