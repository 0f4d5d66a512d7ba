"""Statements of libnftables' JSON as people write them."""

from __future__ import annotations

import json
from typing import Any


def in_words(statement: Any) -> str:
    """A statement about as ``nft list`` prints it, for people; JSON where it is a rare one."""
    match statement:
        case {"match": {"op": operator, "left": left, "right": right}}:
            return " ".join(filter(None, [_value(left), "" if operator in {"==", "in"} else operator, _value(right)]))
        case {"counter": str(name)}:
            return f'counter name "{name}"'
        case {"counter": _}:
            return "counter"
        case {"dnat": {"addr": str(address), **more}}:
            return f"dnat to {address}" + (f":{more['port']}" if "port" in more else "")
        case {"redirect": {"port": port}}:
            return f"redirect to :{port}"
        case {"jump": {"target": target}}:
            return f"jump {target}"
        case {"goto": {"target": target}}:
            return f"goto {target}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_value(key)} vmap {_value(data)}"
        case {"accept": _} | {"drop": _} | {"return": _} | {"reject": _} | {"notrack": _} | {"masquerade": _}:
            return str(next(iter(statement)))
        case _:
            return json.dumps(statement, separators=(",", ":"))


def _value(value: Any) -> str:
    match value:
        case {"payload": {"protocol": protocol, "field": name}}:
            return f"{protocol} {name}"
        case {"meta": {"key": key}}:
            return str(key)
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(flags)} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"concat": parts}:
            return " . ".join(map(_value, parts))
        case {"set": [*parts]}:
            return "{ " + ", ".join(map(_value, parts)) + " }"
        case [*parts]:
            return ",".join(map(_value, parts))
        case str() if value.endswith("*"):
            return f'"{value}"'
        case str() | int():
            return str(value)
        case _:
            return json.dumps(value, separators=(",", ":"))
