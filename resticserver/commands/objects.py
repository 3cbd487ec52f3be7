"""
C{rest-server objects probe}: what an object store guarantees, found out by trying.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from ..config.console import OneLineParser, write_line
from ..errors import ServerError, StartError
from ..objects.engine import EngineError
from ..objects.location import Location, parse_location
from ..objects.probe import Finding, Probe

_DESCRIPTION = (
    "Try what an object store guarantees, as the server does at its start, and print it. Objects are written below "
    ".rest-server/probe and removed again. The exit status is 0 if the server can use it, 1 if not, and 2 if the arguments "
    "are invalid or the object store cannot be reached. Endpoint, region and credentials come from the usual variables "
    "(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...) and files (~/.aws/config, ~/.aws/credentials)."
)


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{objects}.
    @return: 0 if the object store keeps what it must, 1 if not, 2 if that cannot be found out.
    """
    parser, probe = _parsers()
    try:
        asked = probe.parse_args(arguments[1:]) if arguments[:1] == ["probe"] else parser.parse_args(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        location = parse_location(asked.path)
        findings, times = _tried(location)
    except StartError as error:
        print(f"{probe.prog}: {str(error).removeprefix('--path: ').removeprefix('--path ')}", file=sys.stderr)
        return 2
    except ServerError as error:
        detail = f" ({error.detail})" if isinstance(error, EngineError) and error.detail else ""
        print(f"{probe.prog}: {location}: {error.message}{detail}", file=sys.stderr)
        return 2
    usable = not any(one.problem and one.vital for one in findings)
    if asked.json:
        document = {"path": str(location), "usable": usable, "findings": [one._asdict() for one in findings], **times}
        return (0 if usable else 1) if write_line(json.dumps(document)) else 2
    lines = [
        f"{'no ' if one.problem else 'yes'}  {one.name}{f': {one.problem}' if one.problem else ''}" for one in findings
    ]
    lines += [f"     {name.replace('_', ' ')}: {value:g}" for name, value in times.items()]
    lines.append(f"{location} can {'' if usable else 'not '}be used")
    return (0 if usable else 1) if all(map(write_line, lines)) else 2


def _parser() -> OneLineParser:
    return _parsers()[0]


def _parsers() -> tuple[OneLineParser, OneLineParser]:
    """The parser of the command, and that of its subcommand."""
    parser = OneLineParser("rest-server objects", description="Look at an object store.")
    probe: OneLineParser = parser.add_subparsers(required=True, metavar="probe", parser_class=OneLineParser).add_parser(
        "probe", help="try what an object store guarantees", description=_DESCRIPTION
    )
    probe.add_argument("--json", action="store_true", help="print a JSON object")
    probe.add_argument("path", metavar="PATH", help="the server's --path, such as s3://bucket/prefix")
    return parser, probe


def _tried(location: Location) -> tuple[list[Finding], dict[str, float]]:
    """
    All findings, and how long requests take.

    @raise StartError: a library is not installed, or what is configured is wrong.
    """
    from ..service.object_store import make_engine  # its libraries are an extra, and take a while

    engine = make_engine(location)
    engine.check_bucket()
    probe = Probe(engine, location.prefix)
    findings = probe.quick()
    if not findings[0].problem:
        findings += probe.race()
    if location.scheme == "s3":
        from ..objects.s3 import open_s3_requests
        from ..objects.s3_probe import s3_findings

        findings += s3_findings(engine, open_s3_requests(location), location.prefix)
    with probe.timed_requests() as requests:
        return findings, {f"{name}_4_KiB_ms": round(_median_s(one) * 1000, 1) for name, one in requests.items()}


def _median_s(request: Callable[[], object], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        begun_s = time.perf_counter()
        request()
        times.append(time.perf_counter() - begun_s)
    return sorted(times)[rounds // 2]
