"""Logging as conventional kiam does it: a line of text, or with --json-log one JSON object, a line."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, ClassVar

from pythonjsonlogger.json import JsonFormatter

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


class _LowercaseLevel(JsonFormatter):
    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data["level"] = record.levelname.lower()


class _TextWithFields(logging.Formatter):
    """Appends the fields of ``extra`` as key=value, so that a text line says as much as a JSON one."""

    _escapes: ClassVar = {code: repr(chr(code))[1:-1] for code in (*range(32), 127, 0x85, 0x2028, 0x2029) if code != 9}
    _standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [f"{key}={value}" for key, value in vars(record).items() if key not in self._standard]
        # A pod chooses the role it asks for; a line break in it must not look like another line of the log.
        return " ".join([super().formatMessage(record), *fields]).translate(self._escapes)


def configure_logging(level: str, json_log: bool) -> None:
    """Send all logging to standard error, from the given level (a key of LEVELS) up."""
    handler = logging.StreamHandler(sys.stderr)
    if json_log:
        handler.setFormatter(
            _LowercaseLevel(
                "%(level)s %(message)s %(asctime)s",
                rename_fields={"message": "msg", "asctime": "time"},
                datefmt="%Y-%m-%dT%H:%M:%SZ",
            )
        )
    else:
        handler.setFormatter(_TextWithFields("%(asctime)s %(levelname)-7s %(message)s"))
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    if level != "debug":
        # Libraries' own info lines are about their inner life, not about pods and roles.
        for noisy in ("aiohttp.access", "botocore", "boto3", "urllib3", "kubernetes", "grpc"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    else:
        # botocore logs whole STS responses, and so secret keys, at debug level.
        # grpc logs a line of its own workings for every call.
        for leaky in ("botocore", "boto3", "urllib3", "grpc"):
            logging.getLogger(leaky).setLevel(logging.INFO)
